"""vLLM's own Mooncake connectors where there is no accelerator: named as `kv_connector_module_path`.

The classes are vLLM's, unchanged. What they ask of an accelerator is answered as a machine with one device would whose
work is done as soon as it is submitted.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

import torch

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


def __getattr__(name: str) -> Any:
    module = _CONNECTORS.get(name)
    if module is None:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"vllm.distributed.kv_transfer.kv_connector.v1.mooncake.{module}"), name)
