"""What tests of the hand-off do inside an engine's process, by `InProcessEngine.run("handoff_probe:…")`."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from engine_probe import PATIENCE_S, scheduler_of, settle

WANTED = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
"""What the proxy asks of a prefill instance."""


def prefill(llm: Any, prompts: list[list[int]]) -> list[dict[str, Any]]:
    """Has prompts computed and kept; what the proxy would hand on, and the tokens that weren't computed."""
    outputs = _generate(llm, prompts, [WANTED] * len(prompts), max_tokens=1)
    # workers learn of the last of them in a step, which a server makes by itself
    llm.llm_engine.step()
    return [{"params": output.kv_transfer_params, "cached": output.num_cached_tokens} for output in outputs]


def decode(llm: Any, prompts: list[list[int]], params: list[dict[str, Any]], max_tokens: int) -> list[list[int]]:
    """Answers to prompts that were computed elsewhere."""
    outputs = _generate(llm, prompts, params, max_tokens=max_tokens)
    return [list(output.outputs[0].token_ids) for output in outputs]


def held(llm: Any) -> int:
    """Requests that have ended and whose blocks are kept."""
    return len(scheduler_of(llm).requests)


def abort_while_waiting(llm: Any, prompt: list[int], params: dict[str, Any]) -> None:
    """Aborts a request that waits for its blocks, and lets the engine go on until they are free."""
    engine, scheduler = llm.llm_engine, scheduler_of(llm)
    engine.add_request("waits", {"prompt_token_ids": prompt}, _sampling(params, 8))
    deadline = time.monotonic() + PATIENCE_S
    while not any(request.status.name == "WAITING_FOR_REMOTE_KVS" for request in scheduler.requests.values()):
        engine.step()
        assert time.monotonic() < deadline, "the request doesn't wait for blocks"
    engine.abort_request(["waits"])
    assert len(scheduler.requests) == 1, "its blocks are kept while something may write to them"
    settle(llm)


def abort_before_it_runs(llm: Any, prompt: list[int], params: dict[str, Any]) -> None:
    """Aborts a request that has only just arrived."""
    llm.llm_engine.add_request("arrived", {"prompt_token_ids": prompt}, _sampling(params, 8))
    llm.llm_engine.abort_request(["arrived"])
    settle(llm)
    # workers learn of it in a step, which a server makes by itself
    llm.llm_engine.step()


def abort_prefill(llm: Any, prompt: list[int]) -> None:
    """Aborts a prompt that is to be kept, in the middle of its computation."""
    llm.llm_engine.add_request("prefill", {"prompt_token_ids": prompt}, _sampling(WANTED, 1))
    llm.llm_engine.step()
    llm.llm_engine.abort_request(["prefill"])
    settle(llm)


def begin_prefill(llm: Any, prompt: list[int], params: dict[str, Any], steps: int) -> int:
    """Has a prompt computed for so many steps; the tokens that are computed then."""
    llm.llm_engine.add_request("computed", {"prompt_token_ids": prompt}, _sampling(WANTED | params, 1))
    for _ in range(steps):
        _step(llm)
    (request,) = scheduler_of(llm).requests.values()
    assert not request.is_finished(), "the prompt is too short for that many steps"
    return int(request.num_computed_tokens)


def end_prefill(llm: Any) -> dict[str, Any] | None:
    """Goes on to the end; what the proxy would hand on."""
    output = _finish(llm, "computed")
    # workers learn of it in a step, which a server makes by itself
    llm.llm_engine.step()
    return output.kv_transfer_params


def preempt(llm: Any) -> None:
    """Takes the blocks of whatever runs back, and overwrites them with others' as they are computed."""
    assert scheduler_of(llm).reset_prefix_cache(reset_running_requests=True)


def abort(llm: Any, name: str) -> None:
    """Aborts a request, and lets the engine go on until nothing is held any more."""
    llm.llm_engine.abort_request([name])
    settle(llm)
    # workers learn of it in a step, which a server makes by itself
    llm.llm_engine.step()


def follow(llm: Any, prompt: list[int], params: dict[str, Any], max_tokens: int) -> None:
    """Asks for an answer to a prompt that is computed elsewhere."""
    llm.llm_engine.add_request("followed", {"prompt_token_ids": prompt}, _sampling(params, max_tokens))


def moved(llm: Any, wanted: int) -> list[int]:
    """Lets the engine go on until so many bytes have come; these, and those that came before the prompt's end."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        _step(llm)
        told = _native(llm).statistics()
        bytes_moved = sum(int(told[f"pulled_bytes_{transport}"]) for transport in ("shm", "tcp"))
        if bytes_moved >= wanted:
            return [bytes_moved, int(told["overlapped_bytes"])]
        assert time.monotonic() < deadline, f"{bytes_moved} bytes have come"


def answer(llm: Any) -> list[int]:
    """Goes on to the answer's end."""
    return list(_finish(llm, "followed").outputs[0].token_ids)


def set_lease(llm: Any, seconds: float) -> None:
    """Gives blocks that are kept from now on another lease; for engines with one worker."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    group = get_kv_transfer_group()
    for connector in getattr(group, "sub_connectors", [group]):
        if type(connector).__name__ == "MooncakeConnectorV1":
            connector._worker._settings = dataclasses.replace(connector._worker._settings, lease_seconds=seconds)


def drop_holds(llm: Any) -> None:
    """Ends all holds, as the end of a lease does."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    group = get_kv_transfer_group()
    for connector in getattr(group, "sub_connectors", [group]):
        if type(connector).__name__ == "MooncakeConnectorV1":
            for name in list(connector._worker._held):
                connector._worker._native.drop(name)


_ended: dict[str, Any] = {}
"""Answers that nobody has asked for yet."""


def _step(llm: Any) -> None:
    _ended.update((output.request_id, output) for output in llm.llm_engine.step() if output.finished)


def _finish(llm: Any, name: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        if name in _ended:
            return _ended.pop(name)
        _step(llm)
        assert time.monotonic() < deadline, f"request {name} doesn't end: {_state(llm)}"


def _state(llm: Any) -> list[Any]:
    known = scheduler_of(llm).requests.values()
    return [(one.request_id, one.status.name, one.num_computed_tokens, one.num_output_tokens) for one in known]


def _native(llm: Any) -> Any:
    """What moves the bytes, where the worker is in this process."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    return get_kv_transfer_group()._worker._native


def _generate(llm: Any, prompts: list[list[int]], params: list[dict[str, Any]], max_tokens: int) -> list[Any]:
    return llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts],
        [_sampling(one, max_tokens) for one in params],
        use_tqdm=False,
    )


def _sampling(params: dict[str, Any], max_tokens: int) -> Any:
    from vllm import SamplingParams

    extra = {"kv_transfer_params": dict(params)}
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, extra_args=extra)
