"""Connectors for vLLM: name `kvstored.vllm` as `kv_connector_module_path` in `--kv-transfer-config`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvstored.vllm.connector import KVStoredConnector, UCMConnector
    from kvstored.vllm.handoff.connector import MooncakeConnectorV1

__all__ = ["KVStoredConnector", "MooncakeConnectorV1", "UCMConnector"]

_MODULES = {
    "KVStoredConnector": "kvstored.vllm.connector",
    "UCMConnector": "kvstored.vllm.connector",
    "MooncakeConnectorV1": "kvstored.vllm.handoff.connector",
}


def __getattr__(name: str) -> Any:
    # vLLM is imported when a connector is asked for: the governor and the settings don't need it
    module = _MODULES.get(name)
    if module is not None:
        return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
