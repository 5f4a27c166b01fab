"""With a daemon: hits over its restarts, and right tokens whatever happens to it and to what it stores."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from connector_rig import MODES, Engine, Reference, cached, through, tokens, transfer
from lab import Daemon, daemon_binary, prompt

TOKENS = 8
LOAD_DEADLINE_MS = 3_000

pytestmark = pytest.mark.skipif(daemon_binary() is None, reason="the kvstored program isn't built")


class Rig:
    """An engine and the daemon that it uses; each test may have a daemon of its own behind the same socket."""

    def __init__(self, engine: Engine, folder: Path, storage: Path) -> None:
        self.engine = engine
        self._folder = folder
        self._storage = storage
        self.daemon = self._new()

    def _new(self, **options: str) -> Daemon:
        return Daemon(folder=self._folder, storage=self._storage, **options)

    def replace_daemon(self, storage: Path, **options: str) -> None:
        """Ends the daemon and starts another with other storage or sizes."""
        self.daemon.stop()
        self._storage = storage
        self.daemon = self._new(**options).start()
        self.await_answer()

    def await_answer(self) -> None:
        """Waits until the engine uses the daemon again after it was away: it asks less and less often meanwhile."""
        for attempt in range(200):
            before = self.engine.measure("lookups", outcome="unavailable")
            asked = self.engine.measure("lookups")
            self.engine.generate([prompt(200, seed=900_000 + attempt)], 1)
            answered = self.engine.measure("lookups") - asked > self.engine.measure("lookups", outcome="unavailable") - before
            self.engine.settle()
            if answered and self.warm(900_000 + attempt):
                return
        pytest.fail("the engine never used the daemon again")

    def warm(self, seed: int) -> bool:
        """Whether a prompt of 200 tokens is found."""
        found = cached(self.engine.generate([prompt(200, seed=seed)], 1)) == [128]
        self.engine.settle()
        return found

    def cold_from_disk(self, asked: list[list[int]]) -> None:
        """Computes prompts and leaves them on disk only: the daemon is another afterwards."""
        self.engine.generate(asked, 1)
        self.engine.settle()
        self.daemon.drain()
        self.daemon.restart()
        self.await_answer()


@pytest.fixture(scope="module", params=MODES)
def shared_rig(request: pytest.FixtureRequest, tiny_model: Path, module_folder: Path) -> Iterator[Rig]:
    folder = module_folder / request.param
    folder.mkdir()
    settings = through(folder / "kvstored.sock", **{**MODES[request.param], "load_deadline_ms": LOAD_DEADLINE_MS})
    settings["dump_deadline_ms"] = LOAD_DEADLINE_MS
    engine = Engine(tiny_model, kv_transfer=transfer(settings), log=folder / "engine.log")
    rig = Rig(engine, folder, folder / "blocks")
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: rig.daemon.remove())
        rig.daemon.start()
        stack.enter_context(engine)
        yield rig
    assert "the cache does without" not in (folder / "engine.log").read_text()


@pytest.fixture
def rig(shared_rig: Rig) -> Iterator[Rig]:
    """The rig with a daemon that runs and is used."""
    if not shared_rig.daemon.is_running:
        shared_rig.daemon.kill()
        shared_rig.daemon.start()
    shared_rig.await_answer()
    return shared_rig


def check(rig: Rig, reference: Reference, asked: list[list[int]], found: list[int] | None = None) -> None:
    """Asks prompts and compares their tokens; `found`: of how many tokens each was found, where that's certain."""
    answers = rig.engine.generate(asked, TOKENS)
    assert tokens(answers) == reference.tokens(asked, TOKENS)
    if found is not None:
        assert cached(answers) == found
    rig.engine.settle()


def test_hits_over_the_daemons_restarts(rig: Rig, reference: Reference) -> None:
    asked = [prompt(700, seed=1), prompt(2000, seed=2)]
    check(rig, reference, asked, [0, 0])
    check(rig, reference, asked, [640, 1920])
    rig.daemon.drain()
    rig.daemon.restart()
    rig.await_answer()
    check(rig, reference, asked, [640, 1920])
    rig.daemon.kill()
    check(rig, reference, asked, [0, 0])
    rig.daemon.start()
    rig.await_answer()
    check(rig, reference, asked, [640, 1920])


@pytest.mark.parametrize("moment", ["before_load", "after_load"])
def test_a_daemon_killed_while_it_loads(rig: Rig, reference: Reference, moment: str) -> None:
    asked = [prompt(2000, seed=10 + len(moment)), prompt(600, seed=11 + len(moment))]
    rig.cold_from_disk(asked)
    rig.engine.probe("signal_at", moment=moment, process=rig.daemon.process.pid, number=signal.SIGKILL)
    check(rig, reference, asked)
    assert rig.daemon.process.wait(timeout=30) == -signal.SIGKILL
    check(rig, reference, asked, [0, 0])


@pytest.mark.parametrize("moment", ["before_dump", "after_dump"])
def test_a_daemon_killed_while_it_takes_dumps(rig: Rig, reference: Reference, moment: str) -> None:
    asked = [prompt(1500, seed=20 + len(moment)), prompt(400, seed=21 + len(moment))]
    rig.engine.probe("signal_at", moment=moment, process=rig.daemon.process.pid, number=signal.SIGKILL)
    check(rig, reference, asked)
    assert rig.daemon.process.wait(timeout=30) == -signal.SIGKILL
    check(rig, reference, asked)


def test_a_daemon_that_hangs_while_it_loads(rig: Rig, reference: Reference) -> None:
    asked = [prompt(1200, seed=30)]
    rig.cold_from_disk(asked)
    late = rig.engine.measure("failed_blocks", cause="late")
    rig.engine.probe("signal_at", moment="before_load", process=rig.daemon.process.pid, number=signal.SIGSTOP)
    try:
        check(rig, reference, asked)
        # nobody waits for it any more
        check(rig, reference, [prompt(300, seed=31)], [0])
    finally:
        rig.daemon.resume()
    assert rig.engine.measure("failed_blocks") > late
    rig.await_answer()
    check(rig, reference, asked)
    check(rig, reference, asked, [1152])


def test_a_daemon_that_hangs_while_it_takes_dumps(rig: Rig, reference: Reference) -> None:
    asked = [prompt(1200, seed=40)]
    rig.engine.probe("signal_at", moment="before_dump", process=rig.daemon.process.pid, number=signal.SIGSTOP)
    try:
        check(rig, reference, asked)
        check(rig, reference, asked, [0])
    finally:
        rig.daemon.resume()
    rig.await_answer()
    check(rig, reference, asked)
    check(rig, reference, asked, [1152])


def test_damaged_files_are_never_served(rig: Rig, reference: Reference, folder: Path) -> None:
    asked = [prompt(700, seed=50 + index) for index in range(6)]
    rig.replace_daemon(folder / "damaged", posix_capacity="256MiB")
    rig.engine.generate(asked, 1)
    rig.engine.settle()
    rig.daemon.drain()
    rig.daemon.stop()
    assert damage(folder / "damaged", seed=5) > 0
    rig.daemon.start()
    rig.await_answer()
    check(rig, reference, asked)
    # computed again and stored again
    check(rig, reference, asked)


def damage(storage: Path, seed: int) -> int:
    """Changes a byte in every 64 KiB that isn't empty, of every file. Returns how many."""
    chance = random.Random(seed)
    changed = 0
    for path in sorted(path for path in storage.rglob("segment-*") if path.is_file()):
        with path.open("r+b") as file:
            for start in range(0, path.stat().st_size, 64 << 10):
                file.seek(start)
                piece = file.read(64 << 10)
                if not any(piece):
                    continue
                place = chance.randrange(len(piece))
                file.seek(start + place)
                file.write(bytes([piece[place] ^ (1 << chance.randrange(8))]))
                changed += 1
    return changed


def test_a_small_capacity_costs_hits_only(rig: Rig, reference: Reference, folder: Path) -> None:
    asked = [prompt(1500, seed=60 + index) for index in range(12)]
    rig.replace_daemon(folder / "small", cache_capacity="16MiB", posix_capacity="24MiB")
    # 66 MiB of blocks
    check(rig, reference, asked)
    check(rig, reference, asked)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount file systems")
@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_disk_that_takes_nothing_more(rig: Rig, reference: Reference, folder: Path, trouble: str) -> None:
    storage = folder / "mount"
    storage.mkdir()
    asked = [prompt(1500, seed=70 + index + len(trouble)) for index in range(6)]
    with contextlib.ExitStack() as mounts:
        mount(mounts, storage, "size=40m")
        rig.replace_daemon(storage, cache_capacity="16MiB", posix_capacity="1GiB")
        check(rig, reference, asked[:2])
        if trouble == "full":
            with contextlib.suppress(OSError), (storage / "ballast").open("wb") as ballast:
                while ballast.write(bytes(1 << 20)):
                    ballast.flush()
        else:
            mount(mounts, storage, "ro")
        check(rig, reference, asked)
        check(rig, reference, asked)
        rig.daemon.kill()


def mount(mounts: contextlib.ExitStack, place: Path, options: str) -> None:
    """Mounts an empty file system in memory there until the stack ends."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)
    mounts.callback(subprocess.run, ["umount", "--lazy", str(place)], check=True)
