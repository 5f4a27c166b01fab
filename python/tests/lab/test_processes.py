"""Nothing that the lab starts outlives it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from lab import Tree, descendants, is_alive, start_leashed

# a program with a child; both say when they run
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; print('child', flush=True); time.sleep(600)"])
print("parent", flush=True)
time.sleep(600)
"""
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
)
WITH_MEMORY_FILE = """
import mmap, time
file = open({path!r}, "w+b")
file.truncate(4096)
memory = mmap.mmap(file.fileno(), 4096)
print("ready", flush=True)
time.sleep(600)
"""


WITH_SEMAPHORE = """
import multiprocessing, time
semaphore = multiprocessing.get_context("spawn").Semaphore()
print(semaphore._semlock.name, "ready", flush=True)
time.sleep(600)
"""


def start(script: str, log: Path, *lines: str) -> Tree:
    tree = Tree(start_leashed([sys.executable, "-c", script], environment=os.environ, log=log))
    wait_until(lambda: set(lines) <= set(log.read_text().split()))
    return tree


def wait_until(true: object) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_terminating_a_tree_ends_the_children_of_its_root_too(folder: Path) -> None:
    tree = start(PARENT, folder / "log", "parent", "child")
    processes = tree.refresh()
    assert len(processes) == 2
    # the root ends without its child, which has to be killed
    assert not tree.terminate(timeout=0.5)
    assert not [process for process in processes if is_alive(process)]


def test_a_program_that_ignores_the_request_is_killed(folder: Path) -> None:
    tree = start(STUBBORN, folder / "log", "ready")
    assert not tree.terminate(timeout=0.2)
    assert not is_alive(tree.root.pid)


def test_files_in_shared_memory_go_with_their_tree(folder: Path) -> None:
    path = Path(f"/dev/shm/kvstored-lab-test-{os.getpid()}")
    tree = start(WITH_MEMORY_FILE.format(path=str(path)), folder / "log", "ready")
    assert path.exists()
    tree.kill()
    assert not path.exists()


def test_semaphores_go_with_their_tree(folder: Path) -> None:
    log = folder / "log"
    tree = start(WITH_SEMAPHORE, log, "ready")
    path = Path(f"/dev/shm/sem.{log.read_text().split()[0].lstrip('/')}")
    assert path.exists()
    tree.kill()
    assert not path.exists()


def test_files_in_shared_memory_stay_while_others_use_them(folder: Path) -> None:
    path = Path(f"/dev/shm/kvstored-lab-shared-{os.getpid()}")
    script = WITH_MEMORY_FILE.format(path=str(path))
    first, second = start(script, folder / "first", "ready"), start(script, folder / "second", "ready")
    second.refresh()
    first.kill()
    assert path.exists()
    second.kill()
    assert not path.exists()


def test_a_leashed_program_ends_when_its_parent_is_killed(folder: Path) -> None:
    script = f"""
import os, sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from lab import start_leashed
child = start_leashed(["sleep", "600"], environment=os.environ, log=Path({str(folder / "child")!r}))
print(child.pid, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        child = int(parent.stdout.readline())
        assert child in descendants(parent.pid)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    wait_until(lambda: not is_alive(child))
