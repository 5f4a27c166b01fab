"""One contender's side of the comparison: the same calls of Mooncake's Python API, whoever answers them.

Started by `run.py` under the contender's interpreter; reads one JSON object a line and answers each with one. With
`serve` as its first argument it is the other side of a transfer, with `lend` a node that lends memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from memory import Memory
from timing import repeat, repeat_prepared

# libraries write to standard output too; answers keep the one that we were started with
_ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

MEMORY = 256 << 20
LENT = 1 << 30
BUFFERS = 256 << 20
GIGABYTE = 1e9


def answer(value: Any) -> None:
    """Writes one line."""
    _ANSWERS.write(json.dumps(value) + "\n")
    _ANSWERS.flush()


def started_engine(protocol: str) -> Any:
    """An engine of the API's."""
    from mooncake.engine import TransferEngine

    engine = TransferEngine()
    if engine.initialize("127.0.0.1", "P2PHANDSHAKE", protocol, "") != 0:
        raise RuntimeError("the engine doesn't start")
    return engine


def serve(protocol: str) -> None:
    """The other side: memory that is read and written, and its processor time when asked."""
    engine = started_engine(protocol)
    # memory of the engine's own, which some transports can share without a copy
    address = engine.allocate_managed_buffer(MEMORY)
    piece = 1 << 20
    for offset in range(0, MEMORY, piece):
        engine.write_bytes_to_buffer(address + offset, b"\x5a" * piece, piece)
    answer({"peer": f"127.0.0.1:{engine.get_rpc_port()}", "address": address})
    for line in sys.stdin:
        if line == "cpu\n":
            answer(time.process_time())


def lend(protocol: str, master: str) -> None:
    """A node that lends memory until its input ends."""
    store = joined_store(protocol, master, LENT)
    answer({})
    for line in sys.stdin:
        if line == "cpu\n":
            answer(time.process_time())
    store.close()


def joined_store(protocol: str, master: str, lent: int) -> Any:
    """A store of the API's that lends that many bytes to the pool."""
    from mooncake.store import MooncakeDistributedStore

    store = MooncakeDistributedStore()
    status = store.setup("127.0.0.1", "P2PHANDSHAKE", lent, BUFFERS, protocol, "", master)
    if status != 0:
        raise RuntimeError(f"setup: {status}")
    return store


class Other:
    """A process on the other side."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, __file__, *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.said: dict[str, Any] = json.loads(self._line())

    def cpu(self) -> float:
        """Its processor seconds so far."""
        self.process.stdin.write("cpu\n")
        self.process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        """Ends it."""
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _line(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the other side has ended")
        return line


class Transfers:
    """Reads and writes of a peer's memory."""

    def __init__(self, protocol: str) -> None:
        self.other = Other("serve", protocol)
        self.peer: str = self.other.said["peer"]
        self.remote: int = self.other.said["address"]
        self.engine = started_engine(protocol)
        self.memory = Memory(MEMORY)
        if self.engine.register_memory(self.memory.address, MEMORY) != 0:
            raise RuntimeError("memory isn't registered")

    def measure(self, direction: str, length: int, entries: int) -> dict[str, float]:
        """Batches of that shape for a while; bytes that were read are looked at first."""
        places = self.memory.places(length, entries)
        local = [self.memory.address + place for place in places]
        remote = [self.remote + place for place in places]
        lengths = [length] * entries
        call = getattr(self.engine, f"batch_transfer_sync_{direction}")

        def transfer() -> None:
            if call(self.peer, local, remote, lengths) != 0:
                raise RuntimeError("a transfer failed")

        if direction == "read":
            self.memory.fill(0)
            transfer()
            if not self.memory.holds(0x5A, length, places[-1]):
                raise RuntimeError("wrong bytes were read")
        else:
            self.memory.fill(0x5A)
            transfer()
        return repeat(length * entries / GIGABYTE, transfer, self.other.cpu)

    def idle(self, seconds: float) -> dict[str, float]:
        """Processor time of an engine that nobody asks for anything, in percent of one core."""
        before = self.other.cpu()
        time.sleep(seconds)
        return {"rate": (self.other.cpu() - before) / seconds * 100}

    def close(self) -> None:
        """Ends the other side."""
        self.other.close()


class Store:
    """Puts and gets of objects in pooled memory of this host: lent by this process, or by another one."""

    def __init__(self, master: str, protocol: str, own: bool) -> None:
        self.other = None if own else Other("lend", protocol, master)
        self.store = joined_store(protocol, master, LENT if own else 0)
        self.memory = Memory(64 << 20)
        if self.store.register_buffer(self.memory.address, self.memory.length) != 0:
            raise RuntimeError("memory isn't registered")
        self._made = 0

    def measure(self, verb: str, length: int, entries: int) -> dict[str, float]:
        """Batches of puts, or of gets, for a while."""
        places = [self.memory.address + place for place in self.memory.places(length, entries)]
        sizes = [length] * entries
        keys: list[str] = []

        def put() -> None:
            done = self.store.batch_put_from(keys, places, sizes)
            if any(status != 0 for status in done):
                raise RuntimeError(f"put: {done}")

        def renew() -> None:
            for key in keys:
                self.store.remove(key, True)
            self._made += 1
            keys[:] = [f"{os.getpid()}-{self._made}-{index}" for index in range(entries)]

        def get() -> None:
            done = self.store.batch_get_into(keys, places, sizes)
            if done != sizes:
                raise RuntimeError(f"get: {done}")

        self.memory.fill(0x5A)
        renew()
        put()
        if verb == "put":
            result = repeat_prepared(length * entries / GIGABYTE, put, renew)
        else:
            self.memory.fill(0)
            get()
            if not self.memory.holds(0x5A, min(length * entries, self.memory.length)):
                raise RuntimeError("wrong bytes came back")
            result = repeat(length * entries / GIGABYTE, get)
        renew()
        return result

    def exist(self, keys: int, present: int) -> dict[str, float]:
        """Batched existence checks, in keys per second; of each two keys, so many are there."""
        names = [f"exist-{os.getpid()}-{index}" for index in range(keys)]
        there = [name for index, name in enumerate(names) if index % 2 < present]
        for name in there:
            self.store.put(name, b"x" * 4096)
        wanted = [int(index % 2 < present) for index in range(keys)]

        def check() -> None:
            if self.store.batch_is_exist(names) != wanted:
                raise RuntimeError("a key's existence is told wrongly")

        result = repeat(keys, check)
        for name in there:
            self.store.remove(name, True)
        return result

    def close(self) -> None:
        """Leaves the pool."""
        self.store.close()
        if self.other is not None:
            self.other.close()


def main() -> None:
    """Answers until the input ends."""
    roles: dict[str, Callable[..., None]] = {"serve": serve, "lend": lend}
    if sys.argv[1:]:
        roles[sys.argv[1]](*sys.argv[2:])
        return
    opened: dict[str, Any] = {}
    kinds: dict[str, Callable[..., Any]] = {"transfers": Transfers, "store": Store}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["call"] == "open":
                opened[request["name"]] = kinds[request["kind"]](**request["arguments"])
                answer({"result": None})
            else:
                answer({"result": getattr(opened[request["name"]], request["call"])(**request["arguments"])})
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})
    for each in opened.values():
        each.close()


if __name__ == "__main__":
    main()
