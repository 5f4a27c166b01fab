"""Settings of the connector, from vLLM's `kv_connector_extra_config` and the UCM file it may name."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvstored import InvalidInput, check_configuration

CONFIG_FILE_KEYS = ("UCM_CONFIG_FILE", "config_file")
"""Keys that name a YAML file: UCM's, and ours."""


@dataclass(frozen=True)
class ConnectorSettings:
    """Everything the connector needs to know. Plain data; times in milliseconds."""

    daemon: str = "auto"
    """Socket of a daemon; `auto` uses the default socket's daemon where one answers, `off` never uses one."""
    config_file: str | None = None
    """YAML file of the embedded engine's settings."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the embedded engine that stand over the file's."""
    tenant: str = ""
    """Tenant whose quota the blocks count against."""
    weights_digest: str = ""
    """Identifies the weights; computed from the model's files where empty."""
    use_layerwise: bool = False
    """Load and dump layer by layer beside the computation."""
    load_async: bool = True
    """Load between steps, outside the step that computes; never together with use_layerwise."""
    enable_event_sync: bool = True
    """On a device, order copies after an event in the engine's stream; off: wait for the stream before they begin."""
    kv_device: str = "auto"
    """The plugin for the device that KV lies on; `auto`: ascend for NPUs, cuda for GPUs, none for host memory."""
    kv_device_directory: str = ""
    """Where that plugin lies; `plugins` beside the program kvstored where empty."""
    kv_device_setting: Mapping[str, str] = field(default_factory=dict)
    """What that plugin is told besides the device's number."""
    load_only_first_rank: bool = False
    """Accepted: ranks that hold the same KV share one stored copy, which each reads from the node's memory."""
    load_deadline_ms: int = 5000
    """A load that takes longer counts as not loaded."""
    dump_deadline_ms: int = 10000
    """A dump that takes longer is given up."""
    lookup_deadline_ms: int = 100
    """The longest a lookup may hold up the scheduler."""
    durability: str = "memory"
    """How safe a dump has to be before it counts as done: memory, tier or durable."""
    governor: bool = True
    """Load only as much of a hit as beats computing it."""
    streams: int = 2
    """Copy threads of each worker."""
    kv_events: bool = True
    """Report stored and removed blocks where vLLM publishes KV events."""

    def __post_init__(self) -> None:
        if self.use_layerwise and self.load_async:
            raise InvalidInput("load_async and use_layerwise exclude each other: layers arrive inside the step")


_OWN_KEYS: dict[str, type] = {
    "daemon": str,
    "tenant": str,
    "weights_digest": str,
    "use_layerwise": bool,
    "load_async": bool,
    "enable_event_sync": bool,
    "kv_device": str,
    "kv_device_directory": str,
    "kv_device_setting": dict,
    "load_only_first_rank": bool,
    "load_deadline_ms": int,
    "dump_deadline_ms": int,
    "lookup_deadline_ms": int,
    "durability": str,
    "governor": bool,
    "streams": int,
    "kv_events": bool,
}
_FROM_UCM = {"timeout_ms": "load_deadline_ms", "cache_stream_number": "streams"}
_LIMITS = {
    "load_deadline_ms": (1, 600_000),
    "dump_deadline_ms": (1, 600_000),
    "lookup_deadline_ms": (1, 60_000),
    "streams": (1, 64),
}
_DURABILITIES = ("memory", "tier", "durable")


def read_settings(extra: Mapping[str, Any]) -> tuple[ConnectorSettings, list[str]]:
    """Reads the connector's settings.

    Args:
        extra: vLLM's `kv_connector_extra_config`: `UCM_CONFIG_FILE`, UCM's keys inline, the daemon's settings with
            underscores, or the connector's own keys. Keys given here stand over the file's.

    Returns:
        The settings, and warnings for the log (unknown keys, keys without effect).

    Raises:
        InvalidInput: with every wrong key, its value and where it stands.
    """
    own: dict[str, Any] = {}
    options: dict[str, Any] = {}
    config_file: str | None = None
    for key, value in extra.items():
        if key in CONFIG_FILE_KEYS:
            if not isinstance(value, str) or not value:
                raise InvalidInput(f"{key} = {json.dumps(value, default=str)}: expected the path of a YAML file")
            config_file = value
        elif key in _OWN_KEYS:
            own[key] = _checked(key, value)
        else:
            options[key] = value
    problems: list[str] = []
    warnings: list[str] = []
    if config_file is not None:
        _judge(_read(config_file), config_file, own, problems, warnings)
    if options:
        _judge(json.dumps(options, default=str), "kv_connector_extra_config", own, problems, warnings)
    if problems:
        raise InvalidInput("; ".join(problems))
    if own.get("use_layerwise"):
        own.setdefault("load_async", False)
    return ConnectorSettings(config_file=config_file, options=options, **own), warnings


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(1 << 20)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"UCM_CONFIG_FILE {path}: {error}") from error


def _judge(text: str, source: str, own: dict[str, Any], problems: list[str], warnings: list[str]) -> None:
    """Checks a document and takes over what concerns the connector, unless it's set already."""
    report = check_configuration(text)
    for problem in report["problems"]:
        line = f"line {problem['line']}: " if problem["line"] and source != "kv_connector_extra_config" else ""
        value = f" = {problem['value']}" if problem["value"] else ""
        words = f"{source}: {line}{problem['key']}{value}: {problem['message']}"
        (warnings if problem["unknown"] else problems).append(words)
    told = report["connector"]
    for key, value in told.items():
        name = _FROM_UCM.get(key, key)
        if value is not None and name in _OWN_KEYS and name not in own:
            own[name] = _checked(name, value)
    for remark in report["remarks"]:
        plain = remark["key"].rsplit(".", 1)[-1]
        if plain not in _OWN_KEYS and plain not in _FROM_UCM:
            warnings.append(f"{source}: {remark['key']}: {remark['message']}")


def _checked(key: str, value: Any) -> Any:
    expected = _OWN_KEYS[key]
    right = isinstance(value, expected) and not (expected is int and isinstance(value, bool))
    shown = json.dumps(value, default=str)
    if not right:
        names = {bool: "true or false", int: "a whole number", str: "a string", dict: "an object"}
        raise InvalidInput(f"{key} = {shown}: expected {names[expected]}")
    if key in _LIMITS:
        low, high = _LIMITS[key]
        if not low <= value <= high:
            raise InvalidInput(f"{key} = {shown}: expected a number from {low} to {high}")
    if key == "kv_device_setting" and not all(isinstance(told, str) for told in value.values()):
        raise InvalidInput(f"{key} = {shown}: expected an object of strings")
    if key == "kv_device" and not re.fullmatch(r"[a-z0-9_-]{1,64}", value):
        raise InvalidInput(f"{key} = {shown}: expected auto, or a plugin's name of a-z, 0-9, - and _")
    if key == "durability" and value not in _DURABILITIES:
        raise InvalidInput(f"{key} = {shown}: expected one of {', '.join(_DURABILITIES)}")
    if key == "daemon" and value not in ("auto", "off") and not os.path.isabs(value):
        raise InvalidInput(f"{key} = {shown}: expected auto, off, or the absolute path of a daemon's socket")
    return value
