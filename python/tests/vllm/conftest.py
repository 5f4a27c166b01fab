"""Fixtures of the tests of the connector."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from connector_rig import Engine, Reference
from lab import EngineNursery


@pytest.fixture(scope="session", autouse=True)
def all_from_the_nursery(nursery: EngineNursery) -> EngineNursery:
    """Every engine of these tests is forked from it."""
    return nursery


@pytest.fixture(scope="session")
def reference(tiny_model: Path) -> Iterator[Reference]:
    """What the tiny model answers without any connector. Its engine idles between questions."""
    folder = Path(tempfile.mkdtemp(prefix="kvstored-reference-"))
    with Engine(tiny_model, log=folder / "engine.log") as engine:
        yield Reference(engine)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def module_folder() -> Iterator[Path]:
    """A folder for what the tests of a module share, with a path short enough for sockets in it."""
    path = Path(tempfile.mkdtemp(prefix="kvstored-module-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def connected(folder: Path) -> Iterator[Callable[..., Engine]]:
    """Starts engines for one test and stops them."""
    engines: list[Engine] = []

    def start(model: Path, **options: Any) -> Engine:
        options.setdefault("log", folder / f"engine-{len(engines) + 1}.log")
        engines.append(Engine(model, **options))
        return engines[-1].start()

    yield start
    for engine in engines:
        engine.stop()
