"""Engine memory on a device: loads, dumps and their order, over the emulator of an NPU's runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from emulated_device import EmulatedDevice, built
from support import TENSOR_BYTES, binary, blocks, hashes, wait_for

import kvstored

COUNT, TENSORS = 5, 2
BLOCK_BYTES = TENSORS * TENSOR_BYTES


@pytest.fixture
def npu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedDevice]:
    program = binary()
    if program is None or built(program, "libkvstored_emulated_ascendcl.so") is None:
        pytest.skip("the program kvstored, the plugin ascend or the emulator isn't built")
    monkeypatch.setenv("KVSTORED_PROGRAM", program)
    npu = EmulatedDevice(program, folder)
    yield npu
    for name in ("FAIL_EVERY", "STALL_MS"):
        npu.set_fault(name, 0)


@pytest.fixture
def device(npu: EmulatedDevice) -> kvstored.Device:
    return kvstored.Device.open("ascend", plugin_directory=npu.directory, plugin_setting=npu.setting)


def on(base: int, tensors: int = TENSORS, tensor_bytes: int = TENSOR_BYTES) -> np.ndarray:
    """Addresses of every tensor of every block that lie one behind the other."""
    return np.uint64(base) + np.arange(COUNT * tensors, dtype=np.uint64) * np.uint64(tensor_bytes)


def test_blocks_go_from_a_device_and_come_back(
    namespace: kvstored.Namespace, npu: EmulatedDevice, device: kvstored.Device
) -> None:
    memory, names = blocks(COUNT), hashes(COUNT)
    source, target = npu.allocate(memory.nbytes), npu.allocate(memory.nbytes)
    npu.write(source, memory)
    before = device.batch_calls, device.copies
    assert namespace.dump(names, on(source), device=device).wait().all_done
    # one call of the device's library for all blocks, whatever the number of their tensors
    assert (device.batch_calls - before[0], device.copies - before[1]) == (1, COUNT * TENSORS)
    assert namespace.load(names, on(target), device=device).wait().all_done
    assert (npu.read(target, memory.nbytes) == memory.reshape(-1)).all()
    # the same blocks, into host memory
    host = np.zeros_like(memory)
    addresses = np.uint64(host.ctypes.data) + np.arange(COUNT * TENSORS, dtype=np.uint64) * np.uint64(TENSOR_BYTES)
    assert namespace.load(names, addresses).wait().all_done
    assert (host == memory).all()


def test_a_dump_waits_for_what_the_engine_computes(
    namespace: kvstored.Namespace, npu: EmulatedDevice, device: kvstored.Device
) -> None:
    memory, names = blocks(COUNT), hashes(COUNT)
    source, target = npu.allocate(memory.nbytes), npu.allocate(memory.nbytes)
    with npu.computing(source, memory):
        event = device.record(npu.stream)
        task = namespace.dump(names, on(source), device=device, after=event)
        layers = namespace.begin_dump(hashes(COUNT, seed=1))
        shards = [
            layers.put_shard(shard, np.ascontiguousarray(on(source)[shard::TENSORS]), device=device, after=event.handle)
            for shard in range(TENSORS)
        ]
        with pytest.raises(kvstored.TimedOut):
            task.wait(0.05)
        assert not event.is_reached()
        assert not any(shard.check() for shard in shards)
    assert task.wait().all_done
    assert layers.task.wait().all_done
    for seed in range(2):
        assert namespace.load(hashes(COUNT, seed), on(target), device=device).wait().all_done
        assert (npu.read(target, memory.nbytes) == memory.reshape(-1)).all()


def test_a_load_waits_for_what_the_engine_still_does(
    namespace: kvstored.Namespace, npu: EmulatedDevice, device: kvstored.Device
) -> None:
    memory, names = blocks(COUNT), hashes(COUNT)
    source, target = npu.allocate(memory.nbytes), npu.allocate(memory.nbytes)
    npu.write(source, memory)
    assert namespace.dump(names, on(source), device=device).wait().all_done
    # the blocks' former owner still writes to them
    with npu.computing(target, np.zeros(memory.nbytes, dtype=np.uint8)):
        task = namespace.load(names, on(target), device=device, after=device.record(npu.stream))
        with pytest.raises(kvstored.TimedOut):
            task.wait(0.05)
    assert task.wait().all_done
    assert (npu.read(target, memory.nbytes) == memory.reshape(-1)).all()


def test_tensors_in_several_pieces(store: kvstored.Store) -> None:
    """Keys in one place and values in another are one tensor of the block, here in host memory."""
    namespace = store.open_namespace(kvstored.Identity(model="pieces"), kvstored.Layout.uniform(2, 1, TENSOR_BYTES))
    keys, values = blocks(COUNT, tensor_bytes=1024, seed=1), blocks(COUNT, tensor_bytes=3072, seed=2)

    def addresses(keys: np.ndarray, values: np.ndarray) -> np.ndarray:
        rows = [[keys[block, layer].ctypes.data, values[block, layer].ctypes.data] for block, layer in places]
        return np.array(rows, dtype=np.uint64)

    places = [(block, layer) for block in range(COUNT) for layer in range(2)]
    names, pieces = hashes(COUNT), [1024, 3072] * 2
    assert namespace.dump(names, addresses(keys, values), pieces=pieces).wait().all_done
    whole = np.zeros((COUNT, 2, TENSOR_BYTES), dtype=np.uint8)
    assert namespace.load_tensors(names, [list(block) for block in whole]).wait().all_done
    assert (whole[:, :, :1024] == keys).all() and (whole[:, :, 1024:] == values).all()
    found = np.zeros_like(keys), np.zeros_like(values)
    assert namespace.load(names, addresses(*found), pieces=pieces).wait().all_done
    assert (found[0] == keys).all() and (found[1] == values).all()
    for wrong in ([1024, 3071] * 2, [2048, 3072] * 2, [0, 4096] * 2, [1024, 1024, 2048]):
        with pytest.raises(kvstored.InvalidInput):
            namespace.load(names, addresses(keys, values).reshape(-1)[: len(wrong) * COUNT], pieces=wrong)


def test_copies_that_fail_are_misses_and_blocks_left_out(
    namespace: kvstored.Namespace, npu: EmulatedDevice, device: kvstored.Device
) -> None:
    memory, names = blocks(COUNT), hashes(COUNT)
    source, target = npu.allocate(memory.nbytes), npu.allocate(memory.nbytes)
    npu.write(source, memory)
    npu.set_fault("FAIL_EVERY", 1)
    report = namespace.dump(names, on(source), device=device).wait()
    assert len(report.failed) == COUNT
    npu.set_fault("FAIL_EVERY", 0)
    assert not namespace.lookup(names).any()
    assert namespace.dump(names, on(source), device=device).wait().all_done
    npu.set_fault("FAIL_EVERY", 1)
    assert len(namespace.load(names, on(target), device=device).wait().failed) == COUNT
    npu.set_fault("FAIL_EVERY", 0)
    assert namespace.load(names, on(target), device=device).wait().all_done
    assert not device.is_lost


def test_what_is_refused(
    embedded: kvstored.Store, npu: EmulatedDevice, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace = embedded.open_namespace(kvstored.Identity(), kvstored.Layout.uniform(2, 1, TENSOR_BYTES))
    with pytest.raises(kvstored.InvalidInput, match="after"):
        namespace.load(hashes(COUNT), on(4096), after=1)
    device = kvstored.Device.open("ascend", plugin_directory=npu.directory, plugin_setting=npu.setting)
    with pytest.raises(kvstored.InvalidInput, match=r"tensor 0 of block 0 is on .*, not on Plugin\(ascend\)"):
        namespace.load_tensors(hashes(1), [list(blocks(1)[0])], device=device)
    with pytest.raises(kvstored.KvstoredError, match="device"):
        kvstored.Device.open("ascend", number=7, plugin_directory=npu.directory, plugin_setting=npu.setting)
    (npu.directory / "ascend.so").chmod(0o777)
    with pytest.raises(kvstored.PermissionDenied, match="mode"):
        kvstored.Device.open("ascend", plugin_directory=npu.directory)
    monkeypatch.delenv("KVSTORED_PROGRAM")
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(kvstored.InvalidInput, match="plugin_directory"):
        kvstored.Device.open("ascend")
    (npu.directory / "ascend.so").chmod(0o755)
    with pytest.raises(kvstored.Unsupported, match="KVSTORED_PROGRAM"):
        kvstored.Device.open("ascend", plugin_directory=npu.directory)


def test_an_engine_of_this_process_loads_plugins_too(npu: EmulatedDevice, folder: Path) -> None:
    """A tier in the device's memory, in an embedded engine."""
    options = {
        "pipeline": "Hbm|Cache",
        "hbm_device": "Plugin(ascend)",
        "hbm_capacity": "4MiB",
        "plugin_directory": npu.directory,
        "plugin_setting": {f"ascend.{key}": value for key, value in npu.setting.items()},
        "cache_buffer_capacity": "32MiB",
        "huge_pages": False,
    }
    memory, names = blocks(COUNT), hashes(COUNT)
    with kvstored.Store.embedded(options) as store:
        namespace = store.open_namespace(kvstored.Identity(), kvstored.Layout.uniform(2, 1, TENSOR_BYTES))
        assert namespace.dump_tensors(names, [list(block) for block in memory], durability="tier").wait().all_done
        store.drain(30)
        assert namespace.evict(names, "Cache") == COUNT
        wait_for(lambda: bool(namespace.lookup(names).all()), "the blocks' stay in Hbm")
        found = np.zeros_like(memory)
        assert namespace.load_tensors(names, [list(block) for block in found]).wait().all_done
        assert (found == memory).all()
