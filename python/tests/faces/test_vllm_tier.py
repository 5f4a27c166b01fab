"""The secondary tier below vLLM's tiering manager."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm.v1.kv_offload.tiering.base", reason="no vLLM with tiered offloading is installed")

from tier_rig import NO_STEP, Rig, configuration, keys, request, with_dtype
from vllm.v1.kv_offload.base import LookupResult, OffloadingEvent

from kvstored import InvalidInput, Store
from kvstored.vllm_tier.chains import Chain
from kvstored.vllm_tier.identity import chunk_identities


@pytest.fixture
def rig(folder: Path) -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(**tier: Any) -> Rig:
        made.append(Rig(configuration(folder, **tier)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_rows_come_back_in_another_instance(folder: Path) -> None:
    first = Rig(configuration(folder))
    both = keys(2) + keys(2, group=1)
    contents = [first.fill(chunk, seed=chunk) for chunk in range(4)]
    stored = first.store(both, [0, 1, 2, 3])
    assert stored.success and stored.transfer_bytes == sum(map(len, contents))
    first.close()

    again = Rig(configuration(folder))
    loaded = again.load(list(reversed(both)), [9, 8, 7, 6])
    assert loaded.success and loaded.successful_keys is None
    # the same hash in another group is another chunk
    assert [again.read(chunk) for chunk in (6, 7, 8, 9)] == contents
    again.close()


def test_a_partial_load_says_which_chunks_are_there(rig: Callable[..., Rig]) -> None:
    one = rig()
    present, absent = keys(2), keys(1, seed=1)
    contents = [one.fill(chunk, seed=chunk) for chunk in range(2)]
    one.store(present, [0, 1])
    assert [event.removed for event in one.tier.take_events()] == [False]

    mixed = [present[0], absent[0], present[1]]
    context = request("r", mixed)
    assert [one.tier.lookup(key, context) for key in mixed] == [LookupResult.HIT, LookupResult.MISS, LookupResult.HIT]
    result = one.load(mixed, [10, 11, 12])
    assert not result.success
    assert result.successful_keys == present
    assert [one.read(10), one.read(12)] == contents
    events = list(one.tier.take_events())
    assert [(event.keys, event.removed) for event in events] == [(absent, True)]
    assert list(one.tier.take_events()) == []


def test_what_the_store_lets_go_is_announced(rig: Callable[..., Rig]) -> None:
    one = rig()
    wanted = keys(2, group=1)
    # the store begins to take notes when it is asked first
    one.tier._removals._fetch()
    one.store(wanted, [0, 1])
    one.tier._lease.store.drain(10)
    one.tier._namespaces[1].evict([wanted[0][:-4]])
    # from one tier only: it is still there
    one.tier._namespaces[1].evict([wanted[1][:-4]], "Cache")
    events = events_of(one, 2)
    assert [(event.keys, event.removed) for event in events] == [(wanted, False), (wanted[:1], True)]


def events_of(rig: Rig, count: int) -> list[OffloadingEvent]:
    """At least so many events; they come beside the steps."""
    events: list[OffloadingEvent] = []
    for _ in range(2000):
        events += rig.tier.take_events()
        if len(events) >= count:
            return events
        threading.Event().wait(0.005)
    return events


def test_a_chunk_that_could_not_be_loaded_is_not_tried_again_by_its_request(rig: Callable[..., Rig]) -> None:
    one = rig()
    wanted = keys(1)
    one.fill(0, seed=0)
    one.store(wanted, [0])
    context = request("r", wanted)
    assert one.tier.lookup(wanted[0], context) is LookupResult.HIT
    # what is still on its way to the directory would come back
    one.tier._lease.store.drain(10.0)
    one.tier._namespaces[0].evict([wanted[0][:-4]])
    assert one.tier.lookup(wanted[0], context) is LookupResult.HIT, "a request sees one state of the store"
    assert not one.load(wanted, [5]).success
    assert one.tier.lookup(wanted[0], context) is LookupResult.MISS
    one.tier.on_request_finished(context)
    one.store(wanted, [0])
    assert one.tier.lookup(wanted[0], request("later", wanted)) is LookupResult.HIT


def test_the_managers_own_path_from_store_to_promotion(folder: Path) -> None:
    first = Rig(configuration(folder))
    wanted = keys(3)
    context = request("r", wanted)
    first.manager.on_new_request(context)
    output = first.manager.prepare_store(wanted, context)
    assert output is not None
    contents = [first.fill(int(chunk), seed=chunk) for chunk in output.store_spec.block_ids]
    first.manager.complete_store(wanted, context)
    first.manager.on_request_finished(context)
    first.manager.reset_cache()
    first.close()

    again = Rig(configuration(folder))
    context = request("r", wanted)
    again.manager.on_new_request(context)
    assert {again.manager.lookup(key, context) for key in wanted} == {LookupResult.HIT_PENDING}
    again.manager.on_schedule_end(NO_STEP)
    again.tier.drain_jobs()
    assert [again.manager.lookup(key, context) for key in wanted] == [LookupResult.HIT] * 3
    rows = again.manager.prepare_load(wanted, context).block_ids
    assert [again.read(int(row)) for row in rows] == contents
    again.manager.complete_load(wanted, context)
    again.manager.on_request_finished(context)
    stats = again.manager.get_stats()
    assert stats is not None
    assert stats.reduce()["vllm:kvstored_tier_loaded_chunks:('KvstoredTier',)"] == 3
    again.close()


def test_stores_beyond_the_limit_are_refused_at_once(rig: Callable[..., Rig]) -> None:
    one = rig(stores_in_flight_ratio=0.1)
    result = one.store(keys(4), [0, 1, 2, 3])
    assert not result.success
    assert one.store(keys(3), [0, 1, 2]).success
    assert one.store(keys(3, seed=2), [3, 4, 5]).success, "what has ended counts no more"
    stats = one.tier.get_stats()
    assert stats is not None
    assert stats.reduce()["vllm:kvstored_tier_store_refused_chunks:('KvstoredTier',)"] == 4
    assert one.tier.get_stats() is None


def test_lookups_at_a_daemon_wait_for_the_next_step(folder: Path) -> None:
    socket = str(folder / "s")
    options = {"pipeline": "Cache", "cache_buffer_capacity": "32MiB"}
    with Store.embedded(options, listen=socket):
        one = Rig(configuration(folder, socket=socket))
        wanted, absent = keys(3), keys(1, seed=1)
        one.store(wanted, [0, 1, 2])
        context = request("r", [*wanted, *absent])
        assert one.tier.lookup(wanted[0], context) is LookupResult.RETRY
        assert one.tier.has_pending_work()
        one.tier.on_schedule_end(NO_STEP)
        # asked for one key, it asked for all of the request's
        found = [settled(one, key, context) for key in [*wanted, *absent]]
        assert found == [LookupResult.HIT] * 3 + [LookupResult.MISS]
        assert not one.tier.has_pending_work()
        one.close()


def test_a_store_that_goes_away_means_misses_and_failed_jobs(folder: Path) -> None:
    socket = str(folder / "s")
    store = Store.embedded({"pipeline": "Cache", "cache_buffer_capacity": "32MiB"}, listen=socket)
    one = Rig(configuration(folder, socket=socket, timeout_ms=2000))
    wanted = keys(2)
    one.store(wanted, [0, 1])
    store.close()
    context = request("r", wanted)
    one.tier.lookup(wanted[0], context)
    one.tier.on_schedule_end(NO_STEP)
    assert settled(one, wanted[0], context) is LookupResult.MISS
    assert not one.load(wanted, [2, 3]).success
    assert not one.store(keys(2, seed=1), [2, 3]).success
    one.close()


def settled(rig: Rig, key: Any, context: Any) -> LookupResult:
    """The verdict once it is there."""
    while (result := rig.tier.lookup(key, context)) is LookupResult.RETRY:
        rig.tier._lookups._thread.join(0.01)
    return result


def test_jobs_under_way_end_before_the_rows_go(rig: Callable[..., Rig]) -> None:
    one = rig()
    one.tier.submit_store(one._job(keys(16), range(16), False))
    # closing at once must neither touch rows that are gone nor fail to let vLLM unmap them
    one.close()
    assert one.manager.primary_tier._mmap_region._base is None
    one.close = lambda: None  # type: ignore[method-assign]


def test_every_fact_about_the_bytes_makes_another_namespace(folder: Path) -> None:
    base = configuration(folder)
    variants = [
        base,
        with_dtype(base, "bfloat16"),
        configuration(folder, world_size=2),
        dataclasses.replace(base, cache=dataclasses.replace(base.cache, blocks_per_chunk=2)),
        dataclasses.replace(base, kv_cache_layout="NHD"),
        dataclasses.replace(base, canonical_layout=True),
        dataclasses.replace(base, groups=base.groups[:1]),
        dataclasses.replace(base, model=dataclasses.replace(base.model, name="other")),
    ]
    made = [chunk_identities(variant, weights_digest="w")[0] for variant in variants]
    made += [
        chunk_identities(base, weights_digest="w")[1],
        chunk_identities(base, weights_digest="v")[0],
        chunk_identities(base, weights_digest="w", tenant="t")[0],
        chunk_identities(base, weights_digest="w", cache_salt="s")[0],
    ]
    assert len(set(made)) == len(made)
    assert chunk_identities(dataclasses.replace(base, engine_id="e"), weights_digest="w")[0] == made[0]


def test_a_chunks_parent_is_the_one_before_it_in_its_group() -> None:
    here, there = keys(3), keys(2, group=1)
    context = request("r", [here[0], there[0], here[1]])
    chain = Chain.of(context)
    assert [chain.parent(key) for key in (here[0], there[0], here[1])] == [None, None, here[0]]
    for key in (there[1], here[2]):
        context.set_offload_key_position(key, 1)
    assert [Chain.of(context).parent(key) for key in (there[1], here[2])] == [there[0], here[1]]
    assert chain.parent(keys(1, seed=9)[0]) is None


def test_a_wrong_setting_fails_the_start_and_leaves_nothing(folder: Path) -> None:
    with pytest.raises(InvalidInput, match="cache_buffer_capacity"):
        Rig(configuration(folder, cache_buffer_capacity="lots"))
    # the region and the store can be had again
    Rig(configuration(folder)).close()
