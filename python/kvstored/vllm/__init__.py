"""Connectors for vLLM: name `kvstored.vllm` as `kv_connector_module_path` in `--kv-transfer-config`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvstored.vllm.connector import KVStoredConnector, UCMConnector

__all__ = ["KVStoredConnector", "UCMConnector"]


def __getattr__(name: str) -> Any:
    # vLLM is imported when a connector is asked for: the governor and the settings don't need it
    if name in __all__:
        from kvstored.vllm import connector

        return getattr(connector, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
