"""Memory of an engine: the host's, or a device's, whose streams copies have to keep in step with."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from kvstored._native import DeviceEvent
from kvstored.device import PLUGINS, Device
from kvstored.errors import KvstoredError


class EngineMemory:
    """Host memory: what the engine has called for is done when it calls us."""

    device: Device | None = None

    @property
    def is_lost(self) -> bool:
        """Whether copies may be under way that were given up: no memory of a failed load may be used again."""
        return False

    def mark(self) -> DeviceEvent | None:
        """The point that copies have to wait for: everything that the engine has given its device by now."""
        return None


class DeviceMemory(EngineMemory):
    """Memory of a device, which runs behind the calls of the engine."""

    def __init__(self, device: Device, streams: Any, kind: str, *, event_sync: bool) -> None:
        """Takes the device, torch's module for its kind and that kind's name, and whether events order the copies."""
        self.device = device
        self._opened = device
        self._streams = streams
        self._handle = f"{kind}_stream"
        self._event_sync = event_sync

    @property
    def is_lost(self) -> bool:
        """Whether copies may be under way that were given up: no memory of a failed load may be used again."""
        return self._opened.is_lost

    def mark(self) -> DeviceEvent | None:
        """The end of the engine's stream as it is now. Without event_sync, waits here until the device has come to it.

        Raises:
            KvstoredError: as the device does.
        """
        stream = self._streams.current_stream(self._opened.number)
        if not self._event_sync:
            stream.synchronize()
            return None
        # asking for the handle makes torch_npu hand over what it still queues on the host
        return self._opened.record(int(getattr(stream, self._handle)))


def open_device_memory(
    kind: str,
    number: int,
    plugin: str,
    *,
    plugin_directory: str | os.PathLike[str] | None,
    plugin_setting: Mapping[str, str],
    event_sync: bool,
) -> DeviceMemory:
    """Load a plugin for a device of a kind, as torch names it, that torch uses in this process.

    Raises:
        KvstoredError: where the plugin can't be loaded, saying what to change.
    """
    import torch

    try:
        device = Device.open(plugin, number=number, plugin_directory=plugin_directory, plugin_setting=plugin_setting)
    except KvstoredError as error:
        raise type(error)(
            f"the engine's KV lies on device {kind}:{number}, which plugin {plugin} (kv_device, kv_device_directory) "
            f"was to open: {error}"
        ) from error
    return DeviceMemory(device, getattr(torch, kind), kind, event_sync=event_sync)


def device_kind() -> str | None:
    """The kind of device that torch uses in this process, if there is one that a plugin is known for."""
    torch = sys.modules.get("torch")
    for kind in PLUGINS:
        module = getattr(torch, kind, None)
        if module is not None and module.is_available():
            return kind
    return None
