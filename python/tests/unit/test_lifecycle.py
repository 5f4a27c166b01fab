"""Opening, closing, forking and ending."""

from __future__ import annotations

import gc
import os

import numpy as np
import pytest
from support import addresses, blocks, hashes, python, threads, wait_for

import kvstored
from kvstored import Identity, Layout, Store

SMALL = {"pipeline": "Cache", "cache_buffer_capacity": "16MiB", "huge_pages": False}
PREAMBLE = """
import os, sys
import numpy as np
import kvstored
SMALL = {"pipeline": "Cache", "cache_buffer_capacity": "16MiB", "huge_pages": False}
names = [bytes([i] * 16) for i in range(8)]
memory = np.arange(8 * 4096, dtype=np.uint32).view(np.uint8).reshape(8, -1)[:, :4096].copy()
rows = [[row] for row in memory]
layout = kvstored.Layout.uniform(1, 1, 4096)
"""


def test_closing_leaves_no_thread(folder):
    before = threads()
    options = {**SMALL, "pipeline": "Cache|Posix", "storage_backends": folder / "s", "posix_capacity": "64MiB"}
    store = Store.embedded(options, listen=str(folder / "l.sock"), streams=3)
    namespace = store.open_namespace(Identity(), Layout.uniform(2, 1, 4096))
    memory = blocks(4)
    assert namespace.dump(hashes(4), addresses(memory)).wait().all_done
    with Store.connect(str(folder / "l.sock")) as client:
        client.ping()
    # those of before may have ended meanwhile
    assert threads() - before
    store.close()
    wait_for(lambda: threads() <= before, "the end of the store's threads")
    assert not (folder / "l.sock").exists()


def test_a_dropped_store_leaves_no_thread():
    before = threads()
    store = Store.embedded(SMALL)
    namespace = store.open_namespace(Identity(), Layout.uniform(2, 1, 4096))
    del store
    gc.collect()
    # whatever was made from it keeps it
    assert namespace.lookup(hashes(1)).tolist() == [False]
    del namespace
    gc.collect()
    wait_for(lambda: threads() <= before, "the end of the store's threads")


def test_closing_twice_is_fine_and_later_calls_are_refused():
    with Store.embedded(SMALL) as store:
        namespace = store.open_namespace(Identity(), Layout.uniform(2, 1, 4096))
        session = namespace.begin_dump(hashes(1))
        store.close(1)
    store.close()
    for call in (
        store.ping,
        store.statistics,
        store.namespaces,
        lambda: store.drain(1),
        lambda: store.open_namespace(Identity(), Layout.uniform(2, 1, 4096)),
        lambda: namespace.lookup(hashes(1)),
        lambda: namespace.begin_dump(hashes(1)),
        lambda: session.put_shard(0, np.ones(1, np.uint64)),
    ):
        with pytest.raises(kvstored.Cancelled):
            call()
    assert store.tier_names == ["Cache"]


def test_what_was_dumped_is_there_after_a_restart(posix):
    memory, names = blocks(8), hashes(8)
    with posix() as store:
        namespace = store.open_namespace(Identity(), Layout.uniform(2, 1, 4096))
        for durability, chosen in (("memory", [0, 1]), ("tier", [2, 3, 4]), ("durable", [5, 6, 7])):
            part = memory[chosen]
            task = namespace.dump([names[i] for i in chosen], addresses(part), durability=durability)
            assert task.wait().all_done
        store.drain(10)
    with posix() as store:
        namespace = store.open_namespace(Identity(), Layout.uniform(2, 1, 4096))
        assert namespace.locate_prefix(names).tolist() == [1] * 8
        loaded = np.zeros_like(memory)
        report = namespace.load(names, addresses(loaded)).wait()
        assert report.all_done
        assert report.tiers.tolist() == [1] * 8
        assert np.array_equal(loaded, memory)


def test_closing_writes_what_was_accepted(posix):
    memory, names = blocks(64), hashes(64)
    store = posix()
    namespace = store.open_namespace(Identity(), Layout.uniform(2, 1, 4096))
    assert namespace.dump(names, addresses(memory), durability="memory").wait().all_done
    store.close()
    with posix() as store:
        assert store.open_namespace(Identity(), Layout.uniform(2, 1, 4096)).lookup(names).all()


def test_a_fork_cannot_use_the_parents_store(embedded):
    namespace = embedded.open_namespace(Identity(), Layout.uniform(2, 1, 4096))
    memory = blocks(1)
    task = namespace.dump(hashes(1), addresses(memory))
    assert task.wait().all_done
    unfinished = namespace.begin_dump(hashes(1, seed=3))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        outcome = []
        for call in (embedded.ping, lambda: namespace.lookup(hashes(1)), lambda: unfinished.task.wait(1)):
            try:
                call()
                outcome.append("done")
            except kvstored.Unsupported as error:
                outcome.append("fork" if "fork" in str(error) else str(error))
        unfinished.abort()
        embedded.close()
        del namespace, unfinished, task
        gc.collect()
        # its own store works
        with Store.embedded(SMALL) as own:
            own.ping()
            outcome.append("own")
        os.write(writer, ",".join(outcome).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answers:
        assert answers.read() == "fork,fork,fork,own"
    assert os.waitpid(child, 0)[1] == 0
    embedded.ping()
    assert namespace.lookup(hashes(1)).all()


@pytest.mark.parametrize("ending", ["pass", "sys.exit(0)", "del store", "raise SystemExit(0)"])
def test_an_interpreter_may_end_without_closing(folder, ending):
    code = (
        PREAMBLE
        + f"""
options = {{**SMALL, "pipeline": "Cache|Posix", "storage_backends": sys.argv[1], "posix_capacity": "64MiB"}}
store = kvstored.Store.embedded(options, listen=sys.argv[1] + ".sock")
namespace = store.open_namespace(kvstored.Identity(), layout)
task = namespace.dump_tensors(names, rows)
task.wait()
later = namespace.dump_tensors([bytes([i] * 17) for i in range(8)], rows)
session = namespace.begin_dump([bytes([9] * 18)])
print("ready")
{ending}
"""
    )
    done = python(code, str(folder / "s"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "ready\n", "")
    options = {**SMALL, "pipeline": "Cache|Posix", "storage_backends": folder / "s", "posix_capacity": "64MiB"}
    with Store.embedded(options) as store:
        namespace = store.open_namespace(Identity(), Layout.uniform(1, 1, 4096))
        assert namespace.lookup([bytes([index] * 16) for index in range(8)]).all()


def test_an_interpreter_may_end_while_a_thread_waits():
    code = (
        PREAMBLE
        + """
import threading
store = kvstored.Store.embedded(SMALL)
namespace = store.open_namespace(kvstored.Identity(), kvstored.Layout.uniform(1, 1, 4 << 20))
session = namespace.begin_dump([bytes([i] * 16) for i in range(3)])
big = np.zeros((3, 4 << 20), np.uint8)
task = namespace.dump_tensors([bytes([i] * 17) for i in range(3)], [[row] for row in big])
threading.Thread(target=task.wait, daemon=True).start()
print("ready")
"""
    )
    done = python(code)
    assert (done.returncode, done.stdout) == (0, "ready\n"), done.stderr


def test_modules_that_hold_stores_may_be_torn_down():
    code = (
        PREAMBLE
        + """
import builtins
builtins.kept = kvstored.Store.embedded(SMALL)
builtins.task = builtins.kept.open_namespace(kvstored.Identity(), layout).dump_tensors(names, rows)
print("ready")
"""
    )
    done = python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ready\n", "")
