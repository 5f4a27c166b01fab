"""The store for UCM: with UCM's own base class and factory where it is installed."""

from __future__ import annotations

import inspect
import json
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from ucm_interface import METHODS
from ucm_rig import (
    LAYERS,
    TENSOR_BYTES,
    TENSORS,
    Maker,
    Memory,
    create,
    dump,
    ids,
    load,
    scheduler_configuration,
)

from kvstored import InvalidInput
from kvstored.ucm import KvstoredStore, UcmPipelineStore
from kvstored.ucm.interface import StoreNotFoundError, Task, UcmKVStoreBaseV1


def test_the_recorded_interface_is_implemented() -> None:
    for name, parameters in METHODS.items():
        found = list(inspect.signature(getattr(UcmPipelineStore, name)).parameters)
        assert tuple(found) == ("self", *parameters), name
    assert inspect.signature(UcmPipelineStore.dump_data).parameters["prerequisite_handle"].default == 0
    assert issubclass(UcmPipelineStore, UcmKVStoreBaseV1)
    assert KvstoredStore is UcmPipelineStore


def test_the_installed_interface_is_the_recorded_one() -> None:
    base = pytest.importorskip("ucm.store.ucmstore_v1", reason="UCM isn't installed")
    assert UcmKVStoreBaseV1 is base.UcmKVStoreBaseV1
    assert base.UcmKVStoreBaseV1.__abstractmethods__ == set(METHODS)
    for name, parameters in METHODS.items():
        found = list(inspect.signature(getattr(base.UcmKVStoreBaseV1, name)).parameters)
        assert tuple(found) == ("self", *parameters), name


def test_whole_blocks(make_ucm_store: Maker) -> None:
    store = make_ucm_store(layers=1)
    blocks, memory = ids(20), Memory(20, 1)
    task = store.dump_data(blocks, [0] * 20, memory.addresses.reshape(20, TENSORS))
    store.wait(task)
    assert store.check(task) and isinstance(task, Task)
    assert store.lookup(blocks).all()
    target = memory.emptied()
    load(store, blocks, target, 1)
    assert np.array_equal(target.bytes, memory.bytes)
    # there already: no failure, nothing written again
    store.wait(store.dump_data(blocks, [0] * 20, memory.addresses.reshape(20, TENSORS)))


def test_lookups_in_every_direction(make_ucm_store: Maker) -> None:
    store = make_ucm_store()
    blocks = ids(6)
    assert store.lookup_on_prefix(blocks) == -1 and store.lookup_on_reverse(blocks) == -1
    dump(store, blocks[:2], Memory(2))
    dump(store, blocks[3:5], Memory(2))
    assert list(store.lookup(blocks)) == [True, True, False, True, True, False]
    assert store.lookup_on_prefix(blocks) == 1
    assert store.lookup_on_reverse(blocks) == 4
    assert store.lookup_on_prefix(blocks[2:]) == -1
    assert list(store.lookup([])) == [] and store.lookup_on_prefix([]) == -1
    store.prefetch(blocks)
    # one that UCM would never make is a miss, not an error
    assert not store.lookup([b"short"])[0] and store.lookup_on_prefix([b"short"]) == -1


def test_layers_in_any_order_from_several_threads(make_ucm_store: Maker) -> None:
    store = make_ucm_store()
    blocks, memory = ids(32), Memory(32)
    order = list(range(LAYERS))
    random.Random(3).shuffle(order)
    last = order.pop()
    failures: list[Exception] = []

    def run(layers: list[int]) -> None:
        try:
            for layer in layers:
                store.wait(store.dump_data(blocks, [layer] * 32, memory.addresses[:, layer]))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(order[first::3],)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert not store.lookup(blocks).any(), "absent as long as a layer is missing, whichever it is"
    run([last])
    assert failures == [] and store.lookup(blocks).all()
    target = memory.emptied()
    load(store, blocks, target)
    assert np.array_equal(target.bytes, memory.bytes)


def test_a_batch_may_come_in_pieces(make_ucm_store: Maker) -> None:
    store = make_ucm_store()
    blocks, memory = ids(3), Memory(3)
    store.wait(store.dump_data(blocks, [0] * 3, memory.addresses[:, 0]))
    for layer in range(1, LAYERS):
        # one block at a time, each waited for: its memory has to be free although the others have yet to come
        for place in range(3):
            piece = Memory(1)
            piece.bytes[0, 0] = memory.bytes[place, layer]
            store.wait(store.dump_data(blocks[place : place + 1], [layer], piece.addresses[:, 0]))
            piece.bytes[:] = 0
    assert store.lookup(blocks).all()
    target = memory.emptied()
    load(store, blocks, target)
    assert np.array_equal(target.bytes, memory.bytes)


def test_shards_of_several_blocks_and_layers_in_one_call(make_ucm_store: Maker) -> None:
    store = make_ucm_store()
    blocks, memory = ids(3), Memory(3)
    pairs = [(block, layer) for block in range(3) for layer in range(LAYERS)]
    random.Random(5).shuffle(pairs)
    rows = np.array([memory.addresses[pair] for pair in pairs])
    store.wait(store.dump_data([blocks[block] for block, _ in pairs], [layer for _, layer in pairs], rows))
    assert store.lookup(blocks).all()
    target = memory.emptied()
    rows = np.array([target.addresses[pair] for pair in pairs])
    store.wait(store.load_data([blocks[block] for block, _ in pairs], [layer for _, layer in pairs], rows))
    assert np.array_equal(target.bytes, memory.bytes)


def test_ucms_own_bookkeeping_takes_missing_blocks_for_missing(make_ucm_store: Maker) -> None:
    consistency = pytest.importorskip("ucm.integration.vllm.rank_consistency", reason="UCM isn't installed")
    store, manager = make_ucm_store(layers=1), consistency.RankConsistencyManager(is_scheduler=False)
    present, absent, memory = ids(2), ids(1, seed=1), Memory(3, 1)
    rows = memory.addresses[:, 0]
    task = manager.submit_dump(store, {"r": set(present)}, present, [0, 0], rows[:2], 0)
    manager.wait_dump(task)
    task = manager.submit_load(store, {"r": present}, present, [0, 0], rows[:2])
    manager.wait_load(task)
    assert manager._missing_reqs == set()
    task = manager.submit_load(store, {"r": present + absent}, present + absent, [0] * 3, rows)
    with pytest.raises(StoreNotFoundError):
        manager.wait_load(task)
    assert manager._missing_reqs == {"r"}


def test_tensors_that_a_layer_does_not_have(make_ucm_store: Maker) -> None:
    store = make_ucm_store()
    blocks, memory = ids(2), Memory(2)
    memory.bytes[:, 2, 1] = 0
    memory.addresses[:, 2, 1] = 0
    dump(store, blocks, memory)
    target = memory.emptied()
    target.addresses[:, 2, 1] = 0
    load(store, blocks, target)
    assert np.array_equal(target.bytes, memory.bytes)


def test_tensors_of_torch(make_ucm_store: Maker) -> None:
    torch = pytest.importorskip("torch", reason="torch isn't installed")
    store = make_ucm_store(layers=2)
    blocks = ids(3)
    source = torch.randint(0, 255, (2, 3, TENSORS, TENSOR_BYTES), dtype=torch.uint8)
    target = torch.zeros_like(source)
    for layer in (1, 0):
        store.wait(store.dump(blocks, [layer] * 3, [list(block) for block in source[layer]]))
    for layer in (0, 1):
        store.wait(store.load(blocks, [layer] * 3, [list(block) for block in target[layer]]))
    assert torch.equal(source, target)
    with pytest.raises(InvalidInput):
        store.dump(blocks, [0] * 3, [list(block[:, ::2]) for block in source[0]])


def test_tensor_size_may_be_one_number(make_ucm_store: Maker) -> None:
    store = make_ucm_store(layers=1, tensor_size_list=None, tensor_size=TENSOR_BYTES)
    blocks, memory = ids(1), Memory(1, 1)
    dump(store, blocks, memory, 1)
    assert store.lookup(blocks).all()


def test_the_schedulers_store_sees_what_the_workers_stored(make_ucm_store: Maker, folder: Path) -> None:
    scheduler = create(scheduler_configuration(folder))
    blocks, memory = ids(2), Memory(2)
    assert scheduler.lookup_on_prefix(blocks) == -1, "before any worker is there"
    worker = make_ucm_store()
    dump(worker, blocks, memory)
    assert scheduler.lookup_on_prefix(blocks) == 1
    with pytest.raises(InvalidInput, match="only looks up"):
        scheduler.load_data(blocks, [0, 0], memory.addresses[:, 0])
    scheduler.close()


def test_another_process_of_the_engine_shares_the_store(make_ucm_store: Maker, folder: Path) -> None:
    worker = make_ucm_store()
    blocks = ids(3)
    dump(worker, blocks, Memory(3))
    program = (
        "import json, sys\n"
        "from kvstored.ucm import UcmPipelineStore\n"
        "config, blocks = json.loads(sys.argv[1]), [bytes.fromhex(text) for text in sys.argv[2:]]\n"
        "store = UcmPipelineStore(config)\n"
        "print(store.lookup_on_prefix(blocks), store._lease.store.is_embedded)\n"
        "store.close()\n"
    )
    arguments = [json.dumps(scheduler_configuration(folder)), *(block.hex() for block in blocks)]
    output = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60)
    assert output.stdout.split() == ["2", "False"], output.stderr


def test_blocks_survive_the_engine(make_ucm_store: Maker) -> None:
    first = make_ucm_store()
    blocks, memory = ids(4), Memory(4)
    dump(first, blocks, memory)
    first.close()
    second = make_ucm_store(unique_id="engine-2")
    assert second.lookup_on_prefix(blocks) == 3
    target = memory.emptied()
    load(second, blocks, target)
    assert np.array_equal(target.bytes, memory.bytes)
