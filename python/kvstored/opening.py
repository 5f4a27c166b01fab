"""Opens a store from a mapping of options; one per process and set of options, however many users it has."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from kvstored import InvalidInput, KvstoredError, PermissionDenied, Store, TimedOut, default_socket
from kvstored.namespace import Durability

logger = logging.getLogger("kvstored")

CLOSE_TIMEOUT_S = 10.0
"""How long the last user's release waits for written-behind blocks to reach the next tier, in seconds."""

_OPEN_TIMEOUT_S = 60.0
_POLL_S = 0.05


@dataclass(frozen=True)
class StoreOptions:
    """How a store is opened, apart from what its user wants of it. Plain data; times in milliseconds."""

    config_file: str | None = None
    """YAML file of an embedded engine's settings: the daemon's keys, or UCM's. `UCM_CONFIG_FILE` means the same."""
    socket: str | None = None
    """Connect to the daemon that listens there; "default": where daemons listen by default."""
    listen: str | None = None
    """Use the store that listens there, or where none does be it: an engine in this process that serves the node's
    other processes too. "auto" derives the path from the other options."""
    streams: int = 2
    """Copy threads."""
    timeout_ms: int = 30_000
    """Deadline of transfers that name none."""
    call_timeout_ms: int = 1000
    """Deadline of lookups and other calls, which an engine's scheduler may be waiting for."""
    settings: str = "{}"
    """Settings of an embedded engine as JSON; they stand over the file's."""

    NAMES: ClassVar[tuple[str, ...]] = (
        "config_file",
        "UCM_CONFIG_FILE",
        "socket",
        "listen",
        "streams",
        "timeout_ms",
        "call_timeout_ms",
    )

    @classmethod
    def from_mapping(cls, options: Mapping[str, object]) -> StoreOptions:
        """Takes the options by name; every other key is a setting of an embedded engine.

        Raises InvalidInput on a value of the wrong type, naming key and value.
        """
        rest = {key: value for key, value in options.items() if key not in cls.NAMES and value is not None}
        try:
            settings = json.dumps(rest, sort_keys=True)
        except TypeError as error:
            raise InvalidInput(f"an option can't be written as JSON: {error}") from error
        made = cls(
            config_file=_text(options, "config_file") or _text(options, "UCM_CONFIG_FILE"),
            socket=_text(options, "socket"),
            listen=_text(options, "listen"),
            streams=_count(options, "streams", cls.streams),
            timeout_ms=_count(options, "timeout_ms", cls.timeout_ms),
            call_timeout_ms=_count(options, "call_timeout_ms", cls.call_timeout_ms),
            settings=settings,
        )
        if made.socket and made.listen:
            raise InvalidInput("socket and listen exclude each other: the one finds a daemon, the other may become it")
        if made.socket and (made.config_file or rest):
            without_effect = ", ".join(sorted(rest) + (["config_file"] if made.config_file else []))
            logger.warning("no effect where a daemon is used, which has settings of its own: %s", without_effect)
        return made

    def listen_path(self) -> str | None:
        """Where to listen. "auto": next to the default socket, named after a digest of the other options."""
        if self.listen != "auto":
            return self.listen
        digest = hashlib.blake2b(json.dumps([self.config_file, self.settings]).encode(), digest_size=8).hexdigest()
        return os.path.join(os.path.dirname(default_socket()), f"shared-{digest}.sock")


class StoreLease:
    """One user's hold on a store. The store closes when its last user has released it."""

    def __init__(self, store: Store, options: StoreOptions) -> None:
        self.store = store
        self._options = options
        self._released = False

    def release(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Gives the store up; idempotent. The last user drains an embedded engine, for at most `timeout_s` seconds."""
        if not self._released:
            self._released = True
            _registry.release(self._options, timeout_s)


class _Registry:
    """The stores this process has open. Locked while one opens or closes: its directory has one owner at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stores: dict[StoreOptions, tuple[Store, int]] = {}
        self._process = os.getpid()

    def acquire(self, options: StoreOptions) -> StoreLease:
        with self._lock:
            if self._process != os.getpid():
                # a forked child has none of the threads of its parent's stores
                self._stores, self._process = {}, os.getpid()
            store, users = self._stores.get(options, (None, 0))
            if store is None:
                store = _open(options)
            self._stores[options] = (store, users + 1)
        return StoreLease(store, options)

    def release(self, options: StoreOptions, timeout_s: float) -> None:
        with self._lock:
            if self._process != os.getpid() or options not in self._stores:
                return
            store, users = self._stores.pop(options)
            if users > 1:
                self._stores[options] = (store, users - 1)
            else:
                _close(store, timeout_s)

    def close_all(self) -> None:
        with self._lock:
            if self._process == os.getpid():
                for store, _ in self._stores.values():
                    _close(store, CLOSE_TIMEOUT_S)
                self._stores.clear()


def open_store(options: Mapping[str, object]) -> StoreLease:
    """Opens a store, or joins the one this process has open with equal options.

    Raises InvalidInput with every problem of the options, or another KvstoredError when the store can't be opened.
    """
    return _registry.acquire(StoreOptions.from_mapping(options))


def durability_of(options: Mapping[str, object]) -> Durability:
    """When a dump counts as done, from the option `durability`. Raises InvalidInput for what is none."""
    value = options.get("durability", "memory")
    if value == "memory":
        return "memory"
    if value == "tier":
        return "tier"
    if value == "durable":
        return "durable"
    raise InvalidInput(f"durability is {value!r}; memory, tier or durable is expected")


def private_directory(path: str) -> None:
    """Makes a directory for this user alone, where it's missing.

    Raises PermissionDenied when it's somebody else's or others may write to it, OSError when it can't be made.
    """
    os.makedirs(path, mode=0o700, exist_ok=True)
    about = os.lstat(path)
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o022:
        raise PermissionDenied(f"{path} is not a private directory of this user")


def _open(options: StoreOptions) -> Store:
    if options.socket is not None:
        return _connect(options, None if options.socket == "default" else options.socket)
    path = options.listen_path()
    if path is None:
        return _embed(options, None)
    with _alone(path):
        try:
            store = _connect(options, path)
            store.ping()
            return store
        except KvstoredError:
            return _embed(options, path)


def _connect(options: StoreOptions, socket: str | None) -> Store:
    return Store.connect(
        socket, streams=options.streams, timeout_ms=options.timeout_ms, call_timeout_ms=options.call_timeout_ms
    )


def _embed(options: StoreOptions, listen: str | None) -> Store:
    return Store.embedded(
        json.loads(options.settings),
        config_file=options.config_file,
        streams=options.streams,
        timeout_ms=options.timeout_ms,
        call_timeout_ms=options.call_timeout_ms,
        listen=listen,
    )


@contextlib.contextmanager
def _alone(path: str) -> Iterator[None]:
    """Keeps processes that open the same shared store at once in a row: the first becomes it, the others join."""
    private_directory(os.path.dirname(path))
    deadline = time.monotonic() + _OPEN_TIMEOUT_S
    lock = os.open(f"{path}.opening", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimedOut(f"another process has been opening {path} for {_OPEN_TIMEOUT_S:.0f} s") from None
                time.sleep(_POLL_S)
        yield
    finally:
        os.close(lock)


def _close(store: Store, timeout_s: float) -> None:
    try:
        store.close(timeout_s)
    except KvstoredError as error:
        logger.warning("the store did not close cleanly: %s", error)


def _text(options: Mapping[str, object], key: str) -> str | None:
    value = options.get(key)
    if value is None or value == "":
        return None
    if not isinstance(value, (str, os.PathLike)):
        raise InvalidInput(f"{key} is {value!r}; a text is expected")
    return os.fspath(value)


def _count(options: Mapping[str, object], key: str, default: int) -> int:
    value = options.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise InvalidInput(f"{key} is {value!r}; a positive whole number is expected")
    return value


_registry = _Registry()
atexit.register(_registry.close_all)
