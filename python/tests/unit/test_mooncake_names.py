"""Engines that find one another by names in a real etcd."""

from __future__ import annotations

import gc
import shutil
import socket
import subprocess
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from mooncake_rig import Memory, PeerProcess
from support import wait_for

from kvstored.errors import InvalidInput, NotFound, Unavailable
from kvstored.mooncake.engine import TransferEngine
from kvstored.mooncake.names import EtcdNames


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def etcd(folder: Path) -> Iterator[str]:
    """The metadata server's address."""
    program = shutil.which("etcd")
    if program is None:
        pytest.skip("etcd isn't installed (Debian's package etcd-server)")
    client, peer = f"127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
    urls = [f"--listen-client-urls=http://{client}", f"--advertise-client-urls=http://{client}"]
    urls += [f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=test={peer}"]
    command = [program, "--name=test", f"--data-dir={folder / 'etcd'}", *urls]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)

    def answers() -> bool:
        assert process.poll() is None, "etcd ended"
        try:
            EtcdNames([client]).find("nobody")
        except NotFound:
            return True
        except Unavailable:
            pass
        return False

    try:
        wait_for(answers, "etcd's start")
        yield f"etcd://{client}"
    finally:
        process.kill()
        process.wait()


class NamedPeer(PeerProcess):
    """A process with an engine that has a name in etcd, and memory there."""

    def __init__(self, metadata_server: str, byte: int) -> None:
        super().__init__("kvstored.mooncake.engine", "TransferEngine")
        assert self.call("initialize", "127.0.0.1", metadata_server, "tcp", "") == 0
        self.remote = self.call("memory", 64, byte)


def test_an_engine_is_found_by_its_name(etcd: str) -> None:
    # the first member doesn't answer, the second does
    engine = TransferEngine()
    assert engine.initialize("localhost", etcd.replace("//", "//127.0.0.1:1,"), "tcp", "") == 0
    memory = Memory(64)
    assert engine.register_memory(memory.address, 64) == 0
    assert engine.transfer_sync_read("127.0.0.1", memory.address, memory.address, 64) < 0
    for byte in (7, 9):
        # one that comes back under its name has another port
        peer = NamedPeer(etcd, byte)
        try:
            wait_for(
                lambda other=peer: engine.transfer_sync_read("127.0.0.1", memory.address, other.remote, 64) == 0,
                "the peer's name",
            )
            assert memory.bytes == bytes([byte]) * 64
            assert engine.send_probe("127.0.0.1") == 0
        finally:
            peer.kill()


def test_a_name_goes_with_its_engine(etcd: str) -> None:
    engine = TransferEngine()
    assert engine.initialize("127.0.0.1", etcd, "tcp", "") == 0
    names = EtcdNames.at(etcd)
    assert names.find("127.0.0.1") == f"127.0.0.1:{engine.get_rpc_port()}"
    del engine
    names.forget("127.0.0.1")
    with pytest.raises(NotFound):
        names.find("127.0.0.1")


def test_an_engine_ends_with_its_last_reference(etcd: str) -> None:
    engine = TransferEngine()
    # a member that couldn't be reached and a failure that was logged don't keep it
    assert engine.initialize("127.0.0.1", etcd.replace("//", "//127.0.0.1:1,"), "tcp", "") == 0
    assert engine.send_probe("nobody") < 0
    ended = weakref.ref(engine)
    gc.disable()
    try:
        del engine
        assert ended() is None
    finally:
        gc.enable()


def test_without_etcd_an_engine_does_not_start() -> None:
    assert TransferEngine().initialize("127.0.0.1", "etcd://127.0.0.1:1", "tcp", "") < 0
    assert TransferEngine().initialize("127.0.0.1", "etcd://", "tcp", "") < 0


def test_addresses_of_metadata_servers() -> None:
    assert EtcdNames.at("P2PHANDSHAKE") is None
    assert EtcdNames.at("http://127.0.0.1:8080/metadata") is None
    for wrong in ("etcd://", "etcd://a,,b", "etcd://a/b"):
        with pytest.raises(InvalidInput):
            EtcdNames.at(wrong)
