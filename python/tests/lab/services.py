"""`kvstored master` and `kvstored proxy` as child processes."""

from __future__ import annotations

import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from .daemon import daemon_binary
from .metrics import Metrics
from .ports import free_port
from .processes import Tree, start_leashed
from .program import Program

READY_SECONDS = 30.0
_POLL_SECONDS = 0.02


class Service(Program):
    """One of the program's commands, which serves HTTP. A context manager that starts it and always stops it.

    arguments: the command and its flags, as typed. log: the file its output goes to. port: where it serves HTTP on
    127.0.0.1. ready: the path that it answers, with whatever status, once it serves.
    """

    def __init__(
        self, arguments: Sequence[object], *, log: Path, port: int, ready: str, binary: Path | None = None
    ) -> None:
        program = binary or daemon_binary()
        if program is None:
            raise FileNotFoundError("no kvstored program: build it, or name it in KVSTORED_BINARY")
        super().__init__(log)
        self.command = [str(program), *map(str, arguments)]
        self.port = port
        self._ready = ready

    def start(self, timeout: float = READY_SECONDS) -> Self:
        """Starts it and waits until it answers. Raises RuntimeError with the end of its log when it doesn't."""
        if self._tree is not None:
            raise RuntimeError("the service runs already")
        self._tree = Tree(start_leashed(self.command, environment=os.environ, log=self.log))
        deadline = time.monotonic() + timeout
        while not self._answers():
            if self._tree.root.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{self.command[1]} didn't come up; its log ends with\n{self.log_tail()}")
            time.sleep(_POLL_SECONDS)
        return self

    def ask(self, path: str, method: str = "GET") -> str:
        """Its answer. Raises OSError when it doesn't answer, or not with a status of success."""
        request = urllib.request.Request(self.address(path), method=method)
        with urllib.request.urlopen(request, timeout=30) as response:
            return str(response.read().decode())

    def metrics(self) -> Metrics:
        """Its metrics now."""
        return Metrics(self.ask("/metrics"))

    def address(self, path: str = "") -> str:
        """The URL of a path on it."""
        return f"http://127.0.0.1:{self.port}{path}"

    def _answers(self) -> bool:
        try:
            self.ask(self._ready)
        except urllib.error.HTTPError:
            return True
        except (OSError, http.client.HTTPException):
            return False
        return True


class Master(Service):
    """`kvstored master`. rpc_port: where members find it. arguments: further flags."""

    def __init__(self, *, log: Path, arguments: Sequence[object] = (), binary: Path | None = None) -> None:
        self.rpc_port = free_port()
        port = free_port()
        command = ["master", "--port", self.rpc_port, "--metrics_port", port, *arguments]
        super().__init__(command, log=log, port=port, ready="/healthz", binary=binary)


class Proxy(Service):
    """`kvstored proxy` before instances on this machine. prefill, decode: their ports. arguments: further flags."""

    def __init__(
        self,
        prefill: Sequence[int],
        decode: Sequence[int],
        *,
        log: Path,
        arguments: Sequence[object] = (),
        binary: Path | None = None,
    ) -> None:
        port = free_port()
        command: list[object] = ["proxy", "--port", port, "--host", "127.0.0.1"]
        for role, ports in (("prefiller", prefill), ("decoder", decode)):
            command += [f"--{role}-hosts", *["127.0.0.1"] * len(ports), f"--{role}-ports", *ports]
        super().__init__([*command, *arguments], log=log, port=port, ready="/healthcheck", binary=binary)

    def wait_for_all(self, timeout: float = READY_SECONDS) -> None:
        """Waits until it takes every instance for up. Raises TimeoutError when it doesn't in time."""

        def all_up() -> bool:
            samples = self.metrics().samples
            states = [sample.value for sample in samples if sample.name == "kvstored_proxy_instance_up"]
            return bool(states) and all(states)

        wait_until(all_up, timeout, "the proxy's instances aren't all up")


def wait_until(condition: Callable[[], bool], timeout: float, otherwise: str) -> None:
    """Asks again and again; raises TimeoutError with `otherwise` when the condition doesn't hold within the timeout."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{otherwise} after {timeout:.0f} s")
        time.sleep(5 * _POLL_SECONDS)
