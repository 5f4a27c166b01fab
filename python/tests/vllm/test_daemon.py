"""With a daemon: hits over its restarts, and right tokens whatever happens to it and to what it stores."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from connector_rig import LONG, MODES, Engine, Reference, cached, through, tokens, transfer
from lab import Daemon, daemon_binary, prompt

TOKENS = 8
LOAD_DEADLINE_MS = 3_000
PATIENCE_S = 120.0

pytestmark = pytest.mark.skipif(daemon_binary() is None, reason="the kvstored program isn't built")


class Rig:
    """An engine and the daemon that it uses; each test may have a daemon of its own behind the same socket."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        self._folder = folder
        self._asked = 0
        self.daemon = self.usual_daemon()

    def usual_daemon(self) -> Daemon:
        """A daemon over the storage that most tests share."""
        return Daemon(folder=self._folder, storage=self._folder / "blocks")

    def start_daemon(self, storage: Path | None = None, **options: str) -> None:
        """Starts a daemon, of other storage or sizes if given, in place of the one that runs, and waits for its use."""
        self.daemon.stop()
        if storage is not None:
            self.daemon = Daemon(folder=self._folder, storage=storage, **options)
        self.daemon.start()
        self.await_use()

    def tier(self, name: str) -> dict[str, Any]:
        """Numbers of one of the daemon's tiers."""
        tiers = self.daemon.statistics()["tiers"]
        return next(tier["statistics"] for tier in tiers if tier["name"] == name)

    def restart_daemon(self) -> None:
        """Leaves everything on disk only: the daemon is another afterwards."""
        self.daemon.drain()
        self.start_daemon()

    def await_use(self) -> None:
        """Waits until the engine uses the daemon: after it was away, the engine asks less and less often."""
        deadline = time.monotonic() + PATIENCE_S
        found = 0
        while not found:
            assert time.monotonic() < deadline, "the engine doesn't use the daemon"
            self._asked += 1
            asked = prompt(200, seed=900_000 + self._asked)
            for _ in range(2):
                found = self.engine.generate([asked], 1)[0].cached_tokens
                self.engine.settle()
            time.sleep(0 if found else 0.2)

    def cold_from_disk(self, asked: list[list[int]]) -> None:
        """Computes prompts, which are on disk only then."""
        self.engine.generate(asked, 1)
        self.engine.settle()
        self.restart_daemon()


@pytest.fixture(scope="module", params=MODES)
def shared_rig(request: pytest.FixtureRequest, tiny_model: Path, module_folder: Path) -> Iterator[Rig]:
    folder = module_folder / request.param
    folder.mkdir()
    settings = through(folder / "kvstored.sock", **{**MODES[request.param], "load_deadline_ms": LOAD_DEADLINE_MS})
    settings["dump_deadline_ms"] = LOAD_DEADLINE_MS
    engine = Engine(tiny_model, kv_transfer=transfer(settings), log=folder / "engine.log")
    rig = Rig(engine, folder)
    with rig.daemon, engine:
        # each test starts its own
        rig.daemon.stop()
        yield rig
    log = (folder / "engine.log").read_text()
    assert "the cache does without" not in log
    assert "Traceback" not in log


# what happens in the daemon alone needn't be seen from each
in_one_mode = pytest.mark.parametrize("shared_rig", ["async"], indirect=True)
# both that load whole blocks dump them the same way
in_each_way_to_dump = pytest.mark.parametrize("shared_rig", ["async", "layerwise"], indirect=True)


def in_one_mode_or_long(*modes: str) -> pytest.MarkDecorator:
    """In the first mode, and where long tests run in the others too."""
    first, *others = modes
    params = [first, *(pytest.param(mode, marks=LONG) for mode in others)]
    return pytest.mark.parametrize("shared_rig", params, indirect=True)


@pytest.fixture
def rig(shared_rig: Rig, folder: Path) -> Iterator[Rig]:
    """The rig with a daemon that is used; it ends with the test, before the folder that it may write to goes."""
    shared_rig.daemon = shared_rig.usual_daemon()
    shared_rig.start_daemon()
    yield shared_rig
    shared_rig.daemon.kill()


def check(rig: Rig, reference: Reference, asked: list[list[int]], found: list[int] | None = None) -> None:
    """Asks prompts and compares their tokens; `found`: of how many tokens each was found, where that's certain."""
    answers = rig.engine.generate(asked, TOKENS)
    assert tokens(answers) == reference.tokens(asked, TOKENS)
    if found is not None:
        assert cached(answers) == found
    rig.engine.settle()


@in_each_way_to_dump
def test_hits_over_the_daemons_restarts(rig: Rig, reference: Reference) -> None:
    asked = [prompt(700, seed=1), prompt(2000, seed=2)]
    check(rig, reference, asked, [0, 0])
    check(rig, reference, asked, [640, 1920])
    rig.restart_daemon()
    check(rig, reference, asked, [640, 1920])
    rig.daemon.kill()
    check(rig, reference, asked, [0, 0])
    rig.start_daemon()
    check(rig, reference, asked, [640, 1920])


@pytest.mark.parametrize("moment", ["before_load", "after_load"])
def test_a_daemon_killed_while_it_loads(rig: Rig, reference: Reference, moment: str) -> None:
    asked = [prompt(2000, seed=10 + len(moment)), prompt(600, seed=11 + len(moment))]
    rig.cold_from_disk(asked)
    rig.engine.probe("signal_at", moment=moment, process=rig.daemon.process.pid, number=signal.SIGKILL)
    check(rig, reference, asked)
    assert rig.daemon.process.wait(timeout=30) == -signal.SIGKILL
    check(rig, reference, asked, [0, 0])


@in_each_way_to_dump
@pytest.mark.parametrize("moment", ["before_dump", "after_dump"])
def test_a_daemon_killed_while_it_takes_dumps(rig: Rig, reference: Reference, moment: str) -> None:
    asked = [prompt(1500, seed=20 + len(moment)), prompt(400, seed=21 + len(moment))]
    rig.engine.probe("signal_at", moment=moment, process=rig.daemon.process.pid, number=signal.SIGKILL)
    check(rig, reference, asked)
    assert rig.daemon.process.wait(timeout=30) == -signal.SIGKILL
    check(rig, reference, asked)


@in_one_mode_or_long(*MODES)
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
    rig.await_use()
    check(rig, reference, asked)
    check(rig, reference, asked, [1152])


@in_one_mode_or_long("layerwise", "async")
def test_a_daemon_that_hangs_while_it_takes_dumps(rig: Rig, reference: Reference) -> None:
    asked = [prompt(1200, seed=40)]
    rig.engine.probe("signal_at", moment="before_dump", process=rig.daemon.process.pid, number=signal.SIGSTOP)
    try:
        check(rig, reference, asked)
        check(rig, reference, asked, [0])
    finally:
        rig.daemon.resume()
    rig.await_use()
    check(rig, reference, asked)
    check(rig, reference, asked, [1152])


def test_damaged_files_are_never_served(rig: Rig, reference: Reference, folder: Path) -> None:
    asked = [prompt(700, seed=50 + index) for index in range(6)]
    rig.start_daemon(folder / "damaged", posix_capacity="256MiB")
    rig.engine.generate(asked, 1)
    rig.engine.settle()
    rig.daemon.drain()
    rig.daemon.stop()
    assert damage(folder / "damaged", seed=5) > 0
    rig.start_daemon()
    failed = rig.engine.measure("failed_blocks")
    check(rig, reference, asked)
    assert rig.engine.measure("failed_blocks") > failed, "nobody noticed"
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


@in_one_mode
def test_a_small_capacity_costs_hits_only(rig: Rig, reference: Reference, folder: Path) -> None:
    asked = [prompt(1500, seed=60 + index) for index in range(8)]
    rig.start_daemon(folder / "small", cache_capacity="16MiB", posix_capacity="24MiB")
    # 44 MiB of blocks
    check(rig, reference, asked)
    check(rig, reference, asked)
    assert rig.tier("Posix")["evicted_blocks"] + rig.tier("Posix")["refused_writes"] > 0, "there was room for all"


@in_one_mode
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount file systems")
@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_disk_that_takes_nothing_more(rig: Rig, reference: Reference, folder: Path, trouble: str) -> None:
    storage = folder / "mount"
    storage.mkdir()
    asked = [prompt(1500, seed=70 + index + len(trouble)) for index in range(6)]
    with contextlib.ExitStack() as mounts:
        mount(mounts, storage, "size=40m")
        rig.start_daemon(storage, cache_capacity="16MiB", posix_capacity="1GiB")
        check(rig, reference, asked[:2])
        if trouble == "full":
            with contextlib.suppress(OSError), (storage / "ballast").open("wb") as ballast:
                while ballast.write(bytes(1 << 20)):
                    ballast.flush()
        else:
            mount(mounts, storage, "ro")
        check(rig, reference, asked)
        check(rig, reference, asked)
        assert rig.tier("Posix")["refused_writes"] > 0, "everything could be written"
        # it holds files there
        rig.daemon.kill()


def mount(mounts: contextlib.ExitStack, place: Path, options: str) -> None:
    """Mounts an empty file system in memory there until the stack ends."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)
    mounts.callback(subprocess.run, ["umount", "--lazy", str(place)], check=True)
