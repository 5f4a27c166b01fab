"""Free TCP ports of this machine."""

from __future__ import annotations

import socket

_recent: list[int] = []


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
