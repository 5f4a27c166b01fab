"""A vLLM engine without a server, alone in a child process: the quickest way to a real engine, and easily restarted."""

from __future__ import annotations

import contextlib
import json
import select
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from .metrics import Metrics
from .nursery import EngineNursery
from .processes import Root, Tree, start_leashed
from .program import Program
from .vllm_environment import vllm_environment, vllm_python

READY_SECONDS = 240.0
CALL_SECONDS = 120.0
_DRIVER = Path(__file__).with_name("engine_driver.py")
_POLL_SECONDS = 0.1


class EngineError(RuntimeError):
    """The engine failed, ended or didn't answer in time."""


@dataclass(frozen=True)
class Generation:
    """What the engine made of one prompt."""

    token_ids: list[int]
    text: str
    prompt_tokens: int
    cached_tokens: int | None
    """Prompt tokens that weren't computed: found in the engine's own prefix cache or through its connector."""
    finish_reason: str | None


class InProcessEngine(Program):
    """One `vllm.LLM`. A context manager that starts it and always stops it.

    log: the file its output goes to. kv_transfer: the fields of vLLM's KVTransferConfig. prefix_caching: without it
    every reuse comes through the connector. python_path: folders of modules for `run`, or of connectors.
    options: further arguments of `vllm.LLM`, over the ones made here.
    """

    def __init__(
        self,
        model: Path,
        *,
        log: Path,
        kv_transfer: Mapping[str, Any] | None = None,
        dtype: str = "float32",
        block_tokens: int = 128,
        max_model_tokens: int = 16_384,
        kv_cache_bytes: int = 512 << 20,
        prefix_caching: bool = True,
        tensor_parallel: int = 1,
        environment: Mapping[str, str] | None = None,
        python_path: Sequence[Path] = (),
        **options: Any,
    ) -> None:
        super().__init__(log)
        variables = {
            # with one worker, everything is in one process
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_LEVEL": "INFO",
            **({"PYTHONPATH": ":".join(map(str, python_path))} if python_path else {}),
        }
        self._environment = vllm_environment({**variables, **(environment or {})})
        self._arguments = {
            "model": str(model),
            "dtype": dtype,
            "block_size": block_tokens,
            "max_model_len": max_model_tokens,
            "kv_cache_memory_bytes": kv_cache_bytes,
            "enable_prefix_caching": prefix_caching,
            "tensor_parallel_size": tensor_parallel,
            "distributed_executor_backend": "uni" if tensor_parallel == 1 else "mp",
            "enforce_eager": True,
            "disable_log_stats": False,
            **({"kv_transfer_config": dict(kv_transfer)} if kv_transfer is not None else {}),
            **options,
        }

    def start(self, *, timeout: float = READY_SECONDS) -> Self:
        """Starts it and waits until it is ready. Raises EngineError when it fails."""
        if self._tree is not None:
            raise EngineError("the engine runs already")
        self._tree = Tree(self._launch())
        try:
            self._exchange(self._arguments, timeout)
        except BaseException:
            self.kill()
            raise
        self._tree.refresh()
        return self

    def stop(self, timeout: float = 30.0) -> bool:
        """Lets it end in an orderly way, by force only after the timeout. Whether no force was needed."""
        tree, self._tree = self._tree, None
        if tree is None:
            return True
        tree.refresh()
        with contextlib.suppress(OSError):
            tree.root.stdin.close()
        deadline = time.monotonic() + timeout
        while tree.refresh() and tree.root.poll() is None and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        orderly = tree.root.poll() == 0 and not tree.refresh()
        tree.terminate(0.0 if orderly else 5.0)
        tree.root.stdout.close()
        return orderly

    def kill(self) -> None:
        """Kills it as a crash would."""
        tree, self._tree = self._tree, None
        if tree is not None:
            tree.kill()
            with contextlib.suppress(OSError):
                tree.root.stdin.close()
            tree.root.stdout.close()

    def generate(
        self,
        prompts: Sequence[Sequence[int] | Mapping[str, Any]],
        max_tokens: int = 16,
        *,
        timeout: float = CALL_SECONDS,
        **sampling: Any,
    ) -> list[Generation]:
        """Runs a batch of prompts greedily: token ids, or vLLM's objects such as {"prompt_token_ids", "cache_salt"}."""
        plain = [dict(prompt) if isinstance(prompt, Mapping) else list(prompt) for prompt in prompts]
        results = self._call("generate", timeout, prompts=plain, max_tokens=max_tokens, sampling=sampling)
        return [Generation(**result) for result in results]

    def generate_one(
        self, prompt: Sequence[int] | Mapping[str, Any], max_tokens: int = 16, **options: Any
    ) -> Generation:
        """As `generate`, for one prompt."""
        return self.generate([prompt], max_tokens, **options)[0]

    def reset_prefix_cache(self, *, connector: bool = False, timeout: float = 30.0) -> None:
        """Empties its own prefix cache, and the connector's if asked to.

        That is refused while blocks are in use, as they may be while they're saved: tries until the timeout, then
        raises EngineError.
        """
        deadline = time.monotonic() + timeout
        while not self._call("reset_prefix_cache", timeout, connector=connector):
            if time.monotonic() > deadline:
                raise EngineError(f"the prefix cache couldn't be emptied within {timeout:.0f} s")
            time.sleep(_POLL_SECONDS)

    def metrics(self) -> Metrics:
        """Its metrics now."""
        return Metrics(self._call("metrics", CALL_SECONDS))

    def run(self, function: str, *, timeout: float = CALL_SECONDS, **arguments: Any) -> Any:
        """Calls the function `module:name` in the engine's process as `name(llm, **arguments)`."""
        return self._call("run", timeout, function=function, arguments=arguments)

    def _launch(self) -> Root:
        if EngineNursery.current is not None:
            return EngineNursery.current.fork(self._environment, self.log)
        command = [vllm_python(), "-P", _DRIVER]
        return start_leashed(command, environment=self._environment, log=self.log, pipes=True)

    def _call(self, call: str, timeout: float, **arguments: Any) -> Any:
        return self._exchange({"call": call, "arguments": arguments}, timeout)

    def _exchange(self, message: Mapping[str, Any], timeout: float) -> Any:
        root = self._running.root
        try:
            root.stdin.write(json.dumps(message) + "\n")
            root.stdin.flush()
        except OSError as error:
            raise EngineError(f"the engine is gone; {self.log} ends with\n{self.log_tail()}") from error
        # an answer is one line, written at once: when its beginning is there, the rest comes
        if not select.select([root.stdout], [], [], timeout)[0]:
            # a late answer would be taken for that of the next call
            self.kill()
            raise EngineError(f"no answer within {timeout:.0f} s; {self.log} ends with\n{self.log_tail()}")
        line = root.stdout.readline()
        if not line:
            raise EngineError(f"the engine ended; {self.log} ends with\n{self.log_tail()}")
        answer = json.loads(line)
        if "error" in answer:
            raise EngineError(f"{answer['error']}\n{self.log} ends with\n{self.log_tail()}")
        return answer["result"]
