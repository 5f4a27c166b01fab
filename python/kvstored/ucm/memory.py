"""Where the engine's KV buffers lie, from UCM's configuration."""

from __future__ import annotations

from collections.abc import Mapping

from kvstored import InvalidInput, Unsupported
from kvstored.device import PLUGINS
from kvstored.engine_memory import EngineMemory, device_kind, open_device_memory
from kvstored.ucm.addresses import Buffers

DEVICE_KEYS = ("kv_device", "kv_device_directory", "kv_device_setting", "enable_event_sync")
"""Keys of ours about the device; those of the connector for vLLM."""


def open_memory(config: Mapping[str, object]) -> tuple[Buffers, EngineMemory]:
    """The engine's buffers, and what copies have to keep in step with.

    Buffers that aren't host memory lie on the device that torch uses, whose plugin is loaded; `kv_device` names another
    plugin. Raises InvalidInput, Unsupported for buffers on a device that isn't known, and as loading a plugin does.
    """
    ranges = _ranges(config)
    plugin = config.get("kv_device") or "auto"
    if not isinstance(plugin, str):
        raise InvalidInput(f"kv_device is {plugin!r}; auto or the name of a plugin is expected")
    kind = device_kind()
    if plugin == "auto":
        try:
            return Buffers(ranges, on_device=False), EngineMemory()
        except Unsupported:
            if kind is None:
                raise
            plugin = PLUGINS[kind]
    if kind is None:
        raise Unsupported(f"kv_device is {plugin}, but torch uses no device in this process")
    number = config.get("device_id")
    directory, told = config.get("kv_device_directory") or None, config.get("kv_device_setting") or {}
    if not isinstance(number, int) or number < 0:
        raise InvalidInput(f"device_id is {number!r}; the number of the device that the buffers lie on is expected")
    if not isinstance(directory, str | None):
        raise InvalidInput(f"kv_device_directory is {directory!r}; a path is expected")
    if not isinstance(told, Mapping):
        raise InvalidInput(f"kv_device_setting is {told!r}; an object of strings is expected")
    memory = open_device_memory(
        kind,
        number,
        plugin,
        plugin_directory=directory,
        plugin_setting={str(key): str(value) for key, value in told.items()},
        event_sync=bool(config.get("enable_event_sync", True)),
    )
    return Buffers(ranges, on_device=True), memory


def _ranges(config: Mapping[str, object]) -> list[tuple[int, int]]:
    starts, sizes = config.get("gpu_kv_buffer_addrs") or (), config.get("gpu_kv_buffer_sizes") or ()
    return list(zip(starts, sizes, strict=True))  # type: ignore[call-overload]
