"""Engines that are up in two seconds instead of fifteen: forked from a process that has vLLM imported already."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, ClassVar, Self

from .processes import Tree, start_leashed
from .vllm_environment import vllm_environment, vllm_python

_PROCESS = Path(__file__).with_name("nursery_process.py")
_PR_SET_CHILD_SUBREAPER = 36
_IMPORT_SECONDS = 180.0
_POLL_SECONDS = 0.02


class Forked:
    """A child that another process forked for us. As much of `subprocess.Popen` as a `Tree` and an engine need."""

    def __init__(self, pid: int, stdin: IO[str], stdout: IO[str]) -> None:
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """How it ended, if it has."""
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found == self.pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end. Raises TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a forked engine", timeout or 0)
            time.sleep(_POLL_SECONDS)
        return status

    def send_signal(self, number: int) -> None:
        """Sends it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


class EngineNursery:
    """The process with vLLM in it. While it's entered, every `InProcessEngine` is forked from it.

    log: the file that its output goes to; an engine's goes to the engine's own.
    """

    current: ClassVar[EngineNursery | None] = None

    def __init__(self, log: Path) -> None:
        self._log = log

    def fork(self, environment: Mapping[str, str], log: Path) -> Forked:
        """A process that becomes an engine's driver. Raises RuntimeError when there's none to fork from."""
        commands, answers = os.pipe(), os.pipe()
        request = json.dumps({"environment": dict(environment), "owner": os.getpid()}).encode()
        with log.open("a") as output:
            socket.send_fds(self._channel, [request], [commands[0], answers[1], output.fileno()])
        os.close(commands[0])
        os.close(answers[1])
        stdin, stdout = os.fdopen(commands[1], "w"), os.fdopen(answers[0])
        pid = self._channel.recv(32)
        if not pid:
            stdin.close()
            stdout.close()
            raise RuntimeError(f"no engine can be forked; {self._log} holds\n{self._log.read_text(errors='replace')}")
        return Forked(int(pid), stdin, stdout)

    def __enter__(self) -> Self:
        _adopt_orphans(True)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # the first engine waits for what is imported
        self._channel.settimeout(_IMPORT_SECONDS)
        with theirs:
            command = [vllm_python(), "-P", _PROCESS, str(theirs.fileno())]
            environment = vllm_environment({"VLLM_LOGGING_LEVEL": "INFO"})
            started = start_leashed(command, environment=environment, log=self._log, inherited=[theirs.fileno()])
        self._tree = Tree(started)
        EngineNursery.current = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        EngineNursery.current = None
        self._channel.close()
        self._tree.terminate()
        _adopt_orphans(False)


def _adopt_orphans(wanted: bool) -> None:
    """Whether orphans below this process become its children; they keep waiting for `wait` then, as all children do."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
