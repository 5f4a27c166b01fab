"""The worker's side of vLLM's connector, and the store for UCM, with KV on a device: an emulator of an NPU's runtime.

Torch knows no such device here, so tensors and torch's module for it are stand-ins that hold addresses and handles of
the emulator; what is copied is real.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from emulated_device import DeviceTensor, EmulatedDevice, built
from lab import daemon_binary

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from kvstored import Identity, InvalidInput, Layout, Unsupported  # noqa: E402
from kvstored.vllm.configuration import ConnectorSettings  # noqa: E402
from kvstored.vllm.device import open_memory  # noqa: E402
from kvstored.vllm.geometry import BlockAddresses  # noqa: E402
from kvstored.vllm.handoff.shape import require_host_memory  # noqa: E402
from kvstored.vllm.hosting import Seat, StoreAccess  # noqa: E402
from kvstored.vllm.measures import Accumulator  # noqa: E402
from kvstored.vllm.metadata import DumpRun, LoadRun, StepMetadata, Variant  # noqa: E402
from kvstored.vllm.namespaces import NamespaceCache  # noqa: E402
from kvstored.vllm.worker import WorkerSide  # noqa: E402

LAYERS, BLOCKS, HALF = 3, 8, 2048
PAGE = 2 * HALF
NAMES = [f"model.layers.{layer}.attn" for layer in range(LAYERS)]
TIMEOUT_MS = 20_000


def tensor(address: int, shape: tuple[int, ...], kind: str = "npu", index: int = 0) -> DeviceTensor:
    """A layer's tensor, by where it lies."""
    return DeviceTensor(address, torch.empty(shape, dtype=torch.float16, device="meta"), kind, index)


class Engine:
    """An engine's KV on the device: keys and values in tensors of their own, as on NPUs, and the connector's worker."""

    def __init__(self, npu: EmulatedDevice, settings: ConnectorSettings) -> None:
        self.npu = npu
        self.keys = [npu.allocate(BLOCKS * HALF) for _ in range(LAYERS)]
        self.values = [npu.allocate(BLOCKS * HALF) for _ in range(LAYERS)]
        shape = (BLOCKS, 16, 1, HALF // 32)
        caches = {
            name: (tensor(self.keys[layer], shape), tensor(self.values[layer], shape))
            for layer, name in enumerate(NAMES)
        }
        group = SimpleNamespace(layer_names=NAMES, kv_cache_spec=SimpleNamespace(page_size_bytes=PAGE, block_size=16))
        config = SimpleNamespace(num_blocks=BLOCKS, kv_cache_groups=[group])
        self.addresses = BlockAddresses(caches, config)
        self.memory = open_memory(caches, settings)
        self.access = StoreAccess(settings, "engine", seat=Seat.ALONE, call_timeout_ms=5000)
        self.namespaces = NamespaceCache(self.access, Identity(model="m"), self.addresses.layout)
        self.statistics = Accumulator()
        self.worker = WorkerSide(settings, self.namespaces, self.addresses, self.memory, self.statistics, dumps=True)
        self.step = 0

    def metadata(self, **what: Any) -> StepMetadata:
        self.step += 1
        return StepMetadata(step=self.step, **what)

    def read(self, block: int) -> np.ndarray:
        """A block as it is stored: of each layer keys, then values."""
        parts = [
            self.npu.read(base + block * HALF, HALF)
            for layer in range(LAYERS)
            for base in (self.keys[layer], self.values[layer])
        ]
        return np.concatenate(parts)

    def write(self, blocks: list[int], seed: int) -> None:
        generator = np.random.default_rng(seed)
        for base in self.keys + self.values:
            for block in blocks:
                self.npu.write(base + block * HALF, generator.integers(0, 256, HALF, dtype=np.uint8))

    def settle(self) -> None:
        """Until no dump reads the engine's memory any more."""
        self.worker.close(30.0)

    def close(self) -> None:
        self.worker.close(5.0)
        self.access.close()


@pytest.fixture
def npu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> EmulatedDevice:
    program = daemon_binary()
    if program is None or built(str(program), "libkvstored_emulated_ascendcl.so") is None:
        pytest.skip("the program kvstored, the plugin ascend or the emulator isn't built")
    monkeypatch.setenv("KVSTORED_PROGRAM", str(program))
    npu = EmulatedDevice(str(program), folder)
    monkeypatch.setattr(torch, "npu", npu.torch_module(), raising=False)
    return npu


@pytest.fixture
def start(npu: EmulatedDevice) -> Iterator[Callable[..., Engine]]:
    made: list[Engine] = []

    def make(**settings: Any) -> Engine:
        if settings.get("use_layerwise"):
            settings["load_async"] = False
        made.append(
            Engine(
                npu,
                ConnectorSettings(
                    daemon="off",
                    options={"pipeline": "Cache", "cache_buffer_capacity": "32MiB", "huge_pages": False},
                    kv_device_directory=str(npu.directory),
                    kv_device_setting=npu.setting,
                    **settings,
                ),
            )
        )
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def names(count: int) -> list[bytes]:
    return [index.to_bytes(32, "little") for index in range(1, count + 1)]


def dump_run(block_ids: list[int], *, computed_before: bool = False) -> DumpRun:
    return DumpRun("r", Variant(), names(len(block_ids)), block_ids, computed_before=computed_before)


def load_run(block_ids: list[int], *, asynchronous: bool) -> LoadRun:
    return LoadRun("r", Variant(), names(len(block_ids)), block_ids, asynchronous=asynchronous, timeout_ms=TIMEOUT_MS)


def wait_until_loaded(engine: Engine) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        _, loaded = engine.worker.finished()
        if loaded:
            assert loaded == {"r"}
            return
        engine.npu.synchronize()
        time.sleep(0.001)
    raise AssertionError("the load didn't end")


def test_blocks_are_stored_after_the_forward_pass_and_come_back(start: Callable[..., Engine]) -> None:
    engine = start()
    assert engine.addresses.layout == Layout(shards=((PAGE,),) * LAYERS)
    engine.write([0, 1, 2], seed=1)
    # the forward pass is called for, and goes on while the hooks are called
    late = np.random.default_rng(9).integers(0, 256, HALF, dtype=np.uint8)
    with engine.npu.computing(engine.values[LAYERS - 1] + 2 * HALF, late):
        engine.worker.end_step(engine.metadata(dumps=[dump_run([0, 1, 2])]))
        assert engine.worker.report().dumps_done_through < engine.step
    expected = [engine.read(block) for block in (0, 1, 2)]
    assert (expected[2][-HALF:] == late).all()
    engine.settle()
    assert engine.worker.report().dumps_done_through >= engine.step
    engine.worker.start_loads(engine.metadata(loads=[load_run([5, 6, 7], asynchronous=True)]))
    wait_until_loaded(engine)
    assert engine.worker.take_failed_blocks() == set()
    for block, content in zip((5, 6, 7), expected, strict=True):
        assert (engine.read(block) == content).all()


def test_layer_by_layer(start: Callable[..., Engine]) -> None:
    engine = start(use_layerwise=True)
    metadata = engine.metadata(dumps=[dump_run([0, 1])])
    for layer, name in enumerate(NAMES):
        keys = np.full(2 * HALF, layer + 1, dtype=np.uint8)
        with engine.npu.computing(engine.keys[layer], keys):
            engine.worker.save_layer(metadata, name)
    engine.worker.end_step(metadata)
    expected = [engine.read(block) for block in (0, 1)]
    assert [int(expected[0][2 * layer * HALF]) for layer in range(LAYERS)] == [1, 2, 3]
    engine.settle()
    # a former owner of the blocks is still being written
    with engine.npu.computing(engine.keys[0] + 4 * HALF, np.zeros(2 * HALF, dtype=np.uint8)):
        metadata = engine.metadata(loads=[load_run([4, 5], asynchronous=False)])
        engine.worker.start_loads(metadata)
    for name in NAMES:
        engine.worker.wait_for_layer(name)
    engine.worker.end_step(metadata)
    assert engine.worker.take_failed_blocks() == set()
    for block, content in zip((4, 5), expected, strict=True):
        assert (engine.read(block) == content).all()


def test_without_events_the_stream_is_waited_for(start: Callable[..., Engine]) -> None:
    engine = start(enable_event_sync=False)
    waited: list[int] = []
    stream = torch.npu.current_stream(0)
    stream.synchronize = lambda: (waited.append(1), engine.npu.synchronize())
    engine.write([0], seed=3)
    expected = engine.read(0)
    engine.worker.end_step(engine.metadata(dumps=[dump_run([0])]))
    assert waited == [1]
    engine.settle()
    engine.worker.start_loads(engine.metadata(loads=[load_run([3], asynchronous=True)]))
    assert waited == [1, 1]
    wait_until_loaded(engine)
    assert (engine.read(3) == expected).all()


def test_a_device_that_fails_costs_hits_only(start: Callable[..., Engine]) -> None:
    engine = start()
    engine.write([0, 1], seed=4)
    engine.worker.end_step(engine.metadata(dumps=[dump_run([0, 1])]))
    engine.settle()
    engine.npu.set_fault("FAIL_EVERY", 1)
    try:
        engine.worker.start_loads(engine.metadata(loads=[load_run([6, 7], asynchronous=True)]))
        wait_until_loaded(engine)
        assert engine.worker.take_failed_blocks() == {6, 7}
    finally:
        engine.npu.set_fault("FAIL_EVERY", 0)
    engine.worker.start_loads(engine.metadata(loads=[load_run([6, 7], asynchronous=True)]))
    wait_until_loaded(engine)
    assert engine.worker.take_failed_blocks() == set()
    assert (engine.read(6) == engine.read(0)).all() and (engine.read(7) == engine.read(1)).all()


def test_blocks_that_a_lost_device_may_still_write_are_never_given_back(start: Callable[..., Engine]) -> None:
    engine = start()
    engine.write([0], seed=6)
    engine.worker.end_step(engine.metadata(dumps=[dump_run([0])]))
    engine.settle()
    engine.npu.set_fault("STALL_MS", 9000)
    try:
        late = load_run([4], asynchronous=True)
        late.timeout_ms = 100
        engine.worker.start_loads(engine.metadata(loads=[late]))
        device = engine.memory.device
        assert device is not None
        until = time.monotonic() + 30
        while not device.is_lost:
            assert time.monotonic() < until
            time.sleep(0.05)
        for _ in range(20):
            assert engine.worker.finished() == (set(), set())
            time.sleep(0.05)
        # nothing is begun with it any more, and what isn't begun can be computed
        engine.worker.start_loads(engine.metadata(loads=[load_run([5], asynchronous=True)]))
        assert engine.worker.finished()[1] == {"r"}
        assert 5 in engine.worker.take_failed_blocks()
    finally:
        engine.npu.set_fault("STALL_MS", 0)
        engine.npu.synchronize()


def test_what_is_refused(npu: EmulatedDevice) -> None:
    settings = ConnectorSettings(kv_device_directory=str(npu.directory), kv_device_setting=npu.setting)
    shape = (BLOCKS, 16, 1, HALF // 16)
    two = {"a": tensor(4096, shape), "b": tensor(4096, shape, index=1)}
    with pytest.raises(InvalidInput, match="npu:0, npu:1"):
        open_memory(two, settings)
    with pytest.raises(InvalidInput, match="kv_device"):
        open_memory({"a": tensor(4096, shape, kind="xpu")}, settings)
    missing = ConnectorSettings(kv_device_directory=str(npu.directory), kv_device_setting={"library": "/nowhere.so"})
    with pytest.raises(Exception, match=r"kv_device_directory.*nowhere"):
        open_memory({"a": tensor(4096, shape)}, missing)
    group = SimpleNamespace(layer_names=["a"], kv_cache_spec=SimpleNamespace(page_size_bytes=PAGE, block_size=16))
    config = SimpleNamespace(num_blocks=BLOCKS, kv_cache_groups=[group])
    with pytest.raises(InvalidInput, match="hand-off"):
        require_host_memory(BlockAddresses({"a": tensor(4096, shape)}, config))
    with pytest.raises(InvalidInput, match="page"):
        BlockAddresses({"a": tensor(4096, (BLOCKS, 16, 1, HALF // 32))}, config)


def test_ucm_stores_from_a_device(make_ucm_store: Callable[..., Any], npu: EmulatedDevice) -> None:
    from ucm_rig import LAYERS, TENSOR_BYTES, TENSORS, Memory, ids

    count = 3
    source, target = Memory(count), Memory(count, seed=1)
    bases = [npu.allocate(memory.bytes.nbytes) for memory in (source, target)]
    npu.write(bases[0], source.bytes)
    store = make_ucm_store(
        gpu_kv_buffer_addrs=bases,
        gpu_kv_buffer_sizes=[source.bytes.nbytes] * 2,
        kv_device_directory=str(npu.directory),
        kv_device_setting=npu.setting,
    )
    steps = np.arange(count * LAYERS * TENSORS, dtype=np.uint64) * np.uint64(TENSOR_BYTES)
    rows = [(np.uint64(base) + steps).reshape(count, LAYERS, TENSORS) for base in bases]
    blocks = ids(count)
    computed = np.random.default_rng(5).integers(0, 256, TENSOR_BYTES, np.uint8)
    with npu.computing(int(rows[0][1, 2, 1]), computed):
        # one with UCM's own event, the others after what the stream has been given
        event = store._memory.mark()
        tasks = [
            store.dump_data(blocks, [layer] * count, rows[0][:, layer], event.handle if layer == 2 else 0)
            for layer in range(LAYERS)
        ]
        assert not any(store.check(task) for task in tasks)
    for task in tasks:
        store.wait(task)
    assert store.lookup(blocks).all()
    for layer in range(LAYERS):
        store.wait(store.load_data(blocks, [layer] * count, rows[1][:, layer]))
    source.bytes[1, 2, 1] = computed
    assert (npu.read(bases[1], source.bytes.nbytes) == source.bytes.reshape(-1)).all()
    with pytest.raises(InvalidInput, match="outside"):
        store.load_data(blocks, [0] * count, rows[1][:, 0] + np.uint64(1 << 30))
    with pytest.raises(Unsupported, match="lacks tensors"):
        store.load_data(blocks, [0] * count, rows[1][:, 0] * np.array([1, 0], dtype=np.uint64))


def test_ucm_needs_to_know_the_device(
    make_ucm_store: Callable[..., Any], npu: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = npu.allocate(4096)
    with pytest.raises(InvalidInput, match="device_id"):
        make_ucm_store(gpu_kv_buffer_addrs=[base], gpu_kv_buffer_sizes=[4096], device_id=-1)
    monkeypatch.delattr(torch, "npu")
    with pytest.raises(Unsupported, match="kv_device"):
        make_ucm_store(gpu_kv_buffer_addrs=[base], gpu_kv_buffer_sizes=[4096])
