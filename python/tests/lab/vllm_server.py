"""`vllm serve` as a child process."""

from __future__ import annotations

import http.client
import json
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from .completions import MODEL_NAME, Completion, complete
from .metrics import Metrics
from .ports import free_port
from .processes import Tree, resident_bytes, start_leashed
from .program import Program
from .vllm_environment import vllm_environment, vllm_python

READY_SECONDS = 300.0
_POLL_SECONDS = 0.2


class VllmServer(Program):
    """One server on 127.0.0.1. A context manager that starts it and always stops it.

    model: folder of the model. kv_transfer: what `--kv-transfer-config` takes. log: the file its output goes to.
    block_tokens: a multiple of 32. kv_cache_bytes: memory of the engine's own blocks. arguments: further ones of
    `vllm serve`, after and so over the ones made here. environment: variables, over the usual ones.
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
        tensor_parallel: int = 1,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> None:
        super().__init__(log)
        self.port = port or free_port()
        self.model = model
        self._environment = vllm_environment({"VLLM_SERVER_DEV_MODE": "1", **(environment or {})})
        options = {
            "--host": "127.0.0.1",
            "--port": self.port,
            "--served-model-name": MODEL_NAME,
            "--dtype": dtype,
            "--block-size": block_tokens,
            "--max-model-len": max_model_tokens,
            "--kv-cache-memory-bytes": kv_cache_bytes,
            "--tensor-parallel-size": tensor_parallel,
        }
        self.command = [str(vllm_python()), "-m", "vllm.entrypoints.cli.main", "serve", str(model)]
        self.command += [str(part) for option in options.items() for part in option]
        self.command += ["--enforce-eager", "--enable-prompt-tokens-details"]
        if kv_transfer is not None:
            self.command += ["--kv-transfer-config", json.dumps(kv_transfer)]
        self.command += arguments

    def start(self, *, wait: bool = True, timeout: float = READY_SECONDS) -> Self:
        """Starts it, and waits unless told not to. Raises RuntimeError when it doesn't come up."""
        if self._tree is not None:
            raise RuntimeError("the server runs already")
        self._tree = Tree(start_leashed(self.command, environment=self._environment, log=self.log))
        return self.wait(timeout) if wait else self

    def wait(self, timeout: float = READY_SECONDS) -> Self:
        """Waits until it is healthy; stops it and raises RuntimeError with the end of its log when it isn't in time."""
        deadline = time.monotonic() + timeout
        while not self.is_healthy():
            ended = self.process.poll() is not None
            if ended or time.monotonic() > deadline:
                self.stop()
                reason = "ended before it was ready" if ended else f"wasn't ready after {timeout:.0f} s"
                raise RuntimeError(f"vllm serve {reason}; {self.log} ends with\n{self.log_tail()}")
            time.sleep(_POLL_SECONDS)
        self._running.refresh()
        return self

    def is_healthy(self) -> bool:
        """Whether it says so."""
        try:
            with urllib.request.urlopen(self.address("/health"), timeout=5):
                return True
        except (OSError, http.client.HTTPException):
            return False

    def complete(self, prompt: Sequence[int] | str, max_tokens: int = 16, **options: Any) -> Completion:
        """As `completions.complete`."""
        return complete(self.port, prompt, max_tokens, **options)

    def metrics(self) -> Metrics:
        """Its metrics now."""
        with urllib.request.urlopen(self.address("/metrics"), timeout=30) as response:
            return Metrics(response.read().decode())

    def reset_prefix_cache(self, *, connector: bool = False, timeout: float = 30.0) -> None:
        """Empties its own prefix cache, and the connector's if asked to.

        That is refused while blocks are in use, as they may be while they're saved: tries until the timeout, then
        raises RuntimeError.
        """
        query = "?reset_external=true" if connector else ""
        deadline = time.monotonic() + timeout
        while True:
            request = urllib.request.Request(self.address(f"/reset_prefix_cache{query}"), method="POST")
            with urllib.request.urlopen(request, timeout=30) as response:
                if json.load(response)["success"]:
                    return
            if time.monotonic() > deadline:
                raise RuntimeError(f"the prefix cache couldn't be emptied within {timeout:.0f} s")
            time.sleep(_POLL_SECONDS)

    def address(self, path: str = "") -> str:
        """The URL of a path on it."""
        return f"http://127.0.0.1:{self.port}{path}"

    @property
    def resident_bytes(self) -> int:
        """Memory of all its processes."""
        return resident_bytes(self.processes)
