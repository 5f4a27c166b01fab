"""Mooncake's numbers for what went wrong."""

from __future__ import annotations

import logging

from kvstored.errors import KvstoredError

logger = logging.getLogger("kvstored.mooncake")

# of the engine
INVALID_ARGUMENT = -1
ADDRESS_NOT_REGISTERED = -3
ADDRESS_OVERLAPPED = -7
SOCKET = -102
# of the store
INTERNAL = -1
NO_SPACE = -200
INVALID_PARAMETERS = -600
INVALID_KEY = -400
OBJECT_NOT_FOUND = -704
OBJECT_ALREADY_EXISTS = -705
OBJECT_HAS_LEASE = -706
TRANSFER_FAILED = -800
RPC_FAILED = -900

_STORE: dict[str, int] = {
    "invalid_input": INVALID_PARAMETERS,
    "not_found": OBJECT_NOT_FOUND,
    "already_exists": OBJECT_ALREADY_EXISTS,
    "mismatch": INVALID_PARAMETERS,
    "busy": OBJECT_HAS_LEASE,
    "too_large": NO_SPACE,
    "no_space": NO_SPACE,
    "quota_exceeded": NO_SPACE,
    "corrupt": TRANSFER_FAILED,
    "timed_out": TRANSFER_FAILED,
    "cancelled": RPC_FAILED,
    "unavailable": RPC_FAILED,
    "fenced": TRANSFER_FAILED,
    "unsupported": INVALID_PARAMETERS,
    "permission_denied": RPC_FAILED,
    "io": TRANSFER_FAILED,
}


def store_code(kind: str) -> int:
    """The store's number for a kind of error."""
    return _STORE.get(kind, INTERNAL)


def told(error: KvstoredError, code: int, what: str) -> int:
    """Logs an error that its caller sees as a number only, and gives that number."""
    # as text: a log record that is kept would keep the error's callers, and an engine among them, from ending
    logger.warning("%s: %s (%d)", what, str(error), code)
    return code
