"""A vLLM engine that answers calls: one JSON object a line on standard input, one answer a line on standard output.

The first line holds the arguments of `vllm.LLM`. A call is {"call": name, "arguments": {…}}, an answer {"result": …} or
{"error": text}. Whatever vLLM itself prints goes to standard error.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import signal
import sys
import threading
import traceback
from typing import IO, Any, NoReturn


class Driver:
    """The engine and the calls that it answers."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        from vllm import LLM
        from vllm.config import KVTransferConfig

        transfer = arguments.pop("kv_transfer_config", None)
        if transfer is not None:
            arguments["kv_transfer_config"] = KVTransferConfig(**transfer)
        self.engine = LLM(**arguments)

    def generate(self, prompts: list[Any], max_tokens: int, sampling: dict[str, Any]) -> list[dict[str, Any]]:
        """Runs a batch of prompts: lists of token ids, or objects as vLLM takes them."""
        from vllm import SamplingParams

        parameters = SamplingParams(**{"temperature": 0, "max_tokens": max_tokens, "ignore_eos": True, **sampling})
        inputs = [{"prompt_token_ids": prompt} if isinstance(prompt, list) else prompt for prompt in prompts]
        outputs = self.engine.generate(inputs, parameters, use_tqdm=False)
        return [
            {
                "token_ids": list(output.outputs[0].token_ids),
                "text": output.outputs[0].text,
                "prompt_tokens": len(output.prompt_token_ids),
                "cached_tokens": output.num_cached_tokens,
                "finish_reason": output.outputs[0].finish_reason,
            }
            for output in outputs
        ]

    def reset_prefix_cache(self, connector: bool) -> bool:
        """Whether it could be emptied."""
        return bool(self.engine.reset_prefix_cache(reset_connector=connector))

    def metrics(self) -> str:
        """The engine's metrics in the Prometheus text format."""
        from prometheus_client import generate_latest

        return generate_latest().decode()

    def run(self, function: str, arguments: dict[str, Any]) -> Any:
        """Calls `module:name` with the engine and the arguments; the result must fit into JSON."""
        module, _, name = function.partition(":")
        return getattr(importlib.import_module(module), name)(self.engine, **arguments)


def answer(driver: Driver, request: dict[str, Any]) -> dict[str, Any]:
    """The answer to one call, whatever it does."""
    calls = {
        "generate": driver.generate,
        "reset_prefix_cache": driver.reset_prefix_cache,
        "metrics": driver.metrics,
        "run": driver.run,
    }
    try:
        return {"result": calls[request["call"]](**request["arguments"])}
    except Exception:
        return {"error": traceback.format_exc()}


def write(answers: IO[str], value: dict[str, Any]) -> None:
    """One line, at once."""
    answers.write(json.dumps(value) + "\n")
    answers.flush()


def main() -> None:
    """Serves until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    # only answers go to the pipe, whatever libraries print
    os.dup2(2, 1)
    arguments = json.loads(sys.stdin.readline())
    try:
        driver = Driver(arguments)
    except Exception:
        write(answers, {"error": traceback.format_exc()})
        sys.exit(1)
    # asked to end, it ends as it does when its input has ended
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        write(answers, {"result": "ready"})
        for line in sys.stdin:
            write(answers, answer(driver, json.loads(line)))
    except SystemExit:
        pass
    finally:
        shut_down(driver)
    leave()


def shut_down(driver: Driver) -> None:
    """Ends the engine in an orderly way, so that its connector can finish too."""
    driver.engine.llm_engine.engine_core.shutdown()


def leave() -> NoReturn:
    """Ends the process as it ends by itself, but doesn't take its modules apart, which takes seconds with vLLM's."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
