"""The scheduler's side inside vLLM's own scheduler, with workers whose reports the test writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM isn't installed")

from handoff_rig import PREFILL, WANTED
from handoff_scheduler_rig import BLOCK, TOKENS, Rig

from kvstored.vllm.handoff.metadata import HandoffStep


@pytest.fixture(autouse=True)
def on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_HOST_IP", "127.0.0.1")


def offer() -> dict[str, Any]:
    """What a prefill instance says of the prompt that `add` makes."""
    return {
        "do_remote_prefill": True,
        "remote_engine_id": PREFILL.engine_id,
        "remote_request_id": "first",
        "remote_host": PREFILL.host,
        "remote_port": PREFILL.base_port,
        "remote_block_size": BLOCK,
        "num_prompt_blocks": 4,
    }


def test_a_prefill_instance_steps_until_its_blocks_are_free(tiny_model: Path) -> None:
    rig = Rig(tiny_model, "kv_producer")
    all_free = rig.free_blocks
    rig.add("a", WANTED, max_tokens=1)
    (answer,) = rig.finish(rig.schedule()[0])
    params = answer.kv_transfer_params
    assert (params["remote_request_id"], params["num_prompt_blocks"], params["last_token_id"]) == ("a", 4, 9)
    for _ in range(3):
        assert rig.scheduler.has_requests()
        assert not rig.scheduler.has_unfinished_requests()
        assert rig.free_blocks == all_free - 4
        output, step = rig.schedule()
        assert step.holds in ({}, {"a": params["remote_block_ids"]})
        rig.finish(output)
    rig.finish(rig.schedule()[0], finished_sending={"a"})
    assert rig.free_blocks == all_free
    rig.finish(rig.schedule()[0])
    assert not rig.scheduler.has_requests()


def test_an_aborted_prefill_keeps_nothing(tiny_model: Path) -> None:
    rig = Rig(tiny_model, "kv_producer")
    all_free = rig.free_blocks
    rig.add("a", WANTED, max_tokens=1)
    output, _ = rig.schedule()
    rig.abort("a")
    rig.finish(output)
    assert rig.free_blocks == all_free
    assert rig.schedule()[1] == HandoffStep()


def test_a_decode_instance_computes_one_token_of_what_it_fetched(tiny_model: Path) -> None:
    rig = Rig(tiny_model, "kv_consumer")
    rig.add("b", offer())
    output, step = rig.schedule()
    assert (output.total_num_scheduled_tokens, len(step.pulls["b"].block_ids)) == (0, 4)
    rig.finish(output)
    output, step = rig.schedule()
    assert (output.total_num_scheduled_tokens, step) == (0, HandoffStep())
    rig.finish(output, finished_recving={"b"})
    output, step = rig.schedule()
    assert (output.num_scheduled_tokens, step) == ({"b": 1}, HandoffStep())
    (answer,) = rig.finish(output)
    assert answer.new_token_ids == [9]


@pytest.mark.parametrize("first_failed", [0, 1, 3])
def test_blocks_that_did_not_come_are_computed(tiny_model: Path, first_failed: int) -> None:
    rig = Rig(tiny_model, "kv_consumer")
    rig.add("b", offer())
    output, step = rig.schedule()
    failed = set(step.pulls["b"].block_ids[first_failed:])
    rig.finish(output, finished_recving={"b"}, invalid_block_ids=failed)
    output, step = rig.schedule()
    # not fetched a second time
    assert (output.num_scheduled_tokens, step) == ({"b": TOKENS - first_failed * BLOCK}, HandoffStep())
    (answer,) = rig.finish(output)
    assert answer.new_token_ids == [9], "not failed, though the policy was vLLM's default"


def test_what_one_rank_reports_early_is_kept_in_mind(tiny_model: Path) -> None:
    rig = Rig(tiny_model, "kv_consumer")
    rig.add("b", offer())
    output, step = rig.schedule()
    # one rank failed, the other goes on
    rig.finish(output, invalid_block_ids=set(step.pulls["b"].block_ids))
    output, _ = rig.schedule()
    assert output.total_num_scheduled_tokens == 0
    rig.finish(output, finished_recving={"b"})
    assert rig.schedule()[0].num_scheduled_tokens == {"b": TOKENS}


def test_an_aborted_pull_keeps_its_blocks_until_it_has_ended(tiny_model: Path) -> None:
    rig = Rig(tiny_model, "kv_consumer")
    all_free = rig.free_blocks
    rig.add("b", offer())
    output, _ = rig.schedule()
    rig.abort("b")
    rig.finish(output)
    assert rig.scheduler.has_requests()
    output, step = rig.schedule()
    assert step == HandoffStep(cancelled={"b"})
    assert rig.free_blocks == all_free - 4
    rig.finish(output, finished_recving={"b"})
    assert rig.free_blocks == all_free
    rig.finish(rig.schedule()[0])
    assert not rig.scheduler.has_requests()


def test_an_abort_that_meets_the_end_of_the_pull(tiny_model: Path) -> None:
    rig = Rig(tiny_model, "kv_consumer")
    all_free = rig.free_blocks
    rig.add("b", offer())
    output, _ = rig.schedule()
    # the workers have reported it already when the abort is processed
    rig.abort("b")
    rig.finish(output, finished_recving={"b"})
    assert rig.free_blocks == all_free
    rig.finish(rig.schedule()[0])
    assert not rig.scheduler.has_requests()


def test_a_request_that_ends_in_the_queue_gives_the_blocks_back(tiny_model: Path) -> None:
    rig = Rig(tiny_model, "kv_consumer")
    rig.add("b", offer())
    rig.abort("b")
    assert rig.scheduler.has_requests(), "there is a step that tells the workers"
    _, step = rig.schedule()
    assert [source.request_id for source in step.given_back] == ["first"]


def test_what_is_in_the_prefix_cache_is_not_fetched(tiny_model: Path) -> None:
    rig = Rig(tiny_model, "kv_consumer", prefix_caching=True)
    rig.add("b", offer())
    rig.finish(rig.schedule()[0], finished_recving={"b"})
    rig.finish(rig.schedule()[0])
    rig.add("c", offer())
    output, step = rig.schedule()
    pull = step.pulls["c"]
    assert (pull.first_block, len(pull.block_ids)) == (3, 1)
    rig.finish(output, finished_recving={"c"})
    assert rig.schedule()[0].num_scheduled_tokens["c"] == 1

    # whole blocks and one token: nothing is left to fetch
    rig.add("d", offer() | {"num_prompt_blocks": 4}, tokens=3 * BLOCK + 1)
    output, step = rig.schedule()
    assert output.num_scheduled_tokens["d"] == 1
    assert not step.pulls
    assert len(step.given_back) == 1


def test_an_abandoned_request_is_computed_and_gives_the_blocks_back(tiny_model: Path) -> None:
    rig = Rig(tiny_model, "kv_consumer")
    rig.add("b", offer() | {"kvstored_abandon": True}, tokens=1, max_tokens=1)
    output, step = rig.schedule()
    assert (output.num_scheduled_tokens, step.pulls, len(step.given_back)) == ({"b": 1}, {}, 1)
    rig.finish(output)
    rig.finish(rig.schedule()[0])
    assert not rig.scheduler.has_requests()
