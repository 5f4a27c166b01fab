"""The transport `ascend` in Python's processes: the plugin `hixl` on an emulator of its library."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lab import plugged_hixl
from lab.ports import free_ports
from mooncake_rig import EnginePeer, Master, Memory, PeerProcess
from support import PATIENCE, binary, wait_for

from kvstored import InvalidInput
from kvstored._native import Handoff
from kvstored.mooncake.engine import TransferEngine
from kvstored.mooncake.plugged import KEYS, PluggedTransport
from kvstored.mooncake.store import MooncakeDistributedStore

MIB = 1 << 20


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS.values():
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def variables(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What names the plugin, in this process's environment too."""
    named = plugged_hixl.environment(plugged_hixl.plugin_directory(folder), free_ports(plugged_hixl.PORTS))
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    return named


@pytest.fixture
def peer(variables: dict[str, str]) -> Iterator[EnginePeer]:
    started = EnginePeer("ascend", variables)
    yield started
    started.close()


def moved(counters: list[dict[str, Any]], transport: str) -> tuple[int, int]:
    """Bytes read and written over a transport, by whoever asked."""
    rows = [row for row in counters if row["transport"] == transport and not row["served"]]
    return sum(row["read_bytes"] for row in rows), sum(row["written_bytes"] for row in rows)


def test_an_engine_reads_and_writes_over_the_plugin(peer: EnginePeer) -> None:
    engine = TransferEngine()
    assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "ascend", "") == 0
    remote, memory = peer.call("memory", MIB, 7), Memory(MIB)
    assert engine.register_memory(memory.address, MIB) == 0
    assert engine.transfer_sync_read(peer.name, memory.address, remote, MIB) == 0
    assert memory.bytes == b"\x07" * MIB
    memory.write(b"\x09" * MIB)
    assert engine.transfer_sync_write(peer.name, memory.address, remote, MIB) == 0
    memory.write(bytes(MIB))
    assert engine.transfer_sync_read(peer.name, memory.address, remote, MIB) == 0
    assert memory.bytes == b"\x09" * MIB
    assert (moved(engine.counters(), "ascend"), moved(engine.counters(), "tcp")) == ((2 * MIB, MIB), (0, 0))
    assert engine.unregister_memory(memory.address) == 0


def test_a_peer_without_the_plugin_is_reached_over_tcp(variables: dict[str, str]) -> None:
    peer = EnginePeer("tcp")
    try:
        engine = TransferEngine()
        assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "ascend", "") == 0
        remote, memory = peer.call("memory", 4096, 5), Memory(4096)
        assert engine.register_memory(memory.address, 4096) == 0
        assert engine.transfer_sync_read(peer.name, memory.address, remote, 4096) == 0
        assert memory.bytes == b"\x05" * 4096
        assert (moved(engine.counters(), "ascend"), moved(engine.counters(), "tcp")) == ((0, 0), (4096, 0))
        assert engine.unregister_memory(memory.address) == 0
    finally:
        peer.close()


def test_a_store_gets_objects_over_the_plugin(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    # this process has it as keys of its setup
    for name in KEYS.values():
        monkeypatch.delenv(name, raising=False)
    first_port = free_ports(plugged_hixl.PORTS)
    own = {
        "pool_ascend": "Plugin(hixl)",
        "plugin_directory": variables["KVSTORED_PLUGIN_DIRECTORY"],
        "plugin_setting": plugged_hixl.settings(first_port),
        "plugin_timeout_ms": 3000,
    }
    with Master(str(binary())) as master:
        lender = PeerProcess("kvstored.mooncake.store", "MooncakeDistributedStore", variables)
        store = MooncakeDistributedStore()
        try:
            joined = lender.call("setup", "127.0.0.1", "P2PHANDSHAKE", 16 * MIB, MIB, "ascend", "", master.address)
            assert joined == 0
            setup = {"local_hostname": "127.0.0.1", "global_segment_size": 0, "local_buffer_size": MIB}
            setup |= {"protocol": "ascend", "master_server_addr": master.address}
            assert store.setup(setup | own) == 0
            value = bytes(range(256)) * 1024
            assert store.put("key", value) == 0
            assert store.get("key") == value
            read, written = moved(store.counters(), "ascend")
            assert read >= len(value) and written >= len(value)
            assert moved(store.counters(), "tcp") == (0, 0)
        finally:
            store.close()
            lender.close()


def test_a_hand_off_pulls_over_the_plugin(variables: dict[str, str]) -> None:
    plugged = PluggedTransport.configured()
    count, tensor = 8, 4096
    sides = []
    for index, engine_id in enumerate(("prefill", "decode")):
        handoff = Handoff.start("127.0.0.1:0", ["ascend", "tcp"], None, None, None, None, ascend=plugged)
        memory = np.full((count, tensor), index + 1, np.uint8)
        layers = [("layer", [(memory.ctypes.data, memory.nbytes, tensor, tensor, 1, 1)])]
        rank = {"total_heads": 1, "first_head": 0, "heads": 1, "tp_rank": 0, "tp_size": 1, "pp_rank": 0, "pp_size": 1}
        handoff.describe(engine_id=engine_id, fingerprint=b"same", block_tokens=16, layers=layers, **rank)
        sides.append((handoff, memory))
    (prefill, _), (decode, here) = sides
    try:
        prefill.hold("request", [0, 1, 2, 3], PATIENCE)
        decode.pull(
            "mine",
            remote_engine_id="prefill",
            remote_request="request",
            producers=[prefill.address],
            blocks=[4, 5, 6, 7],
            first_block=0,
            timeout=PATIENCE,
        )
        pulled: list[Any] = []
        wait_for(lambda: bool(pulled.extend(decode.take_pulled()) or pulled), "the pull's end")
        assert pulled == [("mine", [], "")]
        assert here[:4].min() == here[:4].max() == 2
        assert here[4:].min() == here[4:].max() == 1
        statistics = decode.statistics()
        assert statistics["pulled_bytes_ascend"] >= 4 * tensor
        assert statistics["pulled_bytes_tcp"] == 0
        assert prefill.statistics()["served_bytes_ascend"] == statistics["pulled_bytes_ascend"]
    finally:
        decode.close(PATIENCE)
        prefill.close(PATIENCE)


def test_without_a_plugin_it_is_said_what_is_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "kvstored.mooncake")
    assert TransferEngine().initialize("127.0.0.1", "P2PHANDSHAKE", "ascend", "") < 0
    assert "KVSTORED_POOL_ASCEND" in caplog.text
    monkeypatch.setenv("KVSTORED_POOL_ASCEND", "hixl")
    monkeypatch.setenv("KVSTORED_PLUGIN_DIRECTORY", str(folder))
    assert TransferEngine().initialize("127.0.0.1", "P2PHANDSHAKE", "ascend", "") < 0
    assert "Plugin(hixl)" in caplog.text
    # whoever doesn't use it isn't asked for more
    engine = TransferEngine()
    assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"plugin_setting": "hixl.address"}, "hixl.address"),
        ({"plugin_timeout_ms": "soon"}, "plugin_timeout_ms"),
        ({"plugin_directory": 3.5}, "plugin_directory"),
        ({"pool_ascend": True}, "pool_ascend"),
    ],
)
def test_settings_that_cannot_be_are_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput) as error:
        PluggedTransport.configured({"pool_ascend": "Plugin(hixl)"} | given)
    assert words in str(error.value)


def test_devices_have_their_own_values() -> None:
    addresses = ["10.0.0.1", "10.0.0.2"]
    given = {"pool_ascend": "Plugin(hixl)", "plugin_setting": {"hixl.address": addresses, "hixl.placement": "device"}}
    with pytest.raises(InvalidInput, match=r"hixl\.address is a list"):
        PluggedTransport.configured(given)
    told = PluggedTransport.configured(given, by_device=True)
    assert told is not None
    for number, address in enumerate(addresses):
        settings = {"hixl.address": address, "hixl.placement": "device"}
        assert told.of_device(number) == PluggedTransport("Plugin(hixl)", settings=settings)
    with pytest.raises(InvalidInput, match=r"hixl\.address has 2 values and none for device 2"):
        told.of_device(2)


def test_what_is_given_stands_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PluggedTransport.configured() is None
    monkeypatch.setenv("KVSTORED_POOL_ASCEND", "Plugin(hixl)")
    monkeypatch.setenv("KVSTORED_PLUGIN_DIRECTORY", "/opt/plugins")
    monkeypatch.setenv("KVSTORED_PLUGIN_SETTING", "hixl.address=10.0.0.1; hixl.listen=10.0.0.1:26000-26007;")
    monkeypatch.setenv("KVSTORED_PLUGIN_TIMEOUT_MS", "100")
    told = {"hixl.address": "10.0.0.1", "hixl.listen": "10.0.0.1:26000-26007"}
    assert PluggedTransport.configured() == PluggedTransport("Plugin(hixl)", "/opt/plugins", told, 100)
    given = {"plugin_directory": Path("/srv/plugins"), "plugin_setting": {"hixl.device": 3}}
    expected = PluggedTransport("Plugin(hixl)", "/srv/plugins", {"hixl.device": "3"}, 100)
    assert PluggedTransport.configured(given) == expected
