"""Free TCP ports of this machine."""

from __future__ import annotations

import contextlib
import random
import socket

_recent: list[int] = []
# below the ports that the system gives to connections
_FIRST_OF_RANGES, _LAST_OF_RANGES = 20_000, 32_000


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, other than those given out lately."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in _recent:
            _recent.append(port)
            del _recent[:-64]
            return port


def free_ports(count: int) -> int:
    """The first of `count` ports in a row, none of which anybody listens on or was given out lately."""
    while True:
        first = random.randrange(_FIRST_OF_RANGES, _LAST_OF_RANGES - count)
        row = range(first, first + count)
        if any(port in _recent for port in row):
            continue
        with contextlib.ExitStack() as probes, contextlib.suppress(OSError):
            for port in row:
                probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
            _recent.extend(row)
            del _recent[:-64]
            return first
