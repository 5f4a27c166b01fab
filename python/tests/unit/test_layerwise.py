"""Shards one after the other: dumps as layers are computed, loads with the first layers first."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from support import PATIENCE, hashes

import kvstored
from kvstored import Identity, InvalidInput, Layout

BLOCKS = 12
LAYOUT = Layout(((4096, 512), (8192,), (100, 200, 300)))


def memory_of(shard: int, seed: int = 0) -> list[np.ndarray]:
    """Memory of one shard: an array of blocks for each of its tensors."""
    generator = np.random.default_rng(100 * seed + shard)
    return [generator.integers(0, 256, (BLOCKS, size), dtype=np.uint8) for size in LAYOUT.shards[shard]]


def addresses_in(memory: list[np.ndarray]) -> np.ndarray:
    """Addresses of one shard's tensors, block by block."""
    starts = [[array[block].ctypes.data for array in memory] for block in range(BLOCKS)]
    return np.array(starts, np.uint64)


@pytest.fixture
def layered(store: kvstored.Store) -> kvstored.Namespace:
    return store.open_namespace(Identity(model="layers"), LAYOUT)


def load_all(namespace: kvstored.Namespace, **options: object) -> tuple[kvstored.Task, list[list[np.ndarray]]]:
    memory = [[np.zeros_like(array) for array in memory_of(shard)] for shard in range(3)]
    addresses = np.hstack([addresses_in(shard) for shard in memory])
    return namespace.load(hashes(BLOCKS), addresses, **options), memory


def dump_by_layers(namespace: kvstored.Namespace, order: tuple[int, ...] = (0, 1, 2)) -> list[list[np.ndarray]]:
    memory = [memory_of(shard) for shard in range(3)]
    session = namespace.begin_dump(hashes(BLOCKS), durability="memory")
    for shard in order:
        assert not session.task.check()
        assert not namespace.lookup(hashes(BLOCKS)).any()
        assert session.put_shard(shard, addresses_in(memory[shard])).wait().all_done
    assert session.task.wait().all_done
    return memory


def same(found: list[list[np.ndarray]], expected: list[list[np.ndarray]]) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(np.array_equal(a, b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_blocks_appear_when_their_last_shard_has_come(layered, order):
    memory = dump_by_layers(layered, order)
    assert layered.lookup_on_prefix(hashes(BLOCKS)) == BLOCKS
    task, loaded = load_all(layered)
    assert task.wait().all_done
    assert same(loaded, memory)


def test_shards_come_in_order_where_asked(layered):
    memory = dump_by_layers(layered)
    task, loaded = load_all(layered, shard_major=True)
    for shard in range(3):
        task.wait_shard(shard, PATIENCE)
        assert task.failed_blocks().tolist() == []
        assert same(loaded[: shard + 1], memory[: shard + 1])
    assert task.wait().all_done
    with pytest.raises(InvalidInput, match="shard 3"):
        task.wait_shard(3, 1.0)


def test_a_part_of_the_shards_can_be_loaded(layered):
    memory = dump_by_layers(layered)
    part = [np.zeros_like(array) for array in memory[1]] + [np.zeros_like(array) for array in memory[2]]
    task = layered.load(hashes(BLOCKS), addresses_in(part), shards=(1, 3), shard_major=True)
    task.wait_shard(1, PATIENCE)
    assert task.wait().all_done
    assert same([part], [memory[1] + memory[2]])
    with pytest.raises(InvalidInput, match="shard 0"):
        task.wait_shard(0, 1.0)
    rows = [[np.zeros(8192, np.uint8)] for _ in range(BLOCKS)]
    assert layered.load_tensors(hashes(BLOCKS), rows, shards=(1, 2)).wait().all_done
    assert np.array_equal(np.array([row[0] for row in rows]), memory[1][0])


def test_nobody_has_to_hold_the_tasks_of_shards(layered):
    memory = [memory_of(shard) for shard in range(3)]
    session = layered.begin_dump(hashes(BLOCKS))
    for shard in range(3):
        rows = [[array[block].copy() for array in memory[shard]] for block in range(BLOCKS)]
        session.put_shard_tensors(shard, rows)
        del rows
    assert session.task.wait().all_done
    task, loaded = load_all(layered)
    assert task.wait().all_done
    assert same(loaded, memory)


def test_what_does_not_fit_is_refused_and_may_come_again(layered):
    session = layered.begin_dump(hashes(BLOCKS))
    memory = memory_of(0)
    with pytest.raises(InvalidInput, match="shard index 3"):
        session.put_shard(3, addresses_in(memory))
    with pytest.raises(InvalidInput, match="take 24"):
        session.put_shard(0, addresses_in(memory)[:-1])
    with pytest.raises(InvalidInput, match="tensor 1 of block 0"):
        session.put_shard_tensors(0, [[memory[0][0], memory[1][0][:9]]] * BLOCKS)
    assert session.put_shard(0, addresses_in(memory)).wait().all_done
    with pytest.raises(kvstored.AlreadyExists):
        session.put_shard(0, addresses_in(memory))


def test_an_aborted_dump_leaves_nothing(layered):
    session = layered.begin_dump(hashes(BLOCKS))
    memory = [memory_of(shard) for shard in range(2)]
    assert session.put_shard(0, addresses_in(memory[0])).wait().all_done
    session.abort()
    report = session.task.wait()
    assert (report.done, report.error_kinds) == (0, ["cancelled"])
    with pytest.raises(kvstored.Cancelled):
        session.put_shard(1, addresses_in(memory[1]))
    session.abort()
    assert not layered.lookup(hashes(BLOCKS)).any()
    dump_by_layers(layered)


def test_a_dropped_dump_leaves_nothing(layered):
    session = layered.begin_dump(hashes(BLOCKS))
    task = session.task
    del session
    gc.collect()
    assert task.wait().done == 0
    dump_by_layers(layered)


def test_blocks_that_are_there_already_are_done(layered):
    dump_by_layers(layered)
    session = layered.begin_dump(hashes(BLOCKS), parent=hashes(1, seed=3)[0], timeout_ms=5000)
    assert session.task.wait().all_done
