"""Mooncake's transfer engine between two real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from mooncake_rig import EnginePeer, Memory
from support import PATIENCE, python, wait_for

import kvstored
from kvstored import mooncake
from kvstored.mooncake import codes
from kvstored.mooncake.engine import TransferEngine, TransferNotify, TransferOpcode

LENGTH = 1 << 20


def started(protocol: str = "tcp") -> TransferEngine:
    engine = TransferEngine()
    assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", protocol, "") == 0
    return engine


@pytest.fixture(params=["tcp", "shm"])
def protocol(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def peer(protocol: str) -> Iterator[EnginePeer]:
    other = EnginePeer(protocol)
    yield other
    other.close()


@pytest.fixture
def engine(protocol: str) -> TransferEngine:
    return started(protocol)


@pytest.fixture
def memory(engine: TransferEngine) -> Iterator[Memory]:
    made = Memory(LENGTH)
    assert engine.register_memory(made.address, made.length) == 0
    yield made
    engine.unregister_memory(made.address)


@pytest.fixture(params=["registered", "managed"])
def remote(request: pytest.FixtureRequest, peer: EnginePeer) -> int:
    """Address of the peer's memory, all of it b"\\x07"."""
    if request.param == "registered":
        return peer.call("memory", LENGTH, 7)
    address = peer.call("allocate_managed_buffer", LENGTH)
    assert peer.call("write_bytes_to_buffer", address, "\x07" * LENGTH, LENGTH) == 0
    return address


def test_bytes_go_both_ways(engine: TransferEngine, peer: EnginePeer, memory: Memory, remote: int) -> None:
    assert engine.transfer_sync_read(peer.name, memory.address, remote, LENGTH) == 0
    assert memory.bytes == b"\x07" * LENGTH
    memory.write(b"written here")
    assert engine.transfer_sync_write(peer.name, memory.address, remote + LENGTH - 12, 12) == 0
    assert peer.call("read_bytes_from_buffer", remote + LENGTH - 13, 13) == "\x07written here"


def test_a_batch_goes_as_a_whole(engine: TransferEngine, peer: EnginePeer, memory: Memory, remote: int) -> None:
    places = [index * 5000 for index in range(100)]
    memory.write(b"".join(bytes([index]) * 5000 for index in range(100)))
    local = [memory.address + place for place in places]
    there = [remote + place for place in reversed(places)]
    assert engine.batch_transfer_sync_write(peer.name, local, there, [5000] * 100) == 0
    memory.write(bytes(500_000))
    # arrays serve as well as lists
    arrays = [np.array(values, dtype=np.uint64) for values in (local, there, [5000] * 100)]
    assert engine.batch_transfer_sync_read(peer.name, *arrays) == 0
    assert memory.bytes[:500_000] == b"".join(bytes([index]) * 5000 for index in range(100))
    assert peer.call("read_bytes_from_buffer", remote, 3) == "\x63\x63\x63"
    assert engine.batch_transfer_sync_write(peer.name, [], [], []) == 0
    assert engine.batch_transfer_sync_write(peer.name, local[:1], there[:2], [1]) < 0
    # one bad entry fails the batch
    assert engine.batch_transfer_sync_read(peer.name, local[:2], [remote, remote + LENGTH], [8, 8]) < 0


def test_transfers_in_the_background(engine: TransferEngine, peer: EnginePeer, memory: Memory, remote: int) -> None:
    half = LENGTH // 2
    batches = [
        engine.batch_transfer_async_read(peer.name, [memory.address + part * half], [remote + part * half], [half])
        for part in range(2)
    ]
    assert len(set(batches)) == 2
    assert min(batches) > 0
    assert engine.get_batch_transfer_status(batches) == 0
    assert memory.bytes == b"\x07" * LENGTH
    # they are forgotten then
    assert engine.get_batch_transfer_status(batches) == -1
    assert engine.batch_transfer_async_write(peer.name, [memory.address], [remote], [0, 1]) == 0
    batch = engine.batch_transfer_async_write(peer.name, [memory.address], [remote + LENGTH], [1])
    assert batch == 0 or engine.get_batch_transfer_status([batch]) == -1
    one = engine.transfer_submit_write(peer.name, memory.address, remote, 100)
    wait_for(lambda: engine.transfer_check_status(one) == 1, "the write")
    assert engine.transfer_check_status(one) == -1


def test_only_registered_memory_is_reached(
    engine: TransferEngine, peer: EnginePeer, memory: Memory, remote: int
) -> None:
    loose = Memory(4096)
    assert engine.transfer_sync_read(peer.name, loose.address, remote, 100) < 0
    assert engine.transfer_sync_read(peer.name, memory.address + LENGTH - 50, remote, 100) < 0
    for address in (remote - 1, remote + LENGTH - 99, remote + LENGTH, 4096, (1 << 64) - 50):
        assert engine.transfer_sync_read(peer.name, memory.address, address, 100) < 0
        assert engine.transfer_sync_write(peer.name, memory.address, address, 100) < 0
    assert engine.transfer_sync_read(peer.name, memory.address, remote, (1 << 64) - 1) < 0
    assert memory.bytes == bytes(LENGTH)
    assert loose.bytes == bytes(4096)
    with pytest.raises(kvstored.InvalidInput):
        engine.read_bytes_from_buffer(loose.address, 1)
    assert engine.write_bytes_to_buffer(loose.address, b"x", 1) < 0
    assert engine.write_bytes_to_buffer(memory.address, b"x", 2) < 0
    # what was refused has broken nothing
    assert engine.transfer_sync_read(peer.name, memory.address, remote, 100) == 0


def test_memory_that_is_no_longer_registered_is_out_of_reach(
    engine: TransferEngine, peer: EnginePeer, memory: Memory
) -> None:
    remote = peer.call("memory", 8192, 9)
    assert engine.transfer_sync_read(peer.name, memory.address, remote, 8192) == 0
    assert peer.call("unregister_memory", remote) == 0
    assert engine.transfer_sync_read(peer.name, memory.address, remote, 8192) < 0
    assert engine.transfer_sync_write(peer.name, memory.address, remote, 8192) < 0
    # registered anew it is there again, whatever was known of it before
    assert peer.call("register_memory", remote, 4096) == 0
    assert engine.transfer_sync_read(peer.name, memory.address, remote, 4096) == 0
    assert engine.transfer_sync_read(peer.name, memory.address, remote, 8192) < 0


def test_registering_answers_with_mooncakes_numbers(engine: TransferEngine, memory: Memory) -> None:
    assert engine.register_memory(memory.address, LENGTH) == codes.ADDRESS_OVERLAPPED == -7
    assert engine.register_memory(memory.address + 100, 8) == codes.ADDRESS_OVERLAPPED
    other = Memory(4096)
    # all or none
    assert engine.batch_register_memory([other.address, memory.address], [4096, 10]) == codes.ADDRESS_OVERLAPPED
    assert engine.unregister_memory(other.address) == codes.ADDRESS_NOT_REGISTERED == -3
    assert engine.batch_register_memory([other.address], []) == codes.INVALID_ARGUMENT
    assert engine.register_memory(0, 4096) < 0
    assert engine.register_memory(other.address, 0) < 0
    assert engine.batch_register_memory([other.address], [4096]) == 0
    assert engine.batch_unregister_memory([other.address]) == 0


def test_managed_buffers(engine: TransferEngine) -> None:
    first, second = engine.allocate_managed_buffer(5000), engine.allocate_managed_buffer(5000)
    assert first and second and abs(first - second) >= 5000
    assert engine.write_bytes_to_buffer(first, "hällo", 6) == 0
    assert engine.read_bytes_from_buffer(first, 6) == "hällo".encode()
    assert engine.free_managed_buffer(first, 5000) == 0
    assert engine.free_managed_buffer(first, 5000) == codes.ADDRESS_NOT_REGISTERED
    with pytest.raises(kvstored.InvalidInput):
        engine.read_bytes_from_buffer(first, 1)
    assert engine.free_managed_buffer(second, 5000) == 0
    assert engine.allocate_managed_buffer(0) == 0
    assert engine.allocate_managed_buffer(1 << 62) == 0


def test_messages_and_probes(engine: TransferEngine, peer: EnginePeer, memory: Memory) -> None:
    remote = peer.call("allocate_managed_buffer", 100)
    assert peer.call("get_notifies") == []
    notify = TransferNotify("nämé", "message")
    write = TransferOpcode.Write
    assert engine.transfer_sync(peer.name, memory.address, remote, 10, write, notify) == 0
    wait_for(lambda: peer.call("get_notifies") == [{"name": "nämé", "msg": "message"}], "the message")
    assert peer.call("get_notifies") == []
    # none for a transfer that failed
    assert engine.transfer_sync(peer.name, memory.address, 4096, 10, write, notify) < 0
    assert engine.send_probe(peer.name) == 0
    assert peer.call("get_notifies") == []
    assert engine.send_probe("127.0.0.1:1") == codes.SOCKET == -102
    assert engine.get_notifies() == []


def test_the_first_buffer_of_a_peer(engine: TransferEngine, peer: EnginePeer) -> None:
    assert engine.get_first_buffer_address(peer.name) == 0
    remote = peer.call("allocate_managed_buffer", 100)
    peer.call("memory", 100, 1)
    assert engine.get_first_buffer_address(peer.name) == remote
    assert engine.get_first_buffer_address("127.0.0.1:1") == 0


def test_a_peer_that_dies_fails_what_it_held_and_no_other(
    engine: TransferEngine, peer: EnginePeer, memory: Memory, protocol: str
) -> None:
    remote = peer.call("memory", LENGTH, 7)
    other = EnginePeer(protocol)
    try:
        there = other.call("memory", LENGTH, 8)
        assert engine.transfer_sync_read(peer.name, memory.address, remote, LENGTH) == 0
        peer.kill()
        for _ in range(3):
            assert engine.transfer_sync_read(peer.name, memory.address, remote, LENGTH) < 0
        assert engine.transfer_sync_read(other.name, memory.address, there, LENGTH) == 0
        assert memory.bytes == b"\x08" * LENGTH
    finally:
        other.close()


def test_an_engine_that_comes_back_is_opened_anew(memory_engine: Callable[[], tuple[TransferEngine, Memory]]) -> None:
    engine, memory = memory_engine()
    peer = EnginePeer()
    remote = peer.call("memory", 4096, 7)
    assert engine.transfer_sync_read(peer.name, memory.address, remote, 4096) == 0
    port = peer.name.rpartition(":")[2]
    peer.kill()
    assert engine.transfer_sync_read(peer.name, memory.address, remote, 4096) < 0
    again = EnginePeer.__new__(EnginePeer)
    super(EnginePeer, again).__init__("kvstored.mooncake.engine", "TransferEngine")
    try:
        assert again.call("initialize", f"127.0.0.1:{port}", "P2PHANDSHAKE", "tcp", "") == 0
        there = again.call("memory", 4096, 9)
        assert engine.transfer_sync_read(f"127.0.0.1:{port}", memory.address, there, 4096) == 0
        assert memory.bytes[:4096] == b"\x09" * 4096
    finally:
        again.close()


def test_other_threads_run_while_one_waits(
    memory_engine: Callable[[], tuple[TransferEngine, Memory]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MC_TRANSFER_TIMEOUT", "5")
    engine, memory = memory_engine()
    peer = EnginePeer()
    try:
        remote = peer.call("memory", LENGTH, 7)
        assert engine.transfer_sync_read(peer.name, memory.address, remote, LENGTH) == 0
        peer.pause()
        results: list[int] = []
        waiting = threading.Thread(
            target=lambda: results.append(engine.transfer_sync_read(peer.name, memory.address, remote, LENGTH))
        )
        waiting.start()
        turns = 0
        while waiting.is_alive():
            turns += 1
            time.sleep(0.001)
        waiting.join()
        assert turns > 100
        assert results[0] < 0
    finally:
        peer.close()


def test_several_threads_at_once(engine: TransferEngine, peer: EnginePeer, memory: Memory) -> None:
    remote = peer.call("allocate_managed_buffer", LENGTH)
    part = LENGTH // 8
    failures: list[int] = []

    def work(number: int) -> None:
        own, there = memory.address + number * part, remote + number * part
        for turn in range(30):
            memory.write(bytes([number + turn]) * part, number * part)
            status = engine.transfer_sync_write(peer.name, own, there, part)
            memory.write(bytes(part), number * part)
            status = status or engine.transfer_sync_read(peer.name, own, there, part)
            expected = bytes([number + turn]) * part
            if status != 0 or memory.bytes[number * part : (number + 1) * part] != expected:
                failures.append(number)

    threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert failures == []


def test_what_an_engine_cannot_start_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for host, protocol in [
        ("127.0.0.1", "ascend"),
        ("127.0.0.1", "pigeon"),
        ("", "tcp"),
        ("127.0.0.1:99999", "tcp"),
        ("no-such-host.invalid", "tcp"),
        # an open port without a token
        ("0.0.0.0", "tcp"),
    ]:
        engine = TransferEngine()
        assert engine.initialize(host, "P2PHANDSHAKE", protocol, "") < 0, (host, protocol)
        assert engine.get_rpc_port() < 0
    engine = started()
    assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") < 0
    monkeypatch.setenv("KVSTORED_TRANSFER_TOKEN_FILE", str(folder / "missing"))
    assert TransferEngine().initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") < 0
    monkeypatch.delenv("KVSTORED_TRANSFER_TOKEN_FILE")
    monkeypatch.setenv("KVSTORED_TRANSFER_TLS_KEY", str(folder / "missing"))
    assert TransferEngine().initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") < 0


def test_an_engine_that_was_not_initialized_refuses_everything() -> None:
    engine = TransferEngine()
    memory = Memory(64)
    assert engine.register_memory(memory.address, 64) < 0
    assert engine.transfer_sync_read("127.0.0.1:1", memory.address, memory.address, 64) < 0
    assert engine.batch_transfer_async_read("127.0.0.1:1", [memory.address], [memory.address], [64]) == 0
    assert engine.allocate_managed_buffer(64) == 0
    assert engine.get_notifies() == []
    assert engine.send_probe("127.0.0.1:1") < 0


def test_a_fork_has_no_engine(engine: TransferEngine) -> None:
    memory = Memory(64)
    child = os.fork()
    if child == 0:
        status = engine.register_memory(memory.address, 64)
        os._exit(0 if status < 0 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert engine.register_memory(memory.address, 64) == 0


def test_engines_leave_nothing_behind() -> None:
    def there_are() -> tuple[int, int, int]:
        """Open files, Python's threads, all threads."""
        return len(os.listdir("/proc/self/fd")), threading.active_count(), len(os.listdir("/proc/self/task"))

    def once() -> None:
        engine = started()
        memory = Memory(64)
        assert engine.register_memory(memory.address, 64) == 0
        assert engine.allocate_managed_buffer(4096) != 0

    once()
    # the first one's may still be going, and are fewer than ten engines'
    before = there_are()
    for _ in range(10):
        once()
    wait_for(
        lambda: all(now <= then for now, then in zip(there_are(), before, strict=True)),
        "the end of all engines' threads and files",
    )


def test_mooncake_is_ours_where_it_is_asked_for() -> None:
    code = "from mooncake.engine import TransferEngine; print(TransferEngine.__module__)"
    installed = python("from kvstored.mooncake import install_shim; install_shim(); install_shim();" + code)
    assert installed.stdout == "kvstored.mooncake.engine\n", installed.stderr
    shown = subprocess.run([sys.executable, "-m", "kvstored.mooncake"], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == str(mooncake.shim_folder())
    environment = {**os.environ, "PYTHONPATH": shown.stdout.strip()}
    started = subprocess.run(
        [sys.executable, "-c", code + "; from mooncake.store import MooncakeDistributedStore"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert started.stdout == "kvstored.mooncake.engine\n", started.stderr
    late = python(
        "import types, sys; sys.modules['mooncake'] = types.ModuleType('mooncake');"
        "sys.modules['mooncake'].__file__ = '/other/mooncake/__init__.py';"
        "from kvstored.mooncake import install_shim; install_shim()"
    )
    assert "imported already" in late.stderr


@pytest.fixture
def memory_engine() -> Callable[[], tuple[TransferEngine, Memory]]:
    """Makes an engine with registered memory, when the test wants it."""

    def make() -> tuple[TransferEngine, Memory]:
        engine, memory = started(), Memory(LENGTH)
        assert engine.register_memory(memory.address, memory.length) == 0
        return engine, memory

    return make
