"""The store: an engine in this process, or the daemon of this node."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from kvstored import _native
from kvstored.errors import InvalidInput, KvstoredError
from kvstored.identity import Identity, Layout
from kvstored.namespace import Namespace

if TYPE_CHECKING:
    from kvstored._native import Events

_logger = logging.getLogger("kvstored")
_open: weakref.WeakSet[Store] = weakref.WeakSet()


class Store:
    """A store of KV blocks. Made by :meth:`embedded` or :meth:`connect`; any thread may use it; a context manager.

    A store belongs to the process that made it: after a fork the child has to make its own, and calls on the parent's
    raise :class:`~kvstored.errors.Unsupported` there. An interpreter that ends closes what is open.
    """

    def __init__(self, native: _native.Store) -> None:
        self._native = native
        self.tier_names: list[str] = native.tier_names
        """Names of the tiers, fast to durable; index 0 is memory."""
        self.is_embedded: bool = native.is_embedded
        _open.add(self)

    @staticmethod
    def embedded(
        options: Mapping[str, object] | None = None,
        *,
        config_file: str | os.PathLike[str] | None = None,
        streams: int = 2,
        timeout_ms: int = 30_000,
        call_timeout_ms: int | None = None,
        listen: str | None = None,
    ) -> Store:
        """Build an engine in this process.

        ``options`` are the daemon's settings with underscores (``pipeline``, ``storage_backends``,
        ``cache_buffer_capacity``: "512MiB", …) or UCM's keys; they come before those of ``config_file``. ``streams``
        are the threads that copy; ``timeout_ms`` is the deadline of tasks that name none, ``call_timeout_ms`` that of
        calls (by default the same). ``listen`` names a Unix socket on which other processes of this node are served
        from the same memory; the setting of that name is the daemon's alone, as those of its HTTP address and its log
        are.

        Raises :class:`~kvstored.errors.InvalidInput`, whose message lists every problem with key and value. Keys that
        nobody knows are warned of (logger ``kvstored``).
        """
        text = None if options is None else _json(options)
        file = None if config_file is None else os.fspath(config_file)
        native = _native.Store.embedded(text, file, streams, timeout_ms, call_timeout_ms or timeout_ms, listen)
        for warning in native.warnings:
            _logger.warning("%s", warning)
        for remark in native.remarks:
            _logger.info("%s", remark)
        return Store(native)

    @staticmethod
    def connect(
        socket: str | None = None,
        *,
        streams: int = 2,
        timeout_ms: int = 30_000,
        call_timeout_ms: int | None = None,
    ) -> Store:
        """Connect to the daemon behind a Unix socket; by default where a daemon listens by default.

        ``timeout_ms`` is the deadline of tasks that name none, ``call_timeout_ms`` that of calls (by default the same).

        Raises :class:`~kvstored.errors.Unavailable` when nobody listens there. A daemon that goes away later fails
        calls with the same, and tasks per block; soon after it is back, calls work again.
        """
        path = None if socket is None else os.fspath(socket)
        return Store(_native.Store.connect(path, streams, timeout_ms, call_timeout_ms or timeout_ms))

    def open_namespace(self, identity: Identity, layout: Layout) -> Namespace:
        """Open a namespace; any number of times.

        Raises :class:`~kvstored.errors.InvalidInput`, :class:`~kvstored.errors.TooLarge` for blocks that the memory can
        never hold, :class:`~kvstored.errors.Mismatch`.
        """
        return Namespace(self._native.open_namespace(identity, layout.shards), identity, layout)

    def statistics(self) -> dict[str, Any]:
        """Return the engine's numbers."""
        return json.loads(self._native.statistics())

    def namespaces(self) -> list[dict[str, Any]]:
        """Return the namespaces that have blocks somewhere: digest, identity where known, blocks in each tier."""
        return json.loads(self._native.namespaces())

    def ping(self) -> None:
        """Make the smallest round trip."""
        self._native.ping()

    def drain(self, timeout: float) -> None:
        """Wait until every accepted dump has reached every tier, at most ``timeout`` seconds.

        Raises :class:`~kvstored.errors.TimedOut`.
        """
        self._native.drain(timeout)

    def take_events(self, after: int, limit: int = 4096) -> Events:
        """Return what became visible in each tier or left it, after the event numbered ``after``; returns at once.

        ``after`` is 0 at first, then the last answer's ``next``; at most 8,192 events are returned. The first call by
        anybody switches recording on; ``lost`` tells that events in between are gone, because more than 65,536 came or
        about a minute went by between two calls, or because the engine was started anew.
        """
        return self._native.take_events(after, limit)

    def close(self, timeout: float = 5.0) -> None:
        """End tasks and stop every thread; later calls do nothing.

        Tasks that haven't ended end as cancelled: wait for dumps before. An engine in this process first stops
        listening and writes the dumps it has accepted, within about ``timeout`` seconds; raises
        :class:`~kvstored.errors.TimedOut` when that didn't do, and is closed all the same.
        """
        _open.discard(self)
        self._native.close(timeout)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def default_socket() -> str:
    """Where a daemon of this user listens by default."""
    return os.fspath(_native.default_socket())


def check_configuration(text: str) -> dict[str, Any]:
    """Check the text of a configuration file, ours or UCM's, and tell what is in it.

    ``options`` are the settings given, by our names; ``settings`` all of them, as the log shows them, or None where
    some are wrong. ``problems`` have key, line, value, message, and whether the key is merely unknown; ``remarks`` are
    about keys that mean something a little different here. ``connector`` has UCM's own keys by their plain names.

    Raises :class:`~kvstored.errors.InvalidInput` for what isn't YAML.
    """
    return json.loads(_native.check_configuration(text))


def _json(options: Mapping[str, object]) -> str:
    try:
        return json.dumps(dict(options), default=_plain, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"the options can't be used: {error}") from None


def _plain(value: object) -> object:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "item"):
        return value.item()  # a number of numpy's
    raise TypeError(f"{value!r} is neither text, number, list nor mapping")


def _close_all() -> None:
    for store in list(_open):
        with contextlib.suppress(KvstoredError):
            store.close()


atexit.register(_close_all)
