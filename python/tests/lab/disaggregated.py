"""A prefill and a decode instance whose keys and values go over Mooncake's transfer engine, whoever provides that."""

from __future__ import annotations

import contextlib
import json
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .completions import Completion, complete
from .ports import free_port
from .vllm_server import VllmServer

_BOOTSTRAP_VARIABLE = "VLLM_MOONCAKE_BOOTSTRAP_PORT"


class MooncakePair:
    """One prefill instance, one decode instance and what a router does between them. A context manager.

    connector: the fields of vLLM's KVTransferConfig that both share, without the role. folder: for logs.
    environment: variables of both. options: further arguments of both servers.
    """

    def __init__(
        self,
        model: Path,
        *,
        connector: Mapping[str, Any],
        folder: Path,
        environment: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        port = free_port()
        self._bootstrap = f"http://127.0.0.1:{port}"
        shared = dict(environment or {})

        def server(name: str, role: str, variables: Mapping[str, str]) -> VllmServer:
            return VllmServer(
                model,
                log=folder / f"{name}.log",
                kv_transfer={**connector, "kv_role": role},
                environment=variables,
                **options,
            )

        self.prefill = server("prefill", "kv_producer", {**shared, _BOOTSTRAP_VARIABLE: str(port)})
        self.decode = server("decode", "kv_consumer", shared)

    def start(self) -> Self:
        """Starts both and waits for them. Raises RuntimeError when one doesn't come up."""
        try:
            for server in (self.prefill, self.decode):
                server.start(wait=False)
            for server in (self.prefill, self.decode):
                server.wait()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stops both."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.prefill.stop)
            stack.callback(self.decode.stop)

    def complete(self, prompt: Sequence[int], max_tokens: int, **options: Any) -> Completion:
        """Has the prompt computed by the one, and the rest by the other."""
        transfer = f"transfer-{uuid.uuid4().hex}"
        self.compute(prompt, transfer)
        return self.fetch(prompt, max_tokens, transfer, **options)

    def compute(self, prompt: Sequence[int], transfer: str) -> Completion:
        """The prefill instance's part: it keeps the blocks of the prompt for whoever names the transfer."""
        wanted = {"do_remote_decode": True, "do_remote_prefill": False, "transfer_id": transfer}
        return complete(self.prefill.port, prompt, 1, kv_transfer_params=wanted)

    def fetch(self, prompt: Sequence[int], max_tokens: int, transfer: str, **options: Any) -> Completion:
        """The decode instance's part: it has the blocks sent and goes on from there."""
        wanted = {
            "do_remote_decode": False,
            "do_remote_prefill": True,
            "remote_bootstrap_addr": self._bootstrap,
            "remote_engine_id": self._prefill_engine(),
            "transfer_id": transfer,
        }
        return complete(self.decode.port, prompt, max_tokens, kv_transfer_params=wanted, **options)

    def _prefill_engine(self) -> str:
        with urllib.request.urlopen(f"{self._bootstrap}/query", timeout=30) as response:
            return str(json.load(response)["0"]["engine_id"])

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
