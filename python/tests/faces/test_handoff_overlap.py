"""Prompts that decode instances follow while they are computed: what is told to be good, and what is taken back."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM isn't installed")

from handoff_rig import DECODE, PREFILL, WANTED, Native, Request, scheduler, settings
from handoff_scheduler_rig import BLOCK, TOKENS, Rig

from kvstored import Busy, InvalidInput
from kvstored.vllm.handoff.measures import HANDOFF_MEASURES
from kvstored.vllm.handoff.metadata import HandoffReport, HandoffStep, OverlapStep, Pull
from kvstored.vllm.handoff.overlap import Overlap
from kvstored.vllm.handoff.parameters import transfer_name
from kvstored.vllm.handoff.worker import HandoffWorker
from kvstored.vllm.measures import Accumulator

FOLLOWED = WANTED | {"kvstored_transfer": "t1"}
"""What a proxy asks of a prefill instance whose computation is followed."""


@pytest.fixture(autouse=True)
def on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_HOST_IP", "127.0.0.1")


# --- in vLLM's own scheduler -----------------------------------------------------------------------------------------


class Producer:
    """A prefill instance that computes prompts in chunks of two blocks."""

    def __init__(self, model: Path, **extra: Any) -> None:
        self.rig = Rig(model, "kv_producer", step_tokens=2 * BLOCK, **{"overlap": True, **extra})
        self.steps = 0

    def add(self, params: dict[str, Any] = FOLLOWED, **options: Any) -> None:
        self.rig.add("a", params, **{"max_tokens": 1, **options})

    def step(self, **reported: Any) -> tuple[OverlapStep, HandoffStep, list[Any]]:
        output, metadata = self.rig.schedule()
        self.steps += 1
        reported = {"kv_connector_worker_meta": HandoffReport(self.steps), **reported}
        return metadata.overlap, metadata, self.rig.finish(output, **reported)


def test_blocks_are_good_layer_by_layer_and_step_by_step(tiny_model: Path) -> None:
    producer = Producer(tiny_model)
    free = producer.rig.free_blocks
    producer.add()
    first, _, _ = producer.step()
    (name,) = first.announced
    assert name.startswith("t1:")
    ids = first.extended[name]
    assert len(ids) == 2 and first.computing == {name: 2} and not first.settled
    second, _, outputs = producer.step()
    ids += second.extended[name]
    assert len(ids) == 4 and second.computing == {name: 4} and second.settled == {name: 2}
    assert not second.announced and not second.completed
    (answer,) = outputs
    params = answer.kv_transfer_params
    assert (params["remote_request_id"], params["kvstored_overlap"]) == (name, True)
    assert params["remote_block_ids"] == ids
    third, metadata, _ = producer.step(finished_sending={"a"})
    assert third.completed == {"a": name} and metadata.holds == {"a": ids}
    assert not third.withdrawn and producer.rig.free_blocks == free


def test_a_prompt_that_is_aborted_is_taken_back(tiny_model: Path) -> None:
    producer = Producer(tiny_model)
    free = producer.rig.free_blocks
    producer.add()
    first, _, _ = producer.step()
    producer.rig.abort("a")
    assert producer.rig.free_blocks == free
    producer.rig.add("b", WANTED)
    second, metadata, _ = producer.step()
    assert second.withdrawn == first.announced and not metadata.holds
    assert not second.computing


def test_one_that_never_ran_is_taken_back(tiny_model: Path) -> None:
    producer = Producer(tiny_model)
    producer.add()
    producer.rig.abort("a")
    step, _, _ = producer.step()
    assert step.withdrawn == step.announced


def test_one_that_is_preempted_is_taken_back_before_its_blocks_are_overwritten(tiny_model: Path) -> None:
    producer = Producer(tiny_model)
    producer.add()
    first, _, _ = producer.step()
    assert producer.rig.scheduler.reset_prefix_cache(reset_running_requests=True)
    second, _, _ = producer.step()
    assert second.withdrawn == first.announced
    assert not second.extended and not second.computing and not second.announced
    outputs: list[Any] = []
    for _ in range(4):
        step, _, more = producer.step()
        outputs += more
        assert not step.computing and not step.settled
    assert outputs[0].kv_transfer_params is None, "who followed it computes it"
    assert not producer.step()[1].holds


@pytest.mark.parametrize(
    ("params", "options", "extra"),
    [
        (WANTED, {}, {}),
        (FOLLOWED, {"max_tokens": 2}, {}),
        (FOLLOWED, {}, {"overlap": False}),
        (FOLLOWED | {"kvstored_transfer": 5}, {}, {}),
        (FOLLOWED | {"kvstored_transfer": "t" * 200}, {}, {}),
    ],
)
def test_others_are_kept_as_ever(
    tiny_model: Path, params: dict[str, Any], options: dict[str, Any], extra: dict[str, Any]
) -> None:
    producer = Producer(tiny_model, **extra)
    producer.add(params, **options)
    outputs: list[Any] = []
    for _ in range(3):
        step, _, more = producer.step()
        outputs += [one for one in more if one.kv_transfer_params]
        assert not step
        if outputs:
            break
    assert outputs[0].kv_transfer_params["remote_request_id"] == "a"
    assert ("kvstored_overlap" in outputs[0].kv_transfer_params) == extra.get("overlap", True)
    assert "a" in producer.step(finished_sending={"a"})[1].holds


# --- what a step's loads mean ----------------------------------------------------------------------------------------


def planned(scheduled: dict[str, tuple[int, int, list[int]]], *, new: bool = False, loads: bool = False) -> Any:
    """vLLM's plan of a step: by request, tokens computed before, tokens of the step, and new blocks."""
    names = list(scheduled)
    data = SimpleNamespace
    fresh = [
        data(req_id=name, num_computed_tokens=scheduled[name][0], block_ids=(scheduled[name][2],)) for name in names
    ]
    cached = data(
        req_ids=[] if new else names,
        num_computed_tokens=[scheduled[name][0] for name in names],
        new_block_ids=[(scheduled[name][2],) if scheduled[name][2] else None for name in names],
    )
    return data(
        has_sync_kv_loads=loads,
        preempted_req_ids=set(),
        scheduled_new_reqs=fresh if new else [],
        scheduled_cached_reqs=cached,
        num_scheduled_tokens={name: scheduled[name][1] for name in names},
    )


def reported(step: int, invalid: set[int] | None = None) -> Any:
    return SimpleNamespace(kv_connector_worker_meta=HandoffReport(step), invalid_block_ids=invalid)


def test_nothing_is_good_while_a_load_inside_a_step_may_have_failed() -> None:
    overlap = Overlap(4)
    overlap.announce(Request("a", 16), "n")
    first = overlap.take_step(planned({"a": (4, 4, [1, 2])}, new=True, loads=True))
    assert first.extended == {"n": [1, 2]} and not first.computing
    # planned before anybody knows
    second = overlap.take_step(planned({"a": (8, 4, [3])}))
    assert second.extended == {"n": [3]} and not second.computing and not second.settled
    overlap.worker_output(reported(1))
    third = overlap.take_step(planned({"a": (12, 4, [4])}))
    assert third.settled == {"n": 2} and third.computing == {"n": 4}
    overlap.worker_output(reported(3))
    assert overlap.take_step(planned({})).settled == {"n": 4}
    assert overlap.name("a") == "n"
    overlap.complete("a")
    assert overlap.take_step(planned({})).completed == {"a": "n"}


def test_what_a_failed_load_may_have_spoilt_is_taken_back() -> None:
    overlap = Overlap(4)
    for name in ("a", "b"):
        overlap.announce(Request(name, 16), f"n-{name}")
    overlap.take_step(planned({"a": (4, 4, [1, 2]), "b": (0, 8, [5, 6])}, new=True, loads=True))
    overlap.worker_output(reported(1, {1}))
    step = overlap.take_step(planned({"a": (0, 8, []), "b": (8, 8, [7, 8])}))
    assert step.withdrawn == ["n-a"]
    assert step.settled == {"n-b": 2} and step.computing == {"n-b": 4}
    assert overlap.was_withdrawn("a") and not overlap.was_withdrawn("a")


def test_blocks_found_in_the_cache_are_good_with_the_step() -> None:
    overlap = Overlap(4)
    overlap.announce(Request("a", 10), "n")
    step = overlap.take_step(planned({"a": (8, 2, [1, 2, 3, 9])}, new=True))
    # the last is for tokens to come
    assert step.extended == {"n": [1, 2, 3]} and step.computing == {"n": 3} and not step.settled


def test_a_fault_takes_everything_back(caplog: pytest.LogCaptureFixture) -> None:
    side, _ = scheduler(PREFILL, "kv_producer", overlap=True)
    request = Request("a", 10, dict(FOLLOWED))
    side.on_new_request(request)
    with caplog.at_level(logging.ERROR, "vllm.kvstored"):
        step = side.take_step(SimpleNamespace())
    assert step.overlap.withdrawn == [transfer_name(FOLLOWED, request)]
    assert "aren't followed any more" in caplog.text
    assert side.finished(request.end(), [1, 2, 3])[0], "kept as ever"


# --- the decode instance ---------------------------------------------------------------------------------------------


def followed(**more: Any) -> dict[str, Any]:
    """What a proxy tells a decode instance."""
    params = {"do_remote_prefill": True, "remote_engine_id": "prefill-engine", "remote_host": "10.0.0.1"}
    return params | {"remote_port": 20_001, "remote_block_size": 4, "kvstored_transfer": "t1", **more}


def test_a_decode_instance_follows_the_same_prompt_only() -> None:
    side, _ = scheduler(DECODE, "kv_consumer")
    request = Request("b", 10, followed())
    side.on_new_request(request)
    assert side.matched_tokens(request, 0) == (10, True)
    assert side.allocated(request, [1, 2, 3, 9], 10)
    source = side.take_step().pulls["b"].source
    assert source.follows and source.request_id == transfer_name(FOLLOWED, Request("a", 10))
    assert source.request_id != transfer_name(FOLLOWED, Request("a", 11))
    assert transfer_name(WANTED, request) is None
    unknown = Request("c", 10)
    unknown.prompt_token_ids = None
    assert transfer_name(FOLLOWED, unknown) is None
    with pytest.raises(InvalidInput, match="kvstored_transfer"):
        transfer_name({"kvstored_transfer": ""}, request)


# --- the workers -----------------------------------------------------------------------------------------------------


class Workers:
    def __init__(self, **more: Any) -> None:
        self.native = Native()
        self.statistics = Accumulator(HANDOFF_MEASURES)
        chosen = settings(**{"overlap": True, **more})
        self.worker = HandoffWorker(self.native, chosen, self.statistics, ["zero", "one"])

    def prepare(self, **what: Any) -> None:
        self.worker.prepare(HandoffStep(overlap=OverlapStep(**what)))

    def calls(self) -> list[tuple[str, Any]]:
        calls, self.native.calls = self.native.calls, []
        return calls


def test_a_worker_tells_what_is_good() -> None:
    workers = Workers()
    workers.prepare(number=4, announced=["n"], extended={"n": [1, 2]}, computing={"n": 2}, settled={"m": 3})
    assert workers.calls() == [
        ("announce", ("n", 120.0)),
        ("extend", ("n", [1, 2])),
        ("advance", ([("m", 3)], None)),
    ]
    workers.worker.layer_done("one")
    workers.worker.layer_done("of a draft model")
    assert workers.calls() == [("advance", ([("n", 2)], 1))]
    assert workers.worker.report() == HandoffReport(4)
    workers.prepare(number=5)
    workers.worker.layer_done("one")
    assert workers.calls() == []
    workers.worker.begin(HandoffStep(holds={"a": [1, 2]}, overlap=OverlapStep(completed={"a": "n"})))
    assert workers.calls() == [("complete", ("n", 120.0))]
    workers.native.released = [("n", "taken")]
    assert workers.worker.finished() == ({"a"}, set())
    assert workers.statistics.take() == {"released": {"taken": 1}}


def test_one_that_was_taken_before_its_end_is_free_at_once() -> None:
    workers = Workers()
    workers.prepare(announced=["n"])
    workers.native.released = [("n", "taken")]
    assert workers.worker.finished() == (set(), set()), "its request still runs"
    workers.worker.begin(HandoffStep(holds={"a": [1, 2]}, overlap=OverlapStep(completed={"a": "n"})))
    assert workers.worker.finished() == ({"a"}, set())


def test_one_that_could_not_be_announced_is_free_at_once() -> None:
    workers = Workers()
    workers.native.fails = Busy("full")
    workers.prepare(announced=["n"])
    workers.native.fails = None
    workers.worker.begin(HandoffStep(holds={"a": [1, 2]}, overlap=OverlapStep(completed={"a": "n"})))
    assert workers.worker.finished() == ({"a"}, set())


def test_blocks_are_taken_back_before_anything_else() -> None:
    workers = Workers()
    workers.prepare(announced=["n"])
    workers.calls()
    workers.prepare(withdrawn=["n"], announced=["m"])
    assert [call for call, _ in workers.calls()] == ["withdraw", "announce"]
    workers.native.released = [("n", "dropped")]
    assert workers.worker.finished() == (set(), set())


def test_a_pull_that_follows_has_as_long_as_a_lease() -> None:
    workers = Workers(lease_seconds=90.0)
    side, _ = scheduler(DECODE, "kv_consumer")
    request = Request("b", 10, followed())
    side.matched_tokens(request, 0)
    side.allocated(request, [1, 2, 3], 10)
    pull: Pull = side.take_step().pulls["b"]
    workers.worker.begin(HandoffStep(pulls={"b": pull}))
    ((call, (_, named)),) = workers.calls()
    assert call == "pull" and named["follows"] and named["timeout"] == 90.0
    workers.native.moved |= {"pulled_bytes_shm": 100, "overlapped_bytes": 60}
    workers.native.pulled = [("b", [], "")]
    assert workers.worker.finished() == (set(), {"b"})
    counted = workers.statistics.take()
    assert counted is not None and counted["overlapped_bytes"] == {"": 60}


def test_without_the_setting_nothing_is_told() -> None:
    workers = Workers(overlap=False)
    workers.prepare(announced=["n"], computing={"n": 2})
    workers.worker.layer_done("one")
    assert workers.calls() == [] and workers.worker.report() is None
    assert TOKENS > 2 * BLOCK, "of two chunks"
