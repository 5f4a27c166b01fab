"""What tests do inside an engine's process, by `InProcessEngine.run("engine_probe:…")` with this folder on its path.

Only what can't be reached from outside: to go on until dumps have ended, to lose blocks or the daemon at a certain
moment, to abort requests, and to make a second connector from the same configuration.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 60.0


def scheduler_of(llm: Any) -> Any:
    """The engine's scheduler."""
    return llm.llm_engine.engine_core.engine_core.scheduler


def connectors_of(llm: Any) -> list[Any]:
    """The scheduler's sides of our connectors, one unless several are combined."""
    connector = scheduler_of(llm).connector
    return [one for one in getattr(connector, "sub_connectors", [connector]) if hasattr(one, "_assembly")]


def worker_of(llm: Any) -> Any:
    """The worker's side of our connector, where it lives in this process."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    return get_kv_transfer_group()._worker


def settle(llm: Any) -> None:
    """Lets the engine go on until nothing is left of any request: dumps have ended then."""
    scheduler = scheduler_of(llm)
    deadline = time.monotonic() + PATIENCE_S
    while scheduler.requests:
        llm.llm_engine.step()
        assert time.monotonic() < deadline, f"{len(scheduler.requests)} requests are still held"
    sides = [connector._scheduler for connector in connectors_of(llm)]
    assert not any(side._states or side._retained or len(side._under_way) for side in sides), "requests are remembered"


def free_blocks(llm: Any) -> list[int]:
    """Blocks that nobody holds, and all of them."""
    pool = scheduler_of(llm).kv_cache_manager.block_pool
    return [pool.get_num_free_blocks(), pool.num_gpu_blocks]


def lose_blocks(llm: Any, first: int, ranks: list[int] | None = None) -> None:
    """Evicts the next load's blocks from `first` on, between lookup and load; of some ranks, or of all."""
    side = connectors_of(llm)[0]._scheduler
    allocated = side.allocated

    def then_evict(request: Any, block_ids: list[int], tokens: int) -> bool:
        side.allocated = allocated
        planned = allocated(request, block_ids, tokens)
        run = side._planned[-1]
        for index, rank in enumerate(side._namespaces.ranks):
            if ranks is None or index in ranks:
                assert rank.get(run.variant).evict(run.hashes[first:]) > 0
        return planned

    side.allocated = then_evict


def evict(llm: Any, prompt: list[int], first: int, rank: int) -> int:
    """Evicts a prompt's blocks from `first` on from one rank's namespace. Returns how many."""
    from kvstored.vllm.metadata import Variant

    side = connectors_of(llm)[0]._scheduler
    hashes = block_hashes(llm, prompt)
    return side._namespaces.ranks[rank].get(Variant()).evict(hashes[first:])


def block_hashes(llm: Any, prompt: list[int]) -> list[bytes]:
    """The hashes by which the engine knows a prompt's whole blocks."""
    from vllm import SamplingParams
    from vllm.v1.request import Request

    core = llm.llm_engine.engine_core.engine_core
    request = Request(
        request_id="hashes",
        prompt_token_ids=prompt,
        sampling_params=SamplingParams(max_tokens=1),
        pooling_params=None,
        block_hasher=core.request_block_hasher,
    )
    return list(request.block_hashes)


def hashes_as_text(llm: Any, prompt: list[int]) -> list[str]:
    """As `block_hashes`, in hexadecimal."""
    return [one.hex() for one in block_hashes(llm, prompt)]


def signal_at(llm: Any, moment: str, process: int, number: int) -> None:
    """Sends a signal once: `before_load` or `after_load` begins, `before_dump` or `after_dump`."""
    worker = worker_of(llm)
    when, what = moment.split("_")
    places = {"load": [(worker._loader, "_begin")], "dump": [(worker._dumper, "_dump"), (worker._dumper, "_put")]}
    fired: list[bool] = []

    def hook(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if when == "before" and not fired:
                fired.append(True)
                os.kill(process, number)
            result = original(*arguments)
            if when == "after" and not fired:
                fired.append(True)
                os.kill(process, number)
            return result

        return call

    for place, name in places[what]:
        place.__dict__.pop(name, None)
        setattr(place, name, hook(getattr(place, name)))


def construct(llm: Any, extra: dict[str, Any]) -> str:
    """What a second connector of this engine's configuration says when it can't be made with other settings."""
    from vllm.config import KVTransferConfig
    from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorRole

    from kvstored.vllm import UCMConnector

    configuration = copy.copy(llm.llm_engine.vllm_config)
    configuration.kv_transfer_config = KVTransferConfig(
        kv_connector="UCMConnector",
        kv_connector_module_path="kvstored.vllm",
        kv_role="kv_both",
        kv_connector_extra_config=extra,
    )
    try:
        connector = UCMConnector(configuration, KVConnectorRole.SCHEDULER, scheduler_of(llm).kv_cache_config)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    connector.shutdown()
    return ""


def run_schedule(llm: Any, requests: list[dict[str, Any]]) -> list[list[int] | None]:
    """Runs requests that come and go at given steps; the tokens of each that wasn't aborted.

    Of each: `prompt`, `max_tokens`, `arrives` (a step), and `leaves`, the step at which it's aborted, or None.
    """
    from vllm import SamplingParams

    engine = llm.llm_engine
    answers: list[list[int] | None] = [None] * len(requests)
    names = {}
    deadline = time.monotonic() + 2 * PATIENCE_S
    step = 0
    waiting = sorted(range(len(requests)), key=lambda index: requests[index]["arrives"])
    while waiting or engine.has_unfinished_requests():
        assert time.monotonic() < deadline, "the engine doesn't get on"
        while waiting and requests[waiting[0]]["arrives"] <= step:
            index = waiting.pop(0)
            one = requests[index]
            parameters = SamplingParams(temperature=0, max_tokens=one["max_tokens"], ignore_eos=True)
            names[f"schedule-{index}"] = index
            engine.add_request(f"schedule-{index}", {"prompt_token_ids": one["prompt"]}, parameters)
        for name, index in list(names.items()):
            if requests[index]["leaves"] is not None and requests[index]["leaves"] <= step:
                engine.abort_request([name])
                del names[name]
        for output in engine.step():
            if output.finished and (index := names.pop(output.request_id, None)) is not None:
                answers[index] = list(output.outputs[0].token_ids)
        step += 1
    settle(llm)
    return answers


def generate_with_adapter(llm: Any, prompts: list[list[int]], adapter: str, number: int) -> dict[str, Any]:
    """Answers with a LoRA adapter: their tokens, and how many of each prompt were found."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts],
        SamplingParams(temperature=0, max_tokens=8, ignore_eos=True),
        use_tqdm=False,
        lora_request=LoRARequest(f"adapter-{number}", number, adapter),
    )
    return {
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        "cached": [output.num_cached_tokens for output in outputs],
    }


class PipelineRoom:
    """Mixed into workers: what a later pipeline stage needs, which vLLM's runner for CPUs leaves out."""

    def make_pipeline_room(self) -> None:
        """Makes the tensors that a stage's input is received in."""
        runner = self.model_runner  # type: ignore[attr-defined]
        runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
            batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=runner.device
        )


def make_pipeline_room(llm: Any) -> None:
    """Makes an engine with pipeline stages work on a CPU."""
    llm.collective_rpc("make_pipeline_room")
