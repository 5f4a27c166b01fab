"""What the tests of Mooncake's API share: memory with an address, and a process on the other side."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from support import PATIENCE, wait_for

_PEER = Path(__file__).with_name("mooncake_peer.py")


class Memory:
    """Bytes with a fixed address."""

    def __init__(self, length: int, byte: int = 0) -> None:
        self._buffer = ctypes.create_string_buffer(bytes([byte]) * length, length)
        self.length = length
        self.address = ctypes.addressof(self._buffer)

    @property
    def bytes(self) -> bytes:
        """All of them."""
        return self._buffer.raw

    def write(self, data: bytes, offset: int = 0) -> None:
        """Replaces some."""
        ctypes.memmove(self.address + offset, data, len(data))


class PeerProcess:
    """A process with an object of Mooncake's API in it."""

    def __init__(self, module: str, name: str, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(_PEER), module, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **(environment or {})},
        )

    def call(self, name: str, *arguments: Any) -> Any:
        """Calls a method there."""
        self.process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self.process.stdin.flush()
        assert select.select([self.process.stdout], [], [], PATIENCE)[0], f"{name} didn't end"
        line = self.process.stdout.readline()
        assert line, f"the process ended in {name}"
        return json.loads(line)

    def pause(self) -> None:
        """Stops it where it is."""
        self.process.send_signal(signal.SIGSTOP)
        status = Path(f"/proc/{self.process.pid}/stat")
        wait_for(lambda: status.read_text().rpartition(")")[2].split()[0] == "T", "the process's stop")

    def kill(self) -> None:
        """Kills it as a crash would."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Ends it, by force if need be."""
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.close()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process.stdout.close()


class EnginePeer(PeerProcess):
    """A process with a started engine."""

    def __init__(self, protocol: str = "tcp", environment: dict[str, str] | None = None) -> None:
        super().__init__("kvstored.mooncake.engine", "TransferEngine", environment)
        assert self.call("initialize", "127.0.0.1", "P2PHANDSHAKE", protocol, "") == 0
        self.name = f"127.0.0.1:{self.call('get_rpc_port')}"


class Master:
    """A master process on a port of its own. A context manager."""

    def __init__(self, program: str, *flags: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self._place = ("127.0.0.1", port)
        self._command = [program, "master", f"--rpc_port={port}", "--metrics_port=0", *flags]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it listens."""
        self.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)
        wait_for(self._listens, "the master's start")

    def kill(self) -> None:
        """Kills it as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def __enter__(self) -> Master:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _listens(self) -> bool:
        assert self.process is None or self.process.poll() is None, "the master ended"
        with contextlib.suppress(OSError), socket.create_connection(self._place, 1):
            return True
        return False
