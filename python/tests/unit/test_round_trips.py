"""What is dumped is found and loaded, through both kinds of store."""

from __future__ import annotations

import numpy as np
import pytest
from support import addresses, blocks, hashes, tensors

import kvstored


def test_addresses_come_back_as_dumped(namespace):
    names, memory = hashes(20), blocks(20)
    report = namespace.dump(names, addresses(memory)).wait()
    assert (report.blocks, report.done, report.all_done, report.errors) == (20, 20, True, [])
    loaded = np.zeros_like(memory)
    report = namespace.load(names, addresses(loaded)).wait()
    assert report.all_done
    assert report.tiers.tolist() == [0] * 20
    assert np.array_equal(loaded, memory)


def test_tensors_of_many_kinds_come_back(namespace):
    memory = blocks(3)
    given = [
        [memory[0, 0], memory[0, 1].tobytes()],
        [bytearray(memory[1, 0].tobytes()), memoryview(memory[1, 1])],
        [memory[2, 0].view(np.float16).reshape(32, 64), memory[2, 1].view(np.uint64)],
    ]
    assert namespace.dump_tensors(hashes(3), given).wait().all_done
    into = [[bytearray(4096), np.zeros(2048, np.int16)] for _ in range(3)]
    assert namespace.load_tensors(hashes(3), into).wait().all_done
    for block, (first, second) in enumerate(into):
        assert bytes(first) == memory[block, 0].tobytes()
        assert second.tobytes() == memory[block, 1].tobytes()


def test_lookups_tell_what_is_there(namespace):
    names = hashes(10)
    assert namespace.lookup_on_prefix(names) == 0
    chosen = [0, 1, 2, 5]
    memory = blocks(4)
    assert namespace.dump([names[index] for index in chosen], addresses(memory)).wait().all_done
    present = namespace.lookup(names)
    assert present.dtype == np.bool_
    assert np.flatnonzero(present).tolist() == chosen
    assert namespace.lookup_on_prefix(names) == 3
    located = namespace.locate_prefix(names)
    assert located.dtype == np.uint8
    assert located.tolist() == [0, 0, 0]
    namespace.prefetch(names)


def test_a_purge_drops_the_namespace_and_nothing_else(store, namespace):
    other = store.open_namespace(kvstored.Identity(model="other"), kvstored.Layout.uniform(2, 1, 4096))
    names, memory = hashes(6), blocks(6)
    for one in (namespace, other):
        assert one.dump(names, addresses(memory)).wait().all_done
    assert namespace.purge() >= 6
    assert not namespace.lookup(names).any()
    assert other.lookup(names).all()
    assert namespace.purge() == 0
    # what comes later is kept
    assert namespace.dump(names[:2], addresses(memory[:2])).wait().all_done
    assert namespace.lookup_on_prefix(names) == 2


@pytest.mark.parametrize("width", [16, 20, 32])
def test_hashes_may_be_an_array(namespace, width):
    rows = np.arange(5 * width, dtype=np.uint8).reshape(5, width)
    memory = blocks(5)
    assert namespace.dump(rows, addresses(memory)).wait().all_done
    assert namespace.lookup([row.tobytes() for row in rows]).all()
    assert namespace.lookup(tuple(row.tobytes() for row in rows)).all()
    assert namespace.lookup(row.tobytes() for row in rows).all()
    assert namespace.lookup_on_prefix(rows[:4]) == 4


def test_nothing_asked_is_nothing_done(namespace):
    nothing = np.empty(0, np.uint64)
    assert namespace.lookup([]).tolist() == []
    assert namespace.lookup(np.empty((0, 32), np.uint8)).tolist() == []
    assert namespace.lookup_on_prefix([]) == 0
    assert namespace.dump([], nothing).wait().all_done
    report = namespace.load([], nothing).wait()
    assert (report.blocks, report.done, report.failed.tolist(), report.tiers.tolist()) == (0, 0, [], [])


def test_what_is_missing_is_reported_and_the_rest_is_loaded(namespace):
    names, memory = hashes(6), blocks(6)
    assert namespace.dump(names[:4], addresses(memory[:4])).wait().all_done
    loaded = np.zeros_like(memory)
    task = namespace.load(names, addresses(loaded))
    report = task.wait()
    assert not report.all_done
    assert (report.done, report.missing, report.failed.tolist()) == (4, 2, [4, 5])
    assert report.failed.dtype == np.int64
    assert report.tiers.dtype == np.int8
    assert report.tiers.tolist() == [0, 0, 0, 0, -1, -1]
    assert task.failed_blocks().tolist() == [4, 5]
    assert np.array_equal(loaded[:4], memory[:4])


def test_a_dump_of_what_is_there_is_done(namespace):
    names, memory = hashes(3), blocks(3)
    assert namespace.dump(names, addresses(memory)).wait().all_done
    other = blocks(3, seed=9)
    assert namespace.dump(names, addresses(other), parent=hashes(1, seed=5)[0]).wait().all_done
    loaded = np.zeros_like(memory)
    assert namespace.load(names, addresses(loaded)).wait().all_done
    assert np.array_equal(loaded, memory)


def test_identities_and_layouts_keep_blocks_apart(store):
    names, memory = hashes(2), blocks(2)
    layout = kvstored.Layout.uniform(2, 1, 4096)
    identity = kvstored.Identity(model="m", tenant="a")
    first = store.open_namespace(identity, layout)
    assert first.dump(names, addresses(memory)).wait().all_done
    again = store.open_namespace(identity, layout)
    assert (again.digest, again.identity, again.layout) == (first.digest, identity, layout)
    assert again.lookup(names).all()
    other = store.open_namespace(kvstored.Identity(model="m", tenant="b"), layout)
    reshaped = store.open_namespace(identity, kvstored.Layout.uniform(1, 2, 4096))
    assert len(other.digest) == 32
    assert len({first.digest, other.digest, reshaped.digest}) == 3
    assert not other.lookup(names).any()
    assert not reshaped.lookup(names).any()


def test_evicted_blocks_are_gone(namespace):
    names, memory = hashes(4), blocks(4)
    assert namespace.dump_tensors(names, tensors(memory)).wait().all_done
    assert namespace.evict(names[2:]) == 2
    assert namespace.lookup(names).tolist() == [True, True, False, False]
    assert namespace.evict(names, "Cache") == 2
    assert not namespace.lookup(names).any()
    with pytest.raises(kvstored.KvstoredError, match="Nowhere"):
        namespace.evict(names, "Nowhere")


def test_statistics_and_namespaces_tell_what_happened(store, namespace):
    names, memory = hashes(4), blocks(4)
    assert namespace.dump(names, addresses(memory)).wait().all_done
    assert namespace.load(names, addresses(memory)).wait().all_done
    statistics = store.statistics()
    assert statistics["tiers"][0]["name"] == store.tier_names[0] == "Cache"
    assert statistics["tiers"][0]["statistics"]["blocks"] == 4
    assert statistics["tiers"][0]["counts"]["hits"] == 4
    (row,) = store.namespaces()
    assert row["namespace"] == namespace.digest.hex()
    assert row["identity"]["model"] == "m"
    assert row["blocks_by_tier"] == [4]
    store.ping()
    store.drain(5)
