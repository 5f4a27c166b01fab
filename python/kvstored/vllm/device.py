"""Finds out where the engine's KV lies, and opens the device that it lies on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from kvstored import InvalidInput
from kvstored.device import PLUGINS
from kvstored.engine_memory import EngineMemory, open_device_memory
from kvstored.vllm.configuration import ConnectorSettings

logger = logging.getLogger("vllm.kvstored")


def open_memory(kv_caches: Mapping[str, Any], settings: ConnectorSettings) -> EngineMemory:
    """The memory that these tensors lie in; where that's a device, its plugin is loaded.

    Raises:
        InvalidInput: for tensors on several devices, or on one that no plugin is known for.
        KvstoredError: where the plugin can't be loaded, saying what to change.
    """
    found = {
        (tensor.device.type, tensor.device.index)
        for cache in kv_caches.values()
        for tensor in ([cache] if hasattr(cache, "data_ptr") else cache)
    }
    if len(found) > 1:
        places = ", ".join(sorted(f"{kind}:{index}" for kind, index in found))
        raise InvalidInput(f"the engine's KV lies on several devices, which is not supported: {places}")
    kind, index = found.pop() if found else ("cpu", None)
    if kind == "cpu":
        return EngineMemory()
    plugin = PLUGINS.get(kind, "") if settings.kv_device == "auto" else settings.kv_device
    if not plugin:
        raise InvalidInput(
            f"the engine's KV lies on device {kind}:{index}, and kv_device names no plugin for it; known by themselves "
            f"are {', '.join(sorted(PLUGINS))}"
        )
    memory = open_device_memory(
        kind,
        index or 0,
        plugin,
        plugin_directory=settings.kv_device_directory or None,
        plugin_setting=settings.kv_device_setting,
        event_sync=settings.enable_event_sync,
    )
    order = "after the engine's events" if settings.enable_event_sync else "after waiting for the engine's stream"
    logger.info("kvstored: KV on %s:%s is copied by plugin %s, %s", kind, index, plugin, order)
    return memory
