"""Settings of the hand-off, from vLLM's `kv_connector_extra_config`, mooncake.json and the environment."""

from __future__ import annotations

import ipaddress
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvstored import InvalidInput
from kvstored.mooncake import settings as mooncake
from kvstored.mooncake.plugged import ASCEND_VARIABLE, KEYS, PluggedTransport

CONFIG_VARIABLE = "MOONCAKE_CONFIG_PATH"
LEASE_VARIABLE = "VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT"
"""Seconds after which vLLM's own Mooncake connectors give up what nobody fetched."""

_LEASE_S = 120.0
_LOAD_TIMEOUT_S = 30.0
_LONGEST_S = 86_400.0
_MOST_RANKS = 4096
_MOST_CONFIG_BYTES = 1 << 20
_TRANSPORTS = ("shm", "tcp", "rdma", mooncake.ASCEND)
_UNPLUGGED = f"no plugin is named for it (pool_ascend, or {ASCEND_VARIABLE}: Plugin(NAME))"


@dataclass(frozen=True)
class Sizes:
    """How an instance is split: data-, pipeline- and tensor-parallel sizes, None for what isn't said."""

    dp_size: int | None = None
    pp_size: int | None = None
    tp_size: int | None = None


@dataclass(frozen=True)
class HandoffSettings:
    """Everything the hand-off needs to know. Plain data; times in seconds."""

    security: mooncake.Security
    """What instances know one another by."""
    listen_host: str
    """Address that workers listen on."""
    prefill: Sizes = field(default_factory=Sizes)
    """The prefill instances' sizes."""
    decode: Sizes = field(default_factory=Sizes)
    """The decode instances' sizes."""
    lease_seconds: float = _LEASE_S
    """How long a prefill instance keeps blocks for a decode instance."""
    load_timeout_seconds: float = _LOAD_TIMEOUT_S
    """How long a decode instance tries to pull a prompt's blocks before it computes them."""
    transports: tuple[str, ...] = ()
    """Which are tried; none named: whatever reaches the peer, best first."""
    verify: bool = True
    """Whether what was pulled is checked against checksums."""
    pull_threads: int = 4
    """Threads of each worker that pull."""
    overlap: bool = False
    """Whether decode instances may pull a prompt's blocks while this prefill instance computes it."""
    plugged: PluggedTransport | None = None
    """What the transport `ascend` is."""


def read_settings(extra: Mapping[str, Any], own_host: str) -> tuple[HandoffSettings, list[str]]:
    """Reads the connector's settings.

    Args:
        extra: vLLM's `kv_connector_extra_config`.
        own_host: the address to listen on unless another is named.

    Returns:
        The settings, and warnings for the log.

    Raises:
        InvalidInput: naming the key and its value.
    """
    warnings: list[str] = []
    given = dict(extra)
    sizes = {role: _sizes(role, given.pop(role, None)) for role in ("prefill", "decode")}
    lease = _seconds(LEASE_VARIABLE, os.environ.get(LEASE_VARIABLE), _LEASE_S)
    lease = _seconds("lease_seconds", given.pop("lease_seconds", None), lease)
    timeout = _seconds("load_timeout_seconds", given.pop("load_timeout_seconds", None), _LOAD_TIMEOUT_S)
    plugged = PluggedTransport.configured({key: given.pop(key, None) for key in KEYS}, by_device=True)
    transports = _transports(given.pop("transports", None), plugged, warnings)
    host = given.pop("listen_host", None) or own_host
    verify = given.pop("verify", True)
    overlap = given.pop("overlap", False)
    threads = given.pop("pull_threads", 4)
    if not isinstance(host, str):
        raise InvalidInput(f"listen_host = {_shown(host)}: expected an address")
    for name, value in (("verify", verify), ("overlap", overlap)):
        if not isinstance(value, bool):
            raise InvalidInput(f"{name} = {_shown(value)}: expected true or false")
    if not _is_count(threads, 64):
        raise InvalidInput(f"pull_threads = {_shown(threads)}: expected a number from 1 to 64")
    warnings += [f"kv_connector_extra_config: nobody knows {name}" for name in sorted(given)]
    security = mooncake.Security.from_environment()
    _check_security(host, security)
    read = HandoffSettings(
        security=security,
        listen_host=host,
        prefill=sizes["prefill"],
        decode=sizes["decode"],
        lease_seconds=lease,
        load_timeout_seconds=timeout,
        transports=transports,
        verify=verify,
        pull_threads=threads,
        overlap=overlap,
        plugged=plugged,
    )
    return read, warnings


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_unspecified(host: str) -> bool:
    """Whether the address stands for all of this machine's."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _check_security(host: str, security: mooncake.Security) -> None:
    missing = [
        name
        for name, value in (
            (mooncake.TOKEN_VARIABLE, security.token),
            (mooncake.CERTIFICATE_VARIABLE, security.certificate),
            (mooncake.KEY_VARIABLE, security.key),
            (mooncake.AUTHORITY_VARIABLE, security.authority),
        )
        if not value
    ]
    if missing and not is_loopback(host):
        raise InvalidInput(
            f"listen_host = {_shown(host)}: other machines reach this address, which needs a token and TLS: set "
            f"{', '.join(missing)}; or listen on 127.0.0.1 (listen_host in kv_connector_extra_config, or VLLM_HOST_IP)"
        )


def _sizes(role: str, value: Any) -> Sizes:
    if value is None:
        return Sizes()
    if not isinstance(value, Mapping):
        raise InvalidInput(f'{role} = {_shown(value)}: expected {{"dp_size": …, "tp_size": …}}')
    read = {}
    for name in ("dp_size", "pp_size", "tp_size"):
        size = value.get(name)
        if size is not None and not _is_count(size, _MOST_RANKS):
            raise InvalidInput(f"{role}.{name} = {_shown(size)}: expected a number from 1 to {_MOST_RANKS}")
        read[name] = size
    return Sizes(**read)


def _transports(value: Any, plugged: PluggedTransport | None, warnings: list[str]) -> tuple[str, ...]:
    if value is None:
        return _from_mooncake_json(plugged, warnings)
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise InvalidInput(f"transports = {_shown(value)}: expected a list")
    names = [name.strip() for name in names]
    if names == ["auto"]:
        return ()
    if wrong := [name for name in names if name not in _TRANSPORTS]:
        raise InvalidInput(f"transports = {_shown(value)}: {wrong[0]} is none of {', '.join(_TRANSPORTS)}")
    if mooncake.ASCEND in names and plugged is None:
        raise InvalidInput(f"transports = {_shown(value)}: {_UNPLUGGED}")
    return tuple(names)


def _from_mooncake_json(plugged: PluggedTransport | None, warnings: list[str]) -> tuple[str, ...]:
    """The transports that the file's protocol stands for."""
    path = os.environ.get(CONFIG_VARIABLE)
    if not path:
        return ()
    try:
        with open(path, "rb") as file:
            read = json.loads(file.read(_MOST_CONFIG_BYTES))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{CONFIG_VARIABLE} {path}: {error}") from None
    protocol = read.get("protocol", "") if isinstance(read, dict) else None
    if not isinstance(protocol, str):
        raise InvalidInput(f"{CONFIG_VARIABLE} {path}: protocol = {_shown(protocol)}: expected a word")
    if protocol == mooncake.ASCEND and plugged is None:
        warnings.append(f"{path}: protocol {protocol}: {_UNPLUGGED}; whatever reaches a peer is used")
        return ()
    try:
        return tuple(mooncake.transports(protocol, plugged))
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None


def _seconds(name: str, value: Any, otherwise: float) -> float:
    if value is None or value == "":
        return otherwise
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 < seconds <= _LONGEST_S:
        raise InvalidInput(f"{name} = {_shown(value)}: expected seconds, above 0 and at most {_LONGEST_S:.0f}")
    return seconds


def _is_count(value: Any, most: int) -> bool:
    return type(value) is int and 1 <= value <= most


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)
