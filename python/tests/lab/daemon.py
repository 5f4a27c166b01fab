"""The kvstored daemon as a child process."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .processes import Tree, start_leashed
from .program import Program

BINARY_VARIABLE = "KVSTORED_BINARY"
READY_SECONDS = 30.0
_POLL_SECONDS = 0.02


def daemon_binary() -> Path | None:
    """The program: the variable's, or the newest one that cargo built in this tree. None when there is none."""
    named = os.environ.get(BINARY_VARIABLE)
    if named:
        return Path(named)
    target = Path(__file__).resolve().parents[3] / "target"
    built = [path for path in (target / "debug" / "kvstored", target / "release" / "kvstored") if path.is_file()]
    return max(built, key=lambda path: path.stat().st_mtime, default=None)


class Daemon(Program):
    """One daemon with a folder of its own. A context manager that starts it, always stops it and removes its folder.

    folder: for socket, storage and log; a new one below the system's temporary folder if None (a socket's path must be
    short). storage: the Posix tier's folder, for daemons that share one. options: the daemon's settings, with
    underscores. arguments: further ones as typed.
    """

    def __init__(
        self,
        *,
        pipeline: str = "Cache|Posix",
        cache_capacity: str = "64MiB",
        posix_capacity: str = "1GiB",
        folder: Path | None = None,
        storage: Path | None = None,
        options: Mapping[str, Any] | None = None,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        binary: Path | None = None,
    ) -> None:
        self._owns_folder = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="kvstored-"))
        self.storage = storage or self.folder / "blocks"
        self.storage.mkdir(parents=True, exist_ok=True)
        self.socket = self.folder / "kvstored.sock"
        super().__init__(self.folder / "daemon.log")
        self._environment = {**os.environ, **(environment or {})}
        program = binary or daemon_binary()
        if program is None:
            raise FileNotFoundError(f"no kvstored program: build it, or name it in {BINARY_VARIABLE}")
        settings: dict[str, Any] = {"pipeline": pipeline, "http": "off", "cache_buffer_capacity": cache_capacity}
        if "posix" in pipeline.lower():
            settings |= {"storage_backends": self.storage, "posix_capacity": posix_capacity}
        settings |= {**(options or {}), "listen": f"unix:{self.socket}"}
        self.command = [str(program)]
        for name, value in settings.items():
            self.command += [f"--{name.replace('_', '-')}", str(value)]
        self.command += arguments

    def start(self, timeout: float = READY_SECONDS) -> Self:
        """Starts it and waits until it accepts clients. Raises RuntimeError with its log when it doesn't."""
        if self._tree is not None:
            raise RuntimeError("the daemon runs already")
        self._tree = Tree(start_leashed(self.command, environment=self._environment, log=self.log))
        deadline = time.monotonic() + timeout
        while not self._accepts():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"kvstored didn't come up; its log ends with\n{self.log_tail()}")
            time.sleep(_POLL_SECONDS)
        return self

    def pause(self) -> None:
        """Stops it where it is, until `resume`."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it go on."""
        self.process.send_signal(signal.SIGCONT)

    def statistics(self) -> dict[str, Any]:
        """What `kvstored ctl stat` tells."""
        command = [self.command[0], "ctl", "stat", "--json", "--socket", str(self.socket)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout)

    def remove(self) -> None:
        """Kills it if it runs and removes its folder, unless that was given."""
        self.kill()
        if self._owns_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def drain(self, timeout: float = 60.0) -> None:
        """Waits until everything that it accepted is stored durably."""
        command = [self.command[0], "ctl", "drain", "--socket", str(self.socket)]
        subprocess.run(command, check=True, capture_output=True, timeout=timeout)

    @property
    def client_environment(self) -> dict[str, str]:
        """Variables with which other programs take this daemon's socket for the default one."""
        return {"XDG_RUNTIME_DIR": str(self.folder)}

    def _accepts(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
            return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.remove()

    def __del__(self) -> None:
        # a test that lost it must not leave processes
        with contextlib.suppress(Exception):
            self.remove()
