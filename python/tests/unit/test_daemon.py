"""Other processes: a daemon that is away or dies, and processes that share one engine."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from support import PATIENCE, addresses, blocks, hashes, wait_for

import kvstored
from kvstored import Identity, Layout, Store, Unavailable

SMALL = {"pipeline": "Cache", "cache_buffer_capacity": "32MiB", "huge_pages": False}
LAYOUT = Layout.uniform(2, 1, 4096)


def answers(store: Store) -> bool:
    """Whether the daemon is there."""
    try:
        store.ping()
    except Unavailable:
        return False
    return True


def test_nobody_listens(folder):
    with pytest.raises(Unavailable):
        Store.connect(str(folder / "none.sock"), timeout_ms=500)


def test_a_path_and_a_url_name_the_same_socket(daemon):
    for name in (daemon.socket, f"unix:{daemon.socket}"):
        with Store.connect(name) as store:
            assert not store.is_embedded
            assert store.tier_names == ["Cache"]
    with pytest.raises(kvstored.InvalidInput, match="names no socket"):
        Store.connect("unix:")


def test_a_killed_daemon_fails_what_is_under_way_and_comes_back(daemon):
    with Store.connect(daemon.socket, timeout_ms=5000) as store:
        namespace = store.open_namespace(Identity(), LAYOUT)
        memory = blocks(500)
        assert namespace.dump(hashes(500), addresses(memory)).wait().all_done
        # a dump that waits for room, held by a session
        large = store.open_namespace(Identity(), Layout.uniform(1, 1, 4 << 20))
        session = large.begin_dump(hashes(7, seed=1), timeout_ms=20_000)
        assert session.task.failed_blocks().size == 0
        big = np.zeros((7, 1, 4 << 20), np.uint8)
        waiting = large.dump(hashes(7, seed=2), addresses(big))
        into = [np.zeros_like(memory) for _ in range(8)]
        tasks = [namespace.load(hashes(500), addresses(loaded)) for loaded in into]
        daemon.kill()
        for task in [*tasks, waiting]:
            report = task.wait(PATIENCE)
            assert report.done + report.failed.size == report.blocks
            assert set(report.error_kinds) <= {"unavailable", "cancelled", "timed_out", "io"}
        assert waiting.wait().done == 0
        session.put_shard(0, addresses(big)).wait(PATIENCE)
        assert session.task.wait(PATIENCE).done == 0
        with pytest.raises(Unavailable):
            namespace.lookup(hashes(1))
        report = namespace.load(hashes(2), addresses(memory[:2]), timeout_ms=500).wait()
        assert report.done == 0
        assert report.failed.tolist() == [0, 1]
        daemon.start()
        # a client asks again a little later
        wait_for(lambda: answers(store), "the daemon's return")
        assert not namespace.lookup(hashes(2)).any()
        assert namespace.dump(hashes(2), addresses(memory[:2])).wait().all_done


PEER = """
import sys
import numpy as np
import kvstored
names = [(0).to_bytes(16, "little") + i.to_bytes(16, "little") for i in range(16)]
with kvstored.Store.connect(sys.argv[1]) as store:
    namespace = store.open_namespace(kvstored.Identity(), kvstored.Layout.uniform(2, 1, 4096))
    loaded = [[np.zeros(4096, np.uint8) for _ in range(2)] for _ in names]
    report = namespace.load_tensors(names, loaded).wait()
    total = sum(int(tensor.sum()) for block in loaded for tensor in block)
    others = [bytes([i] * 20) for i in range(4)]
    dumped = namespace.dump_tensors(others, loaded[:4]).wait()
    print(report.done, total, dumped.done, store.is_embedded, flush=True)
    sys.stdin.read()
"""


def test_two_processes_share_one_engine(folder):
    socket = str(folder / "sub" / "l.sock")
    with Store.embedded(SMALL, listen=socket) as store:
        namespace = store.open_namespace(Identity(), LAYOUT)
        memory = blocks(16)
        assert namespace.dump(hashes(16), addresses(memory)).wait().all_done
        with pytest.raises(kvstored.AlreadyExists):
            Store.embedded(SMALL, listen=f"unix:{socket}")
        peer = subprocess.Popen(
            [sys.executable, "-c", PEER, socket], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert peer.stdout.readline().split() == ["16", str(int(memory.sum())), "4", "False"]
        # what the other one dumped is here, in the same memory
        others = [bytes([index] * 20) for index in range(4)]
        loaded = np.zeros((4, 2, 4096), np.uint8)
        assert namespace.load(others, addresses(loaded)).wait().all_done
        assert np.array_equal(loaded, memory[:4])
        assert store.statistics()["tiers"][0]["statistics"]["blocks"] == 20
        peer.stdin.close()
        assert peer.wait(PATIENCE) == 0


def test_a_client_notices_that_the_engine_was_closed(folder):
    socket = str(folder / "l.sock")
    store = Store.embedded(SMALL, listen=socket)
    with Store.connect(socket, timeout_ms=1000) as client:
        namespace = client.open_namespace(Identity(), LAYOUT)
        assert not namespace.lookup(hashes(1)).any()
        store.close()
        with pytest.raises(Unavailable):
            namespace.lookup(hashes(1))


def test_a_client_that_dies_gives_back_what_it_held(folder):
    socket = str(folder / "l.sock")
    with Store.embedded(SMALL, listen=socket) as store:
        layout = Layout.uniform(1, 1, 4 << 20)
        code = (
            "import sys, kvstored\n"
            "store = kvstored.Store.connect(sys.argv[1])\n"
            "namespace = store.open_namespace(kvstored.Identity(), kvstored.Layout.uniform(1, 1, 4 << 20))\n"
            "session = namespace.begin_dump([bytes([i] * 16) for i in range(7)])\n"
            "print(session.task.failed_blocks().size, flush=True)\n"
            "sys.stdin.read()\n"
        )
        peer = subprocess.Popen(
            [sys.executable, "-c", code, socket], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert peer.stdout.readline().strip() == "0"
        namespace = store.open_namespace(Identity(), layout)
        memory = np.zeros((6, 1, 4 << 20), np.uint8)
        task = namespace.dump(hashes(6), addresses(memory), timeout_ms=20_000)
        assert not task.check()
        peer.kill()
        peer.wait()
        assert task.wait().all_done
        wait_for(lambda: bool(namespace.lookup(hashes(6)).all()), "the dump")
