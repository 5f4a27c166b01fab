"""Waiting, cancelling, and whose memory lives how long."""

from __future__ import annotations

import gc
import signal
import threading
import weakref

import numpy as np
import pytest
from support import addresses, blocks, hashes, python, tensors, wait_for

import kvstored
from kvstored import Identity, Layout, TimedOut

# larger than the memory of the stores, in blocks of 4 MiB: a dump of all of it waits for room for good
LARGE = Layout.uniform(1, 1, 4 << 20)


@pytest.fixture
def full(embedded: kvstored.Store) -> kvstored.Namespace:
    """A namespace in a store whose whole memory is reserved by a dump that doesn't go on."""
    namespace = embedded.open_namespace(Identity(model="full"), LARGE)
    session = namespace.begin_dump(hashes(7, seed=1), timeout_ms=20_000)
    assert session.task.failed_blocks().size == 0
    namespace.session = session
    return namespace


def stuck(namespace: kvstored.Namespace, seed: int = 2, timeout_ms: int = 20_000) -> tuple[kvstored.Task, np.ndarray]:
    """A dump that can't go on."""
    memory = np.zeros((4, 1, 4 << 20), np.uint8)
    return namespace.dump(hashes(4, seed), addresses(memory), timeout_ms=timeout_ms), memory


def test_a_wait_ends_at_its_timeout_and_the_task_goes_on(full):
    task, _memory = stuck(full)
    assert not task.check()
    assert task.report() is None
    for timeout in (0, 0.01, 0.25):
        with pytest.raises(TimedOut, match="of 4 blocks are not finished"):
            task.wait(timeout)
    with pytest.raises(TimedOut):
        task.wait_shard(0, 0.01)
    full.session.abort()
    assert task.wait(20).all_done
    assert task.check()
    assert task.report() is task.wait()


def test_a_task_ends_at_its_own_deadline(full):
    task, _memory = stuck(full, timeout_ms=100)
    report = task.wait()
    assert report.failed.size > 0
    assert report.missing == 0
    assert set(report.error_kinds) <= {"timed_out", "busy"}
    assert report.errors


def test_a_cancelled_task_ends(full):
    task, _memory = stuck(full)
    task.cancel()
    report = task.wait(20)
    assert report.error_kinds == ["cancelled"]
    assert len(report.failed) >= 1
    assert task.failed_blocks().tolist() == report.failed.tolist()


def test_a_dropped_task_keeps_its_tensors_until_it_has_ended(full):
    class Memory(np.ndarray):
        """Memory whose end can be noticed."""

    memory = np.zeros((4, 1, 4 << 20), np.uint8).view(Memory)
    rows = [[block[0]] for block in memory]
    watched = [weakref.ref(row[0]) for row in rows]
    task = full.dump_tensors(hashes(4, seed=3), rows, timeout_ms=20_000)
    del memory, rows
    gc.collect()
    assert all(reference() is not None for reference in watched)
    with pytest.raises(TimedOut):
        task.wait(0)
    del task
    gc.collect()
    assert all(reference() is None for reference in watched)
    # nothing of it is left in the store's lines
    full.session.abort()
    other, _memory = stuck(full, seed=4)
    assert other.wait(20).all_done


def test_an_ended_task_lets_go_of_its_tensors(embedded):
    namespace = embedded.open_namespace(Identity(), Layout.uniform(2, 1, 4096))

    class Memory(np.ndarray):
        """Memory whose end can be noticed."""

    rows = [[tensor.view(Memory) for tensor in block] for block in blocks(3)]
    watched = [weakref.ref(tensor) for row in rows for tensor in row]
    task = namespace.dump_tensors(hashes(3), rows)
    assert task.wait().all_done
    del rows
    gc.collect()
    assert all(reference() is None for reference in watched)


def test_a_cycle_of_a_task_and_its_tensors_is_collected(full):
    class Tensor:
        """A tensor that knows its task."""

        def __init__(self) -> None:
            self.memory = np.zeros(4 << 20, np.uint8)
            self.nbytes = self.memory.nbytes

        def data_ptr(self) -> int:
            return self.memory.ctypes.data

        def is_contiguous(self) -> bool:
            return True

    tensor = Tensor()
    tensor.task = full.dump_tensors(hashes(1, seed=6), [[tensor]], timeout_ms=20_000)
    watched = weakref.ref(tensor)
    del tensor
    gc.collect()
    assert watched() is None


def test_tasks_outlive_the_objects_they_were_made_from():
    store = kvstored.Store.embedded({"pipeline": "Cache", "cache_buffer_capacity": "32MiB", "huge_pages": False})
    namespace = store.open_namespace(Identity(), Layout.uniform(2, 1, 4096))
    memory = blocks(200)
    task = namespace.dump_tensors(hashes(200), tensors(memory))
    del store, namespace
    gc.collect()
    assert task.wait().all_done


def test_many_threads_share_a_store(store, namespace):
    wrong: list[object] = []

    def work(seed: int) -> None:
        try:
            names, memory = hashes(16, seed), blocks(16, seed=seed)
            for _ in range(5):
                assert namespace.dump(names, addresses(memory)).wait().all_done
                assert namespace.lookup_on_prefix(names) == 16
                loaded = np.zeros_like(memory)
                assert namespace.load(names, addresses(loaded)).wait().all_done
                assert np.array_equal(loaded, memory)
                namespace.evict(names)
        except BaseException as error:
            wrong.append(error)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_other_threads_run_while_one_waits(full):
    task, _memory = stuck(full)
    seen: list[kvstored.TaskReport] = []
    waiter = threading.Thread(target=lambda: seen.append(task.wait(20)))
    waiter.start()
    # this thread would never come here if the other kept the interpreter
    full.session.abort()
    waiter.join()
    assert seen[0].all_done


def test_a_wait_can_be_interrupted(full):
    task, _memory = stuck(full)

    class Interrupted(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Interrupted):
            task.wait(20)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Interrupted):
            task.wait_shard(0, 20)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_interrupted_program_ends():
    # a shell that starts us in the background has interrupts ignored
    code = """
import _thread, signal, threading
import numpy as np
import kvstored
signal.signal(signal.SIGINT, signal.default_int_handler)
store = kvstored.Store.embedded({"pipeline": "Cache", "cache_buffer_capacity": "32MiB", "huge_pages": False})
namespace = store.open_namespace(kvstored.Identity(), kvstored.Layout.uniform(1, 1, 4 << 20))
session = namespace.begin_dump([bytes([i] * 16) for i in range(7)])
memory = np.zeros((4, 4 << 20), np.uint8)
task = namespace.dump_tensors([bytes([i] * 32) for i in range(4)], [[row] for row in memory])
threading.Timer(0.1, _thread.interrupt_main).start()
try:
    task.wait()
except KeyboardInterrupt:
    print("interrupted")
"""
    done = python(code)
    assert (done.returncode, done.stdout.strip()) == (0, "interrupted"), done.stderr


def test_closing_ends_what_is_under_way(full, embedded):
    task, _memory = stuck(full)
    embedded.close()
    wait_for(task.check, "the end of the task")
    assert task.wait().error_kinds == ["cancelled"]
    with pytest.raises(kvstored.Cancelled, match="closed"):
        full.dump(hashes(1), np.ones(1, np.uint64))
