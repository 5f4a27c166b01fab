"""Which blocks are kept for whom, and which are fetched, against a scheduler made of plain objects."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

pytest.importorskip("vllm")

from handoff_rig import BLOCK, DECODE, PREFILL, WANTED, Request, offered, reported, scheduler

from kvstored.vllm.handoff.metadata import HandoffStep


def test_a_prefill_instance_keeps_a_prompts_blocks_until_the_workers_say_so() -> None:
    side, counted = scheduler(PREFILL, "kv_producer")
    request = Request("a", 10, dict(WANTED)).end()
    kept, params = side.finished(request, [4, 5, 6])
    assert kept
    assert params is not None
    assert params | {"kvstored_prompt": "…"} == {
        "do_remote_decode": False,
        "do_remote_prefill": True,
        "remote_engine_id": "prefill-engine",
        "remote_request_id": "a",
        "remote_host": "10.0.0.1",
        "remote_port": 20_001,
        "remote_ptp_size": 2,
        "remote_pp_size": 1,
        "remote_block_ids": [4, 5, 6],
        "remote_block_size": BLOCK,
        "num_prompt_blocks": 3,
        "last_token_id": 7,
        "kvstored_prompt": "…",
    }
    json.dumps(params)
    assert side.take_step() == HandoffStep(holds={"a": [4, 5, 6]})
    assert side.take_step() == HandoffStep()
    assert counted.take() == {"offered": {"": 1}, "held_requests": {"": 1}, "held_blocks": {"": 3}}
    side.worker_output(reported(sent={"a", "of another connector"}))
    assert counted.take() == {"held_requests": {"": 0}, "held_blocks": {"": 0}}


def test_only_the_prompts_blocks_are_kept() -> None:
    side, _ = scheduler(PREFILL)
    kept, params = side.finished(Request("a", 2 * BLOCK, dict(WANTED)).end("FINISHED_STOPPED"), [4, 5, 6])
    assert kept and params is not None and params["remote_block_ids"] == [4, 5]


@pytest.mark.parametrize("status", ["FINISHED_ABORTED", "FINISHED_ERROR", "FINISHED_IGNORED"])
def test_what_failed_is_freed_at_once(status: str) -> None:
    side, _ = scheduler(PREFILL)
    assert side.finished(Request("a", 10, dict(WANTED)).end(status), [4, 5, 6]) == (False, None)
    assert side.take_step() == HandoffStep()


@pytest.mark.parametrize("params", [None, {}, {"do_remote_decode": False}])
def test_ordinary_requests_are_left_alone(params: dict[str, Any] | None) -> None:
    side, _ = scheduler(PREFILL)
    request = Request("a", 10, params)
    side.on_new_request(request)
    assert side.matched_tokens(request, 0) == (0, False)
    assert side.allocated(request, [4, 5, 6], 0)
    assert side.finished(request.end(), [4, 5, 6]) == (False, None)
    assert side.take_step() == HandoffStep()


def test_a_prompt_without_blocks_is_not_offered(caplog: pytest.LogCaptureFixture) -> None:
    side, _ = scheduler(PREFILL)
    with caplog.at_level(logging.WARNING, "vllm.kvstored"):
        assert side.finished(Request("a", 10, dict(WANTED)).end(), []) == (False, None)
    assert "a prompt of 3 blocks ended with 0" in caplog.text


def test_a_name_that_is_too_long_is_not_offered(caplog: pytest.LogCaptureFixture) -> None:
    side, _ = scheduler(PREFILL)
    with caplog.at_level(logging.WARNING, "vllm.kvstored"):
        assert side.finished(Request("a" * 300, 10, dict(WANTED)).end(), [4, 5, 6]) == (False, None)
    assert "too long a name" in caplog.text


def test_a_decode_instance_fetches_the_whole_prompt() -> None:
    side, _ = scheduler(DECODE, "kv_consumer")
    request = Request("b", 10, offered(10))
    side.on_new_request(request)
    assert side.matched_tokens(request, 0) == (10, True)
    assert side.matched_tokens(request, 0) == (10, True), "asked again where there was no room"
    # the last of the blocks is for tokens to come
    assert side.allocated(request, [1, 2, 3, 9], 10)
    pull = side.take_step().pulls["b"]
    assert (pull.block_ids, pull.first_block) == ([1, 2, 3], 0)
    assert (pull.source.engine_id, pull.source.request_id) == ("prefill-engine", "first")
    assert pull.source.addresses == ("10.0.0.1:20001", "10.0.0.1:20002")
    # told a second time when it runs, and asked again when it was preempted
    side.worker_output(reported(received={"b"}))
    assert side.allocated(request, [1, 2, 3, 9], 0)
    assert side.matched_tokens(request, 0) == (0, False)
    assert side.finished(request.end(), [1, 2, 3]) == (False, None)
    assert side.take_step() == HandoffStep()


def test_what_is_cached_here_is_not_fetched() -> None:
    side, _ = scheduler(DECODE)
    request = Request("b", 10, offered(10))
    assert side.matched_tokens(request, BLOCK) == (6, True)
    assert side.allocated(request, [7, 1, 2], 6)
    pull = side.take_step().pulls["b"]
    assert (pull.block_ids, pull.first_block) == ([1, 2], 1)


def test_all_of_it_cached_gives_it_back() -> None:
    side, counted = scheduler(DECODE)
    request = Request("b", 2 * BLOCK + 1, offered(2 * BLOCK + 1))
    assert side.matched_tokens(request, 2 * BLOCK) == (0, False)
    assert side.take_step() == HandoffStep(), "nothing is settled before the request runs"
    assert side.allocated(request, [1, 2, 3], 0)
    assert [source.request_id for source in side.take_step().given_back] == ["first"]
    assert counted.take() == {"declined": {"cached": 1}}
    assert side.finished(request.end(), []) == (False, None)
    assert side.take_step() == HandoffStep(), "given back once"


def test_an_aborted_pull_is_cancelled() -> None:
    side, _ = scheduler(DECODE)
    request = Request("b", 10, offered(10))
    side.matched_tokens(request, 0)
    side.allocated(request, [1, 2, 3], 10)
    side.take_step()
    assert side.finished(request.end("FINISHED_ABORTED"), [1, 2, 3]) == (False, None)
    assert side.take_step() == HandoffStep(cancelled={"b"})
    side.worker_output(reported(received={"b"}))
    assert side.take_step() == HandoffStep()


def test_an_abort_before_the_pull_gives_it_back() -> None:
    side, counted = scheduler(DECODE)
    request = Request("b", 10, offered(10))
    side.on_new_request(request)
    side.finished(request.end("FINISHED_ABORTED"), [])
    step = side.take_step()
    assert ([source.request_id for source in step.given_back], step.cancelled) == (["first"], set())
    assert counted.take() == {"declined": {"gone": 1}}


def test_a_request_that_vllm_refused_gives_it_back() -> None:
    side, _ = scheduler(DECODE)
    # vLLM tells by a request that has ended already and has another prompt
    side.finished(Request("b", 1, offered(10)).end("FINISHED_ABORTED"), [])
    assert [source.request_id for source in side.take_step().given_back] == ["first"]


def test_an_abandoned_request_fetches_nothing() -> None:
    side, counted = scheduler(DECODE)
    request = Request("b", 1, offered(10) | {"kvstored_abandon": True})
    side.on_new_request(request)
    assert side.matched_tokens(request, 0) == (0, False)
    side.allocated(request, [1], 0)
    side.finished(request.end(), [1])
    assert [source.request_id for source in side.take_step().given_back] == ["first"]
    assert counted.take() == {"declined": {"gone": 1}}


def test_what_failed_is_computed() -> None:
    side, _ = scheduler(DECODE)
    request = Request("b", 10, offered(10))
    side.matched_tokens(request, 0)
    side.allocated(request, [1, 2, 3], 10)
    side.worker_output(reported(received={"b"}))
    # vLLM starts over
    assert side.matched_tokens(request, 0) == (0, False)
    assert side.allocated(request, [4, 5, 6], 0)
    side.finished(request.end(), [4, 5, 6])
    step = side.take_step()
    assert (step.given_back, step.cancelled) == ([], set())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"remote_block_size": 8}, "remote_block_size is 8, but this request's is 4"),
        ({"num_prompt_blocks": 2}, "num_prompt_blocks is 2, but this request's is 3"),
        ({"remote_block_ids": [1]}, "remote_block_ids is 1"),
        ({"kvstored_prompt": "0" * 32}, "kvstored_prompt is"),
    ],
)
def test_another_prompts_blocks_are_given_back(
    change: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    side, counted = scheduler(DECODE)
    with caplog.at_level(logging.WARNING, "vllm.kvstored"):
        for name in "bcd":
            request = Request(name, 10, offered(10) | change)
            side.on_new_request(request)
            assert side.matched_tokens(request, 0) == (0, False)
    assert caplog.text.count(words) == 1, "said once"
    assert len(side.take_step().given_back) == 3
    assert counted.take() == {"declined": {"unfit": 3}}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("remote_engine_id", None),
        ("remote_engine_id", 3),
        ("remote_request_id", ""),
        ("remote_request_id", "x" * 257),
        ("remote_host", None),
        ("remote_host", "some where"),
        ("remote_port", None),
        ("remote_port", 0),
        ("remote_port", 65_535),
        ("remote_port", True),
        ("remote_ptp_size", 1 << 40),
        ("remote_pp_size", -1),
    ],
)
def test_parameters_that_are_none_are_computed(field: str, value: object, caplog: pytest.LogCaptureFixture) -> None:
    side, counted = scheduler(DECODE)
    request = Request("b", 10, offered(10) | {field: value})
    with caplog.at_level(logging.WARNING, "vllm.kvstored"):
        side.on_new_request(request)
    assert side.matched_tokens(request, 0) == (0, False)
    assert side.allocated(request, [1, 2, 3], 0)
    assert side.take_step() == HandoffStep()
    assert "the prompt is computed" in caplog.text
    assert counted.take() == {"declined": {"unfit": 1}}


def test_what_is_not_told_is_not_held_against_it() -> None:
    side, _ = scheduler(DECODE)
    short = ("remote_engine_id", "remote_request_id", "remote_host", "remote_port", "do_remote_prefill")
    params = {name: value for name, value in offered(10).items() if name in short}
    params["remote_port"] = "20001"
    request = Request("b", 10, params)
    assert side.matched_tokens(request, 0) == (10, True)
    side.allocated(request, [1, 2, 3], 10)
    assert side.take_step().pulls["b"].source.addresses == ("10.0.0.1:20001",)


def test_roles_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "vllm.kvstored"):
        producer, _ = scheduler(PREFILL, "kv_producer")
        request = Request("b", 10, offered(10))
        assert producer.matched_tokens(request, 0) == (0, False)
        consumer, _ = scheduler(DECODE, "kv_consumer")
        assert consumer.finished(Request("a", 10, dict(WANTED)).end(), [4, 5, 6]) == (False, None)
    assert "kv_role is kv_producer" in caplog.text
    assert "kv_role is kv_consumer" in caplog.text


def test_blocks_that_nobody_fills_are_told_to_the_workers() -> None:
    side, _ = scheduler(DECODE)
    request = Request("b", 10)
    assert not side.allocated(request, [1, 2, 3], 10), "never asked"
    side.not_fetched("b", [1, 2, 3])
    assert side.take_step() == HandoffStep(lost={"b": [1, 2, 3]})
