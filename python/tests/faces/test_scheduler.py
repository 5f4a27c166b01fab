"""The scheduler's side against a scheduler made of plain objects."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("vllm")

from kvstored.vllm.configuration import ConnectorSettings
from kvstored.vllm.governor import Governor, GovernorSettings
from kvstored.vllm.measures import Accumulator
from kvstored.vllm.metadata import StepMetadata, WorkerReport
from kvstored.vllm.scheduler import SchedulerSide

BLOCK = 4


class Namespaces:
    """A store that has the blocks of a set."""

    block_bytes = 4096
    tier_names = ("Cache", "Posix")

    def __init__(self) -> None:
        self.present: set[bytes] = set()
        self.variants: list[object] = []

    def locate(self, variant: object, hashes: list[bytes]) -> np.ndarray:
        self.variants.append(variant)
        count = next((i for i, block in enumerate(hashes) if block not in self.present), len(hashes))
        return np.zeros(count, dtype=np.uint8)

    def failed(self, error: Exception) -> None:
        raise AssertionError(error)


class Request:
    def __init__(self, name: str, tokens: int, *, per_block: int = 1) -> None:
        self.request_id = name
        self.num_tokens = tokens
        self.num_computed_tokens = 0
        self.lora_request = None
        self.cache_salt = None
        self.status = SimpleNamespace(name="RUNNING")
        self.per_block = per_block

    @property
    def block_hashes(self) -> list[bytes]:
        return [bytes([i % 256]) * 32 for i in range(self.num_tokens // (BLOCK // self.per_block))]

    def end(self, status: str) -> Request:
        self.status = SimpleNamespace(name=status)
        return self


class Rig:
    def __init__(self, *, per_block: int = 1, **settings: object) -> None:
        self.namespaces = Namespaces()
        self.side = SchedulerSide(
            ConnectorSettings(**settings),
            self.namespaces,
            Governor(GovernorSettings(enabled=False)),
            Accumulator(),
            block_tokens=BLOCK,
            hashes_per_block=per_block,
            loads=True,
            dumps=True,
        )

    def step(self, new=(), cached=(), preempted=(), resumed=()) -> StepMetadata:
        """Steps with (request, computed, scheduled, block ids) each."""
        output = SimpleNamespace(
            scheduled_new_reqs=[
                SimpleNamespace(req_id=r.request_id, num_computed_tokens=done, block_ids=(ids,))
                for r, done, _, ids in new
            ],
            scheduled_cached_reqs=SimpleNamespace(
                req_ids=[r.request_id for r, *_ in cached],
                resumed_req_ids={r.request_id for r in resumed},
                new_block_ids=[(ids,) if ids else None for *_, ids in cached],
                num_computed_tokens=[done for _, done, _, _ in cached],
            ),
            num_scheduled_tokens={r.request_id: count for r, _, count, _ in (*new, *cached)},
            total_num_scheduled_tokens=sum(count for _, _, count, _ in (*new, *cached)),
            preempted_req_ids={r.request_id for r in preempted},
        )
        metadata = self.side.begin_step(output)
        self.side.plan_dumps(output, metadata)
        for request, done, count, _ in (*new, *cached):
            request.num_computed_tokens = done + count
        return metadata

    def report(self, metadata: StepMetadata, *, dumped: bool = True, invalid=(), failed=()) -> None:
        through = metadata.step if dumped else metadata.step - 1
        report = WorkerReport(metadata.step, through, failed_requests=set(failed))
        self.side.worker_output(SimpleNamespace(kv_connector_worker_meta=report, invalid_block_ids=set(invalid)))


def blocks(metadata: StepMetadata) -> list[tuple[str, list[int]]]:
    return [(run.request_id, run.block_ids) for run in metadata.dumps]


def test_a_chunked_prompt_is_dumped_block_by_block() -> None:
    rig, request = Rig(), Request("a", 11)
    rig.side.on_new_request(request)
    assert rig.side.matched_tokens(request, 0) == (0, False)
    first = rig.step(new=[(request, 0, 6, [7, 8])])
    assert blocks(first) == [("a", [7])]
    assert first.dumps[0].parent is None
    second = rig.step(cached=[(request, 6, 5, [9])])
    assert blocks(second) == [("a", [8])]
    assert second.dumps[0].parent == request.block_hashes[0]
    assert not second.dumps[0].computed_before


def test_generated_blocks_are_dumped_when_their_tokens_are_known() -> None:
    rig, request = Rig(), Request("a", 7)
    rig.side.on_new_request(request)
    assert blocks(rig.step(new=[(request, 0, 7, [1, 2])])) == [("a", [1])]
    # the step that computes the eighth token is planned before it's known: no hash, no dump
    assert blocks(rig.step(cached=[(request, 7, 1, [])])) == []
    request.num_tokens = 9
    assert blocks(rig.step(cached=[(request, 8, 1, [3])])) == [("a", [2])]


def test_a_hit_leaves_one_token_to_compute() -> None:
    rig, request = Rig(), Request("a", 8)
    rig.namespaces.present = set(request.block_hashes)
    assert rig.side.matched_tokens(request, 0) == (4, True)
    assert rig.side.matched_tokens(request, 4) == (0, False)


def test_a_whole_hit_is_loaded_and_not_dumped_again() -> None:
    rig, request = Rig(), Request("a", 13)
    rig.namespaces.present = set(request.block_hashes)
    assert rig.side.matched_tokens(request, 0) == (12, True)
    assert rig.side.allocated(request, [4, 5, 6], 12)
    first = rig.step()
    assert [(run.block_ids, run.asynchronous) for run in first.loads] == [([4, 5, 6], True)]
    assert first.loads[0].hashes == request.block_hashes[:3]
    assert blocks(rig.step(new=[(request, 12, 1, [4, 5, 6, 7])])) == []


def test_nothing_is_dumped_while_a_load_inside_a_step_may_have_failed() -> None:
    rig = Rig(load_async=False)
    hit, other = Request("hit", 21), Request("other", 4)
    rig.namespaces.present = set(hit.block_hashes[:3])
    assert rig.side.matched_tokens(hit, 0) == (12, False)
    rig.side.allocated(hit, [1, 2, 3], 12)
    rig.side.on_new_request(other)
    first = rig.step(new=[(hit, 12, 6, [1, 2, 3, 4, 5]), (other, 0, 4, [9])])
    assert blocks(first) == []
    # the next step is planned before the first one's output is there
    second = rig.step(cached=[(hit, 18, 3, [6])])
    assert blocks(second) == []
    rig.report(first)
    third = rig.step(cached=[(other, 4, 1, [10])])
    assert blocks(third) == [("other", [9])]
    assert third.dumps[0].computed_before
    assert blocks(rig.step(cached=[(hit, 21, 1, [])])) == [("hit", [4, 5])]


def test_what_was_computed_behind_a_failed_load_is_dumped_only_when_computed_anew() -> None:
    rig = Rig(load_async=False)
    request = Request("a", 21)
    rig.namespaces.present = set(request.block_hashes[:3])
    rig.side.matched_tokens(request, 0)
    rig.side.allocated(request, [1, 2, 3], 12)
    first = rig.step(new=[(request, 12, 9, [1, 2, 3, 4, 5, 6])])
    second = rig.step(cached=[(request, 21, 1, [])])
    rig.report(first, invalid=[2], failed=["a"])
    assert blocks(second) == []
    # the engine falls back to the first block; the second step's output is void
    third = rig.step(cached=[(request, 4, 9, [])])
    assert blocks(third) == [("a", [2, 3])]
    assert blocks(rig.step(cached=[(request, 13, 8, [])])) == [("a", [4, 5])]
    assert rig.side.matched_tokens(request, 0) == (0, False), "what failed once is computed"


def test_blocks_stay_until_their_dumps_have_ended() -> None:
    rig, request = Rig(), Request("a", 9)
    rig.side.on_new_request(request)
    step = rig.step(new=[(request, 0, 9, [1, 2, 3])])
    assert blocks(step) == [("a", [1, 2])]
    assert rig.side.finished(request.end("FINISHED_STOPPED"))
    after = rig.step()
    assert after.retained == {"a"}
    assert rig.step().retained == set(), "said once"


def test_blocks_are_freed_at_once_when_all_ranks_have_dumped() -> None:
    rig, request = Rig(), Request("a", 9)
    rig.side.on_new_request(request)
    step = rig.step(new=[(request, 0, 9, [1, 2, 3])])
    rig.report(step)
    assert not rig.side.finished(request.end("FINISHED_STOPPED"))


def test_the_last_block_is_dumped_after_the_end() -> None:
    rig, request = Rig(), Request("a", 7)
    rig.side.on_new_request(request)
    rig.report(rig.step(new=[(request, 0, 7, [1, 2])]))
    rig.report(rig.step(cached=[(request, 7, 1, [])]))
    request.num_tokens = 9
    assert rig.side.finished(request.end("FINISHED_LENGTH_CAPPED"))
    after = rig.step()
    assert blocks(after) == [("a", [2])]
    assert after.retained == {"a"}
    assert after.dumps[0].computed_before


def test_a_request_that_ends_in_doubt_keeps_its_blocks_until_its_last_dump_is_known() -> None:
    rig = Rig(load_async=False)
    hit, request = Request("hit", 9), Request("a", 8)
    rig.side.on_new_request(request)
    rig.namespaces.present = set(hit.block_hashes[:1])
    rig.side.matched_tokens(hit, 0)
    rig.side.allocated(hit, [1], 4)
    first = rig.step(new=[(hit, 4, 4, [1, 2, 3]), (request, 0, 8, [7, 8])])
    assert rig.side.finished(request.end("FINISHED_STOPPED"))
    second = rig.step(cached=[(hit, 8, 1, [])])
    assert (blocks(second), second.retained) == ([], set())
    rig.report(first)
    third = rig.step()
    assert (blocks(third), third.retained) == ([("a", [7, 8])], {"a"})


@pytest.mark.parametrize("status", ["FINISHED_ABORTED", "FINISHED_ERROR"])
def test_a_request_that_failed_dumps_nothing_more(status: str) -> None:
    rig, request = Rig(), Request("a", 7)
    rig.side.on_new_request(request)
    rig.report(rig.step(new=[(request, 0, 7, [1, 2])]))
    request.num_tokens = 9
    request.num_computed_tokens = 8
    assert not rig.side.finished(request.end(status))
    assert blocks(rig.step()) == []


def test_a_preempted_request_starts_over_with_new_blocks() -> None:
    rig, request = Rig(), Request("a", 17)
    rig.side.on_new_request(request)
    assert blocks(rig.step(new=[(request, 0, 8, [1, 2, 3])])) == [("a", [1, 2])]
    assert rig.step(preempted=[request]).preempted == {"a"}
    resumed = rig.step(cached=[(request, 0, 12, [5, 6, 7])], resumed=[request])
    assert blocks(resumed) == [("a", [7])], "the first two are stored already"


def test_several_hashes_may_name_one_block() -> None:
    rig, request = Rig(per_block=2), Request("a", 9, per_block=2)
    rig.side.on_new_request(request)
    step = rig.step(new=[(request, 0, 9, [1, 2, 3])])
    assert step.dumps[0].hashes == [request.block_hashes[1], request.block_hashes[3]]


def test_a_reset_makes_earlier_blocks_another_variant() -> None:
    rig = Rig()
    before, after = Request("a", 9), Request("b", 9)
    rig.side.matched_tokens(before, 0)
    assert rig.side.forget_everything()
    rig.side.matched_tokens(after, 0)
    assert rig.namespaces.variants[0] != rig.namespaces.variants[1]


def test_blocks_that_cannot_be_loaded_are_told_to_the_workers() -> None:
    rig, request = Rig(), Request("a", 9)
    assert not rig.side.allocated(request, [1, 2], 8), "never looked up"
    rig.side.not_loaded("a", [1, 2])
    metadata = rig.step()
    assert [(run.hashes, run.block_ids) for run in metadata.loads] == [([], [1, 2])]
