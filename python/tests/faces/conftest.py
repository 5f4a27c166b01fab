"""Fixtures of the tests of other engines' interfaces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def make_ucm_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Makes stores as UCM does, and closes them. Those of one engine meet in the test's folder."""
    from ucm_rig import configuration, create

    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    made: list[Any] = []

    def make(**config: Any) -> Any:
        made.append(create(configuration(folder, **config)))
        return made[-1]

    yield make
    for one in made:
        one.close()
