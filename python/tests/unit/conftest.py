"""Stores for the unit tests: an engine in this process, and a real daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import Daemon, binary, short_folder

import kvstored

CACHE = {"pipeline": "Cache", "cache_buffer_capacity": "32MiB", "huge_pages": False}


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


@pytest.fixture
def embedded() -> Iterator[kvstored.Store]:
    with kvstored.Store.embedded(CACHE) as store:
        yield store


@pytest.fixture
def daemon(folder: Path) -> Iterator[Daemon]:
    program = binary()
    if program is None:
        pytest.skip("there is no kvstored binary: none is built, and KVSTORED_BINARY names none")
    daemon = Daemon(program, folder, "--pipeline", "Cache", "--cache-buffer-capacity", "32MiB", "--huge-pages", "false")
    daemon.start()
    yield daemon
    daemon.kill()


@pytest.fixture(params=["embedded", "daemon"])
def store(request: pytest.FixtureRequest) -> Iterator[kvstored.Store]:
    """Both kinds of store: what is asked of one holds for the other."""
    if request.param == "embedded":
        yield request.getfixturevalue("embedded")
        return
    with kvstored.Store.connect(request.getfixturevalue("daemon").socket) as store:
        yield store


@pytest.fixture
def namespace(store: kvstored.Store) -> kvstored.Namespace:
    """Blocks of two shards of one tensor each."""
    return store.open_namespace(kvstored.Identity(model="m"), kvstored.Layout.uniform(2, 1, 4096))


@pytest.fixture
def posix(folder: Path) -> Callable[[], kvstored.Store]:
    """Engines over one storage directory."""

    def open_store() -> kvstored.Store:
        return kvstored.Store.embedded(
            {
                **CACHE,
                "pipeline": "Cache|Posix",
                "storage_backends": folder / "storage",
                "posix_capacity": "256MiB",
                "posix_segment_bytes": "8MiB",
            }
        )

    return open_store
