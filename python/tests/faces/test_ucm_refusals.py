"""The store for UCM: what it refuses, and blocks that it must never show."""

from __future__ import annotations

import ctypes
import mmap
import time

import numpy as np
import pytest
from ucm_rig import (
    LAYERS,
    SHARD_BYTES,
    TENSORS,
    Maker,
    Memory,
    dump,
    ids,
)

from kvstored import InvalidInput, Unsupported
from kvstored.ucm import sessions
from kvstored.ucm.interface import StoreNotFoundError


def test_a_shard_that_fails_takes_its_blocks_with_it(make_ucm_store: Maker) -> None:
    store = make_ucm_store()
    good, bad, memory = ids(2), ids(2, seed=1), Memory(2)
    dump(store, good, memory)
    wrong = memory.addresses[:, 3].copy()
    wrong[1, 1] = 0
    for layer in range(LAYERS):
        if layer == 3:
            with pytest.raises(InvalidInput):
                store.dump_data(bad, [layer] * 2, wrong)
        elif layer < 3:
            store.wait(store.dump_data(bad, [layer] * 2, memory.addresses[:, layer]))
        else:
            with pytest.raises(InvalidInput):
                store.wait(store.dump_data(bad, [layer] * 2, memory.addresses[:, layer]))
    assert not store.lookup(bad).any()
    assert store.lookup(good).all()
    # a failure isn't held against the blocks for ever
    with pytest.raises(InvalidInput):
        store.wait(store.dump_data(bad, [3] * 2, memory.addresses[:, 3]))
    dump(store, bad, memory)
    assert store.lookup(bad).all()


def test_blocks_whose_other_shards_never_come_are_given_up(
    make_ucm_store: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_ucm_store()
    blocks, memory = ids(2), Memory(2)
    store.wait(store.dump_data(blocks, [0, 0], memory.addresses[:, 0]))
    now = time.monotonic
    monkeypatch.setattr(sessions.time, "monotonic", lambda: now() + 60)
    # the first layer went with the batch that was given up, so these are not the last ones
    for layer in range(1, LAYERS):
        store.wait(store.dump_data(blocks, [layer] * 2, memory.addresses[:, layer]))
    assert not store.lookup(blocks).any()
    store.wait(store.dump_data(blocks, [0, 0], memory.addresses[:, 0]))
    assert store.lookup(blocks).all()


def test_a_load_of_missing_blocks_says_so_and_leaves_no_trace(make_ucm_store: Maker) -> None:
    store = make_ucm_store()
    present, absent, memory = ids(1), ids(1, seed=1), Memory(2)
    dump(store, present, Memory(1))
    with pytest.raises(StoreNotFoundError, match="1 of 2"):
        store.wait(store.load_data(present + absent, [0, 0], memory.addresses[:, 0]))
    assert list(store.lookup(present + absent)) == [True, False]


def test_calls_that_cannot_be_right_are_refused(make_ucm_store: Maker) -> None:
    store = make_ucm_store()
    blocks, memory = ids(2), Memory(2)
    for shards, rows in (
        ([LAYERS, LAYERS], memory.addresses[:, 0]),
        ([-1, -1], memory.addresses[:, 0]),
        ([0], memory.addresses[:, 0]),
        ([0, 0], memory.addresses[:, 0, :1]),
        ([0, 0], [[1, 2], [3]]),
        ([0, 0], np.zeros((2, TENSORS), dtype=np.uint64)),
    ):
        with pytest.raises(InvalidInput):
            store.load_data(blocks, shards, rows)
    with pytest.raises(Unsupported):
        store.dump_data(blocks, [0, 0], memory.addresses[:, 0], prerequisite_handle=7)
    with pytest.raises(Unsupported):
        store.cc_store()
    for wrong in (
        {"shard_size": SHARD_BYTES - 1},
        {"block_size": SHARD_BYTES + 1},
        {"tensor_size_list": [0]},
        {"tensor_size_list": []},
        {"timeout_ms": "soon"},
        {"cache_buffer_capacity": "lots"},
    ):
        with pytest.raises(InvalidInput):
            make_ucm_store(**{"unique_id": "wrong", "storage_backends": ["/nonexistent/x"], **wrong})


def test_addresses_outside_the_engines_buffers_are_refused(make_ucm_store: Maker) -> None:
    memory, elsewhere = Memory(2), Memory(2)
    store = make_ucm_store(gpu_kv_buffer_addrs=[memory.bytes.ctypes.data], gpu_kv_buffer_sizes=[memory.bytes.nbytes])
    blocks = ids(2)
    dump(store, blocks, memory)
    with pytest.raises(InvalidInput, match="outside"):
        store.load_data(blocks, [0, 0], elsewhere.addresses[:, 0])
    beyond = memory.addresses[:, 0].copy()
    beyond[1, 1] = memory.bytes.ctypes.data + memory.bytes.nbytes - 1
    with pytest.raises(InvalidInput, match="outside"):
        store.load_data(blocks, [0, 0], beyond)


def test_memory_that_is_no_host_memory_is_refused(make_ucm_store: Maker) -> None:
    # reserved, but neither readable nor writable, as a device's memory is
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(None, ctypes.c_size_t(1 << 16), 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    with pytest.raises(Unsupported, match="host memory"):
        make_ucm_store(gpu_kv_buffer_addrs=[address], gpu_kv_buffer_sizes=[1 << 16])
    store = make_ucm_store(layers=1)
    rows = np.full((1, TENSORS), address, dtype=np.uint64)
    with pytest.raises(Unsupported, match="host memory"):
        store.dump_data(ids(1), [0], rows)
    libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(1 << 16))


def test_another_layout_never_gets_the_bytes_of_this_one(make_ucm_store: Maker) -> None:
    store = make_ucm_store()
    blocks = ids(1)
    dump(store, blocks, Memory(1))
    store.close()
    for other in (
        {"layers": LAYERS - 1},
        {"tensor_size_list": [SHARD_BYTES]},
        {"tensor_layout": "mla"},
        {"weights_digest": "other"},
        {"tenant": "other"},
    ):
        one = make_ucm_store(**other)
        assert not one.lookup(blocks).any(), other
        one.close()
