"""Exceptions of the store: one class per kind of error, all below :class:`KvstoredError`."""

from __future__ import annotations

from typing import ClassVar


class KvstoredError(Exception):
    """A call to the store failed.

    ``kind`` says what the caller can do about it; ``retryable`` whether the same call may succeed later.
    """

    kind: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False


class InvalidInput(KvstoredError, ValueError):
    """The request itself is wrong (a length, a name, a value)."""

    kind = "invalid_input"


class NotFound(KvstoredError, LookupError):
    """The named thing (namespace, block, file) isn't there."""

    kind = "not_found"


class AlreadyExists(KvstoredError):
    """It is there already."""

    kind = "already_exists"


class Mismatch(KvstoredError):
    """The namespace is known with another layout or identity."""

    kind = "mismatch"


class Busy(KvstoredError):
    """A queue or the memory is full at this moment."""

    kind = "busy"
    retryable = True


class TooLarge(KvstoredError):
    """It can never fit, however long one waits."""

    kind = "too_large"


class NoSpace(KvstoredError):
    """The capacity of a tier, or the file system, is exhausted."""

    kind = "no_space"
    retryable = True


class QuotaExceeded(KvstoredError):
    """The namespace's or the tenant's quota is exhausted."""

    kind = "quota_exceeded"


class Corrupt(KvstoredError):
    """Stored bytes failed verification; they were not returned."""

    kind = "corrupt"


class TimedOut(KvstoredError, TimeoutError):
    """The deadline passed."""

    kind = "timed_out"
    retryable = True


class Cancelled(KvstoredError):
    """The caller, or the closing of the store, cancelled it."""

    kind = "cancelled"


class Unavailable(KvstoredError, ConnectionError):
    """The tier or the daemon is not reachable or not healthy now."""

    kind = "unavailable"
    retryable = True


class Fenced(KvstoredError):
    """Another owner has taken over."""

    kind = "fenced"


class Unsupported(KvstoredError):
    """A version or a situation that this build can't handle: for one, a store made before a fork."""

    kind = "unsupported"


class PermissionDenied(KvstoredError, PermissionError):
    """The operating system refused access."""

    kind = "permission_denied"


class IoFailed(KvstoredError, OSError):
    """An input or output error of the operating system."""

    kind = "io"
    retryable = True


class InternalError(KvstoredError):
    """A bug in the store."""

    kind = "internal"


BY_KIND: dict[str, type[KvstoredError]] = {
    error.kind: error
    for error in (
        InvalidInput,
        NotFound,
        AlreadyExists,
        Mismatch,
        Busy,
        TooLarge,
        NoSpace,
        QuotaExceeded,
        Corrupt,
        TimedOut,
        Cancelled,
        Unavailable,
        Fenced,
        Unsupported,
        PermissionDenied,
        IoFailed,
        InternalError,
    )
}


def from_kind(kind: str, message: str) -> KvstoredError:
    """Make the exception for an error of that kind (its name in metrics and logs)."""
    return BY_KIND.get(kind, InternalError)(message)
