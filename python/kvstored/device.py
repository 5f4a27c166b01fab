"""Devices with an engine's memory on them."""

from __future__ import annotations

import os
from collections.abc import Mapping

from kvstored import _native
from kvstored._native import DeviceEvent

PLUGINS = {"npu": "ascend", "cuda": "cuda"}
"""The plugin for each kind of device, by the name that torch has for it."""


class Device:
    """An accelerator that an engine of this process keeps its memory on. Made by :meth:`open`; any thread may use it.

    Loads and dumps that are given one take addresses on it. They copy through the store's memory, many blocks in one
    call of the device's library, on streams of their own.
    """

    def __init__(self, native: _native.Device, number: int) -> None:
        self._native = native
        self.number = number
        """The device's number in this process."""
        self.name: str = native.name

    @staticmethod
    def open(
        plugin: str,
        *,
        number: int = 0,
        plugin_directory: str | os.PathLike[str] | None = None,
        plugin_setting: Mapping[str, str] | None = None,
        timeout_ms: int = 5000,
    ) -> Device:
        """Load a plugin, ``ascend`` or ``cuda`` or another's, and open its device.

        ``plugin_directory`` is where it lies, with its list of sums; ``plugins`` beside the program ``kvstored`` if not
        given. That program tries the plugin first, in a process of its own: the one named by ``KVSTORED_PROGRAM``, or
        the first on the ``PATH``. ``plugin_setting`` is what the plugin is told, such as ``library``; ``number`` is the
        device as the engine counts in this process. ``timeout_ms`` is how long a call of the plugin may take.

        Raises :class:`~kvstored.errors.Unsupported` where there is no such program,
        :class:`~kvstored.errors.PermissionDenied` and :class:`~kvstored.errors.Mismatch` for a plugin that isn't
        trusted, :class:`~kvstored.errors.InvalidInput` for one that can't be loaded, and what the plugin says.
        """
        directory = None if plugin_directory is None else os.fspath(plugin_directory)
        told = {"device": str(number), **{key: str(value) for key, value in (plugin_setting or {}).items()}}
        return Device(_native.Device.open(plugin, directory, sorted(told.items()), timeout_ms), number)

    def record(self, stream: int) -> DeviceEvent:
        """Mark the present end of a stream of the engine's, given by its handle in the device's runtime.

        What is given to a load or dump as ``after`` lives as long as its task by itself.
        """
        return self._native.record(stream)

    @property
    def is_lost(self) -> bool:
        """Whether copies had to be given up that may still be under way: the device is given nothing any more.

        Memory of tasks that failed then may still be written: the engine must not use it.
        """
        return self._native.is_lost

    @property
    def batch_calls(self) -> int:
        """Calls so far that handed a batch of copies to the device."""
        return self._native.counts[0]

    @property
    def copies(self) -> int:
        """Copies so far, in whichever calls."""
        return self._native.counts[2]
