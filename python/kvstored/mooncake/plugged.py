"""The plugin behind the transport ``ascend``: the daemon's settings, by the same names, for Python's processes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kvstored.errors import InvalidInput

ASCEND_VARIABLE = "KVSTORED_POOL_ASCEND"
DIRECTORY_VARIABLE = "KVSTORED_PLUGIN_DIRECTORY"
SETTING_VARIABLE = "KVSTORED_PLUGIN_SETTING"
TIMEOUT_VARIABLE = "KVSTORED_PLUGIN_TIMEOUT_MS"

#: The same as keys, where there is a mapping for them.
KEYS: Mapping[str, str] = {
    "pool_ascend": ASCEND_VARIABLE,
    "plugin_directory": DIRECTORY_VARIABLE,
    "plugin_setting": SETTING_VARIABLE,
    "plugin_timeout_ms": TIMEOUT_VARIABLE,
}


@dataclass(frozen=True)
class PluggedTransport:
    """What the transport ``ascend`` is. Plain data."""

    plugin: str
    """``Plugin(NAME)``."""
    directory: str | None = None
    """Where plugins lie; by default the folder ``plugins`` beside the program ``kvstored``."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """What plugins are told, by ``NAME.KEY``."""
    timeout_ms: int | None = None
    """How long a call of the plugin may take, in milliseconds."""
    by_device: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Settings with a value for each of the machine's devices, to be chosen by :meth:`of_device`."""

    @classmethod
    def configured(cls, given: Mapping[str, Any] | None = None, *, by_device: bool = False) -> PluggedTransport | None:
        """As the keys of `given` say, and where they don't, the variables; None if no plugin is named.

        by_device: whether a setting may be a list, with a value for each device.
        Raises InvalidInput for a value that can't be.
        """
        values = {key: (given or {}).get(key) for key in KEYS}
        plugin = _text("pool_ascend", values["pool_ascend"])
        if plugin is None:
            return None
        timeout = _text("plugin_timeout_ms", values["plugin_timeout_ms"])
        if timeout is not None and not (timeout.isascii() and timeout.isdigit() and len(timeout) < 10):
            raise InvalidInput(f'plugin_timeout_ms is "{timeout}"; milliseconds are accepted')
        settings = _settings(values["plugin_setting"])
        lists = {name: tuple(map(str, one)) for name, one in settings.items() if isinstance(one, list | tuple)}
        for name in lists:
            if not by_device:
                raise InvalidInput(f"plugin_setting {name} is a list, and this process has one device: give its value")
        return cls(
            plugin,
            _text("plugin_directory", values["plugin_directory"]),
            {name: str(one) for name, one in settings.items() if name not in lists},
            None if timeout is None else int(timeout),
            lists,
        )

    def of_device(self, number: int) -> PluggedTransport:
        """The same with that device's values. Raises InvalidInput where a list has none for it."""
        for name, values in self.by_device.items():
            if number >= len(values):
                raise InvalidInput(f"plugin_setting {name} has {len(values)} values and none for device {number}")
        chosen = {name: values[number] for name, values in self.by_device.items()}
        return replace(self, settings={**self.settings, **chosen}, by_device={})


def _text(key: str, value: Any) -> str | None:
    if value is None:
        return os.environ.get(KEYS[key]) or None
    if isinstance(value, bool) or not isinstance(value, str | int | os.PathLike):
        raise InvalidInput(f"{key} is {value!r}; text is accepted")
    return str(value) or None


def _settings(value: Any) -> dict[str, Any]:
    """A mapping from NAME.KEY to value, or text: NAME.KEY=VALUE, several with semicolons."""
    if isinstance(value, Mapping):
        return {str(name): one for name, one in value.items()}
    text = _text("plugin_setting", value)
    parts = [part.strip() for part in (text or "").split(";")]
    settings: dict[str, Any] = {}
    for part in filter(None, parts):
        name, separator, one = part.partition("=")
        if not separator:
            raise InvalidInput(f'plugin_setting has "{part}"; NAME.KEY=VALUE is accepted, several with semicolons')
        settings[name.strip()] = one.strip()
    return settings
