"""Fixtures for tests with real engines and daemons. Whatever a test starts has ended when the test has."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lab import Daemon, EngineNursery, InProcessEngine, VllmServer, daemon_binary, descendants, free_port, make_model
from lab.processes import is_alive

_ORPHANS_SECONDS = 5.0
_REAL_VLLM_TESTS = Path(__file__).parent / "vllm"
ModelMaker = Callable[..., Path]


def _has_vllm() -> bool:
    # a folder called vllm on the path is found too, but it has no code
    found = importlib.util.find_spec("vllm")
    return found is not None and found.origin is not None


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leaves the tests with a real vLLM out where there is none: they couldn't even be imported."""
    return True if collection_path == _REAL_VLLM_TESTS and not _has_vllm() else None


def pytest_configure() -> None:
    """Ends as on Ctrl-C when asked to end, so that fixtures stop what they started."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_report_header() -> str:
    """Says what there is to test with."""
    program = daemon_binary()
    return "\n".join(
        [
            "vLLM: installed" if _has_vllm() else "vLLM: not installed; tests that need it are left out",
            f"kvstored program: {program or 'none; tests that need it are skipped'}",
        ]
    )


@pytest.fixture(scope="session")
def models() -> Iterator[ModelMaker]:
    """Makes models as `lab.make_model` does, without a folder; each set of arguments once a session."""
    folder = Path(tempfile.mkdtemp(prefix="kvstored-models-"))

    def model(preset: str = "tiny", **options: Any) -> Path:
        parts = [preset, *(f"{name}-{value}" for name, value in sorted(options.items()))]
        return make_model(folder / "-".join(parts), preset, **options)

    yield model
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def tiny_model(models: ModelMaker) -> Path:
    """The smallest model."""
    return models("tiny")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A new folder with a path short enough for sockets in it."""
    path = Path(tempfile.mkdtemp(prefix="kvstored-test-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def port() -> int:
    """A free TCP port."""
    return free_port()


@pytest.fixture
def start_daemon() -> Iterator[Callable[..., Daemon]]:
    """Starts daemons as `lab.Daemon` does and removes them after the test; skips where the program isn't built."""
    if daemon_binary() is None:
        pytest.skip("the kvstored program isn't built")
    with contextlib.ExitStack() as daemons:
        yield lambda **options: daemons.enter_context(Daemon(**options))


@pytest.fixture(scope="session")
def nursery() -> Iterator[EngineNursery]:
    """Where engines come from: whoever starts some asks for it, so that all of them are quickly up."""
    folder = Path(tempfile.mkdtemp(prefix="kvstored-nursery-"))
    with EngineNursery(folder / "nursery.log") as started:
        yield started
    shutil.rmtree(folder)


@pytest.fixture
def start_engine(nursery: EngineNursery, folder: Path) -> Iterator[Callable[..., InProcessEngine]]:
    """Starts engines as `lab.InProcessEngine` does, with a log of their own, and stops them after the test."""
    with contextlib.ExitStack() as engines:
        started = 0

        def start(model: Path, **options: Any) -> InProcessEngine:
            nonlocal started
            started += 1
            options.setdefault("log", folder / f"engine-{started}.log")
            return engines.enter_context(InProcessEngine(model, **options))

        yield start


@pytest.fixture
def start_server(folder: Path) -> Iterator[Callable[..., VllmServer]]:
    """Starts servers as `lab.VllmServer` does, with a log of their own, and stops them after the test."""
    with contextlib.ExitStack() as servers:
        started = 0

        def start(model: Path, **options: Any) -> VllmServer:
            nonlocal started
            started += 1
            options.setdefault("log", folder / f"server-{started}.log")
            return servers.enter_context(VllmServer(model, **options))

        yield start


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fails a test that leaves a process. Those of fixtures with a longer life were there before."""
    before = set(descendants(os.getpid()))
    yield

    def still_there() -> list[int]:
        return [process for process in descendants(os.getpid()) if process not in before and not _is_helper(process)]

    # an engine's orphans, which end by themselves when they notice, are below this process too
    deadline = time.monotonic() + _ORPHANS_SECONDS
    while (left := still_there()) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    names = [_command(process) for process in left]
    assert not left, f"the test left processes: {names}"


def _command(process: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return f"process {process}"


def _is_helper(process: int) -> bool:
    # Python's own for multiprocessing, which lives as long as the interpreter
    return not is_alive(process) or "multiprocessing.resource_tracker" in _command(process)
