"""What an engine or a store of Mooncake's API is started with: Mooncake's arguments, and our environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kvstored.errors import InvalidInput
from kvstored.mooncake.plugged import ASCEND_VARIABLE, PluggedTransport

TOKEN_VARIABLE = "KVSTORED_TRANSFER_TOKEN_FILE"
CERTIFICATE_VARIABLE = "KVSTORED_TRANSFER_TLS_CERTIFICATE"
KEY_VARIABLE = "KVSTORED_TRANSFER_TLS_KEY"
AUTHORITY_VARIABLE = "KVSTORED_TRANSFER_TLS_AUTHORITY"
TIMEOUT_VARIABLE = "MC_TRANSFER_TIMEOUT"

_DEFAULT_TIMEOUT_S = 30.0
_LEAST_TIMEOUT_S = 5.0
#: Which transports are tried, by Mooncake's word for the protocol; none named: whatever reaches the peer, best first.
PROTOCOLS: Mapping[str, list[str]] = {
    "": [],
    "auto": [],
    "tcp": ["tcp"],
    "shm": ["shm", "tcp"],
    "rdma": ["rdma", "tcp"],
}
#: The protocol that a plugin speaks, and its transports.
ASCEND = "ascend"
_ASCEND_TRANSPORTS = [ASCEND, "tcp"]


@dataclass(frozen=True)
class Security:
    """What members of a pool know one another by."""

    token: bytes | None
    certificate: str | None
    key: str | None
    authority: str | None

    @classmethod
    def from_environment(cls) -> Security:
        """As the variables say. Raises InvalidInput for a file that can't be read, or for half of TLS."""
        named = os.environ.get(TOKEN_VARIABLE)
        token = _read(TOKEN_VARIABLE, named).strip() if named else None
        files = [os.environ.get(name) or None for name in (CERTIFICATE_VARIABLE, KEY_VARIABLE, AUTHORITY_VARIABLE)]
        if any(files) and not all(files):
            raise InvalidInput(f"{CERTIFICATE_VARIABLE}, {KEY_VARIABLE} and {AUTHORITY_VARIABLE} go together")
        return cls(token, *files)


def timeout_s() -> float:
    """Seconds that a transfer may take, besides those that its bytes take."""
    text = os.environ.get(TIMEOUT_VARIABLE)
    if not text:
        return _DEFAULT_TIMEOUT_S
    try:
        return max(float(text), _LEAST_TIMEOUT_S)
    except ValueError:
        raise InvalidInput(f'{TIMEOUT_VARIABLE} is "{text}"; seconds are accepted') from None


def transports(protocol: str, plugged: PluggedTransport | None = None) -> list[str]:
    """Transports for Mooncake's word. Raises InvalidInput for one that isn't known here, and for a plugged-in one that
    isn't configured.
    """
    if protocol == ASCEND:
        if plugged is None:
            raise InvalidInput(
                f'protocol "{ASCEND}" needs a plugin: set {ASCEND_VARIABLE} to Plugin(NAME), e.g. Plugin(hixl)'
            )
        return list(_ASCEND_TRANSPORTS)
    known = PROTOCOLS.get(protocol)
    if known is None:
        words = ", ".join(word for word in (*PROTOCOLS, ASCEND) if word)
        raise InvalidInput(f'protocol "{protocol}" is not available here; {words} are')
    return list(known)


def host_and_port(name: str, default_port: int = 0) -> tuple[str, int]:
    """The parts of a host name as Mooncake has it: HOST, HOST:PORT, an IPv6 address, or [ADDRESS]:PORT.

    Raises InvalidInput for a name that is none.
    """
    if name.startswith("["):
        host, _, rest = name[1:].partition("]")
        port = rest.removeprefix(":")
    elif name.count(":") == 1:
        host, _, port = name.partition(":")
    else:
        host, port = name, ""
    if not host or (port and not (port.isascii() and port.isdigit() and int(port) < 1 << 16)):
        raise InvalidInput(f'host name "{name}"; HOST or HOST:PORT is accepted')
    return host, int(port or default_port)


def address(name: str, default_port: int = 0) -> str:
    """A host name as the engine takes it, with its port."""
    host, port = host_and_port(name, default_port)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def size_bytes(value: int | str) -> int:
    """A size as mooncake.json has it: bytes, or a number with KB, MB, GB or TB (powers of 1024)."""
    if isinstance(value, int):
        return value
    text = value.strip().upper().removesuffix("B")
    factor = 1
    for index, unit in enumerate("KMGT", 1):
        if text.endswith(unit):
            text, factor = text[:-1], 1 << (10 * index)
            break
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise InvalidInput(f'size "{value}"; bytes, or a number with KB, MB, GB or TB, are accepted')
    return int(number * factor)


def _read(variable: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidInput(f"{variable}: {error}") from None
