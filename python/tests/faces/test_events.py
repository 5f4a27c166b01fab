"""Store events as vLLM's KV events, compared with those that vLLM itself publishes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM isn't installed")

import msgspec
from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256_cbor
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash, maybe_convert_block_hash
from vllm.v1.request import Request

from kvstored.vllm.event_feed import EventFeed
from kvstored.vllm.events import EventTranslator
from kvstored.vllm.residency import REMOVED, STORED

SIZE = 16
TIERS = ["Cache", "Posix"]
OURS, OTHER = b"o" * 32, b"x" * 32


@dataclass
class Batch:
    """A batch of store events in one namespace."""

    hashes: list[bytes]
    kind: int = STORED
    tier: int = 0
    namespaces: list[bytes] = field(default_factory=lambda: [OURS])
    next: int = 1
    lost: bool = False

    def __post_init__(self) -> None:
        self.kinds = [self.kind] * len(self.hashes)
        self.tiers = [self.tier] * len(self.hashes)
        self.namespace_indices = [0] * len(self.hashes)


def request(tokens: Sequence[int], **more: Any) -> Request:
    init_none_hash(sha256_cbor)
    return Request(
        request_id="r",
        prompt_token_ids=list(tokens),
        sampling_params=SamplingParams(max_tokens=1),
        pooling_params=None,
        block_hasher=get_request_block_hasher(SIZE, sha256_cbor),
        **more,
    )


def published_by_vllm(asked: Request, blocks: int) -> list[Any]:
    """What vLLM publishes of the blocks in the device's memory."""
    pool = BlockPool(num_gpu_blocks=64, enable_caching=True, hash_block_size=SIZE, enable_kv_cache_events=True)
    pool.cache_full_blocks(asked, pool.get_new_blocks(blocks), 0, blocks, SIZE, kv_cache_group_id=0)
    return pool.take_events()


def translate(translator: EventTranslator, *batches: Batch, ranks: dict[bytes, int] | None = None) -> list[Any]:
    return [event for batch in batches for event in translator.translate(batch, ranks or {OURS: 0})]


@pytest.mark.parametrize(
    "more",
    [{}, {"cache_salt": "salt"}, {"lora_request": LoRARequest(lora_name="l", lora_int_id=3, lora_path="/l")}],
    ids=["plain", "salted", "adapter"],
)
def test_a_known_block_is_published_as_vllm_does(more: dict[str, Any]) -> None:
    asked = request(range(5 * SIZE), **more)
    translator = EventTranslator(1, SIZE, tier_names=TIERS)
    translator.remember(asked, asked.block_hashes)
    (event,) = translate(translator, Batch(asked.block_hashes))
    (theirs,) = published_by_vllm(asked, 5)
    assert (event.medium, event.ownership) == ("CPU", "kvstored")
    for name in ("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "lora_name", "group_idx"):
        assert getattr(event, name) == getattr(theirs, name), name
    assert (event.extra_keys or [None] * 5) == theirs.extra_keys
    encoded = msgspec.msgpack.encode(KVEventBatch(ts=0.0, events=[event]))
    assert msgspec.msgpack.decode(encoded, type=KVEventBatch).events == [event]


def test_chains_are_published_parents_first() -> None:
    long, fork = request(range(6 * SIZE)), request([*range(3 * SIZE), *range(900, 900 + 2 * SIZE)])
    translator = EventTranslator(1, SIZE, tier_names=TIERS)
    translator.remember(long, long.block_hashes)
    translator.remember(fork, fork.block_hashes)
    stored = [*reversed(long.block_hashes[1:]), *fork.block_hashes[3:]]
    events = translate(translator, Batch(stored))
    seen = {maybe_convert_block_hash(long.block_hashes[0])}
    for event in events:
        assert event.parent_block_hash in seen
        seen.update(event.block_hashes)
        assert len(event.token_ids) == SIZE * len(event.block_hashes)
    assert sorted(len(event.block_hashes) for event in events) == [2, 5]


def test_long_chains_are_split() -> None:
    asked = request(range(600 * SIZE))
    translator = EventTranslator(1, SIZE, tier_names=TIERS)
    translator.remember(asked, asked.block_hashes)
    events = translate(translator, Batch(asked.block_hashes))
    assert [len(event.block_hashes) for event in events] == [256, 256, 88]
    assert events[1].parent_block_hash == events[0].block_hashes[-1]
    removed = translate(translator, Batch(asked.block_hashes, REMOVED))
    assert [len(event.block_hashes) for event in removed] == [256, 256, 88]


def test_an_unknown_block_is_published_without_tokens() -> None:
    translator = EventTranslator(1, SIZE, tier_names=TIERS)
    (event,) = translate(translator, Batch([b"h" * 32], tier=1))
    assert isinstance(event, BlockStored)
    assert event.block_hashes == [maybe_convert_block_hash(b"h" * 32)]
    assert (event.token_ids, event.block_size, event.parent_block_hash, event.medium) == ([], 0, None, "STORAGE")


def test_a_removal_names_its_medium() -> None:
    translator = EventTranslator(1, SIZE, tier_names=TIERS)
    translate(translator, Batch([b"h" * 32]), Batch([b"h" * 32], tier=1))
    (event,) = translate(translator, Batch([b"h" * 32], REMOVED))
    assert event == BlockRemoved(
        block_hashes=[maybe_convert_block_hash(b"h" * 32)], medium="CPU", group_idx=0, ownership="kvstored"
    )


def test_other_namespaces_are_none_of_ours() -> None:
    translator = EventTranslator(1, SIZE, tier_names=TIERS)
    assert translate(translator, Batch([b"h" * 32], namespaces=[OTHER])) == []


def test_a_block_counts_when_all_ranks_have_it() -> None:
    translator = EventTranslator(2, SIZE, tier_names=TIERS)
    ranks = {OURS: 0, OTHER: 1}
    assert translate(translator, Batch([b"h" * 32]), ranks=ranks) == []
    (event,) = translate(translator, Batch([b"h" * 32], namespaces=[OTHER]), ranks=ranks)
    assert isinstance(event, BlockStored)
    (event,) = translate(translator, Batch([b"h" * 32], REMOVED), ranks=ranks)
    assert isinstance(event, BlockRemoved)


def test_hashes_are_published_whole_where_vllm_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES", "0")
    (event,) = translate(EventTranslator(1, SIZE, tier_names=TIERS), Batch([b"h" * 32]))
    assert event.block_hashes == [b"h" * 32]


def test_lost_events_take_back_what_was_published() -> None:
    translator = EventTranslator(1, SIZE, tier_names=TIERS)
    assert translate(translator, Batch([], lost=True)) == []
    translate(translator, Batch([b"a" * 32, b"b" * 32]))
    removed, stored = translate(translator, Batch([b"c" * 32], lost=True))
    assert removed.block_hashes == [maybe_convert_block_hash(h * 32) for h in (b"a", b"b")]
    assert stored.block_hashes == [maybe_convert_block_hash(b"c" * 32)]


def test_everything_is_cleared_where_it_is_not_known_what_was_published() -> None:
    translator = EventTranslator(1, SIZE, tier_names=TIERS, resident_blocks=2)
    translate(translator, Batch([bytes([index]) * 32 for index in range(3)]))
    (event,) = translate(translator, Batch([], lost=True))
    assert isinstance(event, AllBlocksCleared)


def test_remembered_tokens_are_bounded() -> None:
    first, second = request(range(4 * SIZE)), request(range(100, 100 + 4 * SIZE))
    translator = EventTranslator(1, SIZE, tier_names=TIERS, known_blocks=4)
    for asked in (first, second):
        translator.remember(asked, asked.block_hashes)
    assert [event.block_size for event in translate(translator, Batch(first.block_hashes))] == [0] * 4
    assert [event.block_size for event in translate(translator, Batch(second.block_hashes))] == [SIZE]


def test_a_request_may_be_remembered_in_parts() -> None:
    asked = request(range(5 * SIZE + 3))
    translator = EventTranslator(1, SIZE, tier_names=TIERS)
    translator.remember(asked, asked.block_hashes[:2])
    translator.remember(asked, [*asked.block_hashes[2:], b"not complete yet" * 2], 2, asked.block_hashes[1])
    (event,) = translate(translator, Batch(asked.block_hashes))
    assert event.token_ids == list(range(5 * SIZE))
    (unknown,) = translate(translator, Batch([b"not complete yet" * 2]))
    assert unknown.block_size == 0


def test_nothing_raises() -> None:
    translator = EventTranslator(1, SIZE, tier_names=TIERS)
    translator.remember(None, [b"h" * 32])
    assert translator.translate(SimpleNamespace(lost=False), {}) == []  # type: ignore[arg-type]
    uneven = Batch([b"h" * 32])
    uneven.kinds = []
    assert translate(translator, uneven) == []
    assert len(translate(translator, Batch([b"h" * 32]))) == 1


class FakeStore:
    """A store with a log of batches, each of one event."""

    tier_names = TIERS

    def __init__(self, batches: Sequence[Batch] = ()) -> None:
        self.log = list(batches)
        self.asked: list[int] = []
        self.error: Exception | None = None

    def take_events(self, after: int, limit: int) -> Batch:
        self.asked.append(after)
        if self.error is not None:
            raise self.error
        hashes = [h for batch in self.log[after : after + limit] for h in batch.hashes]
        return Batch(hashes, next=after + len(hashes))


def feed(store: Any, ranks: dict[bytes, int] | None = None) -> EventFeed:
    clock = iter(range(10_000)).__next__
    ranks = {OURS: 0} if ranks is None else ranks
    return EventFeed(EventTranslator(1, SIZE), lambda: store, lambda: ranks, clock=clock)


def hashes_of(events: Sequence[Any]) -> list[Any]:
    return [h for event in events for h in event.block_hashes]


def test_the_feed_reads_on_where_it_was() -> None:
    store = FakeStore([Batch([bytes([index]) * 32]) for index in range(3)])
    source = feed(store)
    source._learn({OURS: 0})
    source.fetch()
    store.log.append(Batch([b"z" * 32]))
    source.fetch()
    with source._lock:
        taken, source._ready = source._ready, []
    assert len(hashes_of(taken)) == 4 and store.asked == [0, 3]


def test_the_feed_works_beside_the_step() -> None:
    store = FakeStore([Batch([b"z" * 32])])
    source = feed(store)
    taken: list[Any] = []
    pause = threading.Event()
    for _ in range(500):
        taken += source.take()
        if taken:
            break
        pause.wait(0.01)
    source.close()
    assert hashes_of(taken) == [maybe_convert_block_hash(b"z" * 32)]
    assert source._thread is not None and not source._thread.is_alive()
    assert source.take() == []


def test_the_feed_asks_no_more_than_it_has_room_for() -> None:
    store = FakeStore([Batch([index.to_bytes(32, "big")]) for index in range(20_000)])
    source = feed(store)
    source._learn({OURS: 0})
    source.fetch()
    assert 8_192 <= len(source._ready) < 9_000
    source.fetch()
    assert len(source._ready) < 9_000


def test_a_store_that_fails_or_is_away_is_no_error() -> None:
    store = FakeStore()
    store.error = RuntimeError("gone")
    source = feed(store)
    for _ in range(5):
        assert source.take() == []
    source.close()
    nothing = feed(None)
    nothing.fetch()
    feed(object()).fetch()
    broken = EventFeed(EventTranslator(1, SIZE), lambda: None, lambda: 1 // 0)  # type: ignore[arg-type]
    assert broken.take() == []
    broken.forget()


def test_another_store_takes_back_what_the_first_held() -> None:
    stores: list[Any] = [FakeStore([Batch([b"a" * 32])]), FakeStore([Batch([b"b" * 32])])]
    source = EventFeed(EventTranslator(1, SIZE), lambda: stores[0], lambda: {OURS: 0})
    source._learn({OURS: 0})
    source.fetch()
    del stores[0]
    source.fetch()
    assert [type(event) for event in source._ready] == [BlockStored, BlockRemoved, BlockStored]
    assert source._ready[1].block_hashes == [maybe_convert_block_hash(b"a" * 32)]


def test_forgetting_takes_back_and_leaves_the_old_namespaces_out() -> None:
    store = FakeStore([Batch([b"a" * 32])])
    ranks = {OURS: 0}
    source = feed(store, ranks)
    source._learn(ranks)
    source.fetch()
    source.forget()
    assert [type(event) for event in source._ready] == [BlockStored, BlockRemoved]
    source._learn(ranks)
    store.log.append(Batch([b"b" * 32]))
    source.fetch()
    assert len(source._ready) == 2
