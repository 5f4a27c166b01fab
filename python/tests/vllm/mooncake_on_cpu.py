"""vLLM's own Mooncake connectors where there is no accelerator: named as `kv_connector_module_path`.

The classes are vLLM's, unchanged. What they ask of an accelerator is answered as a machine with one device would whose
work is done as soon as it is submitted. Where the variable COUNTERS_VARIABLE names a folder, every transfer engine of
this process keeps a file there with what it has moved.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import torch

COUNTERS_VARIABLE = "MOONCAKE_ON_CPU_COUNTERS"
_PERIOD_S = 0.1
_CONNECTORS = {
    "MooncakeConnector": "mooncake_connector",
    "MooncakeStoreConnector": "store.connector",
}


class _DoneEvent:
    """An event of a device whose work is always done."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        """Nothing is under way."""

    def synchronize(self) -> None:
        """Nothing is under way."""

    def wait(self, *_: Any) -> None:
        """Nothing is under way."""

    def query(self) -> bool:
        """Whether all is done."""
        return True


def _has_device() -> bool:
    with contextlib.suppress(Exception):
        torch.accelerator.current_device_index()
        return True
    return False


if not _has_device():
    torch.accelerator.current_device_index = lambda: 0
    torch.cuda.Event = _DoneEvent


def _keep_counters(engine: weakref.ref[Any], path: Path) -> None:
    """Writes an engine's counters again and again, as long as it lives."""
    while (alive := engine()) is not None:
        new = path.with_suffix(".new")
        new.write_text(json.dumps(alive.counters()))
        new.rename(path)
        del alive
        time.sleep(_PERIOD_S)


def _watch_engines(folder: Path) -> None:
    """Has every engine that starts here keep its counters in a file."""
    from mooncake.engine import TransferEngine

    start = TransferEngine.initialize

    @functools.wraps(start)
    def initialize(engine: Any, *arguments: Any) -> int:
        status = start(engine, *arguments)
        path = folder / f"{os.getpid()}.json"
        threading.Thread(target=_keep_counters, args=[weakref.ref(engine), path], daemon=True).start()
        return status

    TransferEngine.initialize = initialize


if os.environ.get(COUNTERS_VARIABLE):
    _watch_engines(Path(os.environ[COUNTERS_VARIABLE]))


def __getattr__(name: str) -> Any:
    module = _CONNECTORS.get(name)
    if module is None:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"vllm.distributed.kv_transfer.kv_connector.v1.mooncake.{module}"), name)
