"""Which store a process of vLLM talks to: a daemon, an engine in this process, or one in a sister process.

A vLLM instance that schedules and computes in one process embeds the engine there. With workers in processes of their
own, one process of the node embeds it and serves the others over a private socket, so that all ranks share one memory
and the scheduler sees what each of them holds. It is the scheduler's process where that is on the same node, because
every request waits for the scheduler's lookups and none for a worker's messages; else the first process to come.
"""

from __future__ import annotations

import enum
import fcntl
import hashlib
import logging
import os
import shutil
import stat
import threading
import time
from pathlib import Path
from typing import Any

from kvstored import InvalidInput, KvstoredError, Mismatch, PermissionDenied, Store, default_socket
from kvstored.vllm.configuration import ConnectorSettings

_HOST_PATIENCE_S = 60.0
_GUEST_PATIENCE_S = 3600.0
_FIRST_USE_PATIENCE_S = 1.0
_POLL_S = 0.05
_SOCKET_NAME = "kvstored.sock"
_ABANDONED_S = 120.0
"""A meeting place this old has a host, or had one."""
_RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0)
_CALL_TIMEOUT_MS = 1000

logger = logging.getLogger("vllm.kvstored")


class Seat(enum.Enum):
    """What a process is to the engine embedded on its node."""

    ALONE = "alone"
    """The only process: embeds it for itself."""
    FIRST = "first"
    """Embeds it for all processes, if it comes first."""
    GUEST = "guest"
    """Joins the process that embeds it, which may come later."""


class StoreAccess:
    """A store that may be away: asks for it again after a while, and never for long."""

    def __init__(self, settings: ConnectorSettings, engine_key: str, *, seat: Seat, call_timeout_ms: int) -> None:
        """Opens the store; a guest does so beside.

        Args:
            settings: the connector's settings.
            engine_key: the same in all processes of one vLLM engine, different between engines.
            seat: what this process is to the others of the engine on this node.
            call_timeout_ms: the longest a call may wait for its answer.

        Raises:
            KvstoredError: what no waiting cures. A daemon that is away is no error.
        """
        self._settings = settings
        self._engine_key = engine_key
        self._seat = seat
        self._call_timeout_ms = call_timeout_ms
        self._lock = threading.Lock()
        self._store: Store | None = None
        self._failures = 0
        self._not_before = 0.0
        self._closed = False
        self._opening: threading.Thread | None = None
        self.generation = 0
        """Rises with every new store: namespaces of an earlier one are void."""
        self._awaited = seat is Seat.GUEST and _daemon_socket(settings) is None
        if self._awaited:
            self._open_beside()
        else:
            self._open()

    def get(self) -> Store | None:
        """The store, or None while it's away. A store that wasn't there is opened beside, without waiting for it.

        Only a guest's first call waits, for a moment: its host is there by then.
        """
        if time.monotonic() < self._not_before:
            return None
        if self._store is None:
            opening = self._open_beside()
            if self._awaited:
                opening.join(_FIRST_USE_PATIENCE_S)
                self._awaited = False
        return self._store

    def tier_name(self, tier: int) -> str:
        """A tier's name by its index in the store's pipeline."""
        names = self._store.tier_names if self._store is not None else []
        return names[tier] if tier < len(names) else str(tier)

    @property
    def tier_names(self) -> list[str]:
        """Names of the tiers; empty before the store was there for the first time."""
        return list(self._store.tier_names) if self._store is not None else []

    def failed(self, error: Exception) -> None:
        """Told of a call that failed because the store didn't answer: no more calls for a while."""
        pause = _RETRY_S[min(self._failures, len(_RETRY_S) - 1)]
        self._failures += 1
        self._not_before = time.monotonic() + pause
        logger.warning("kvstored: the store doesn't answer (%s); next attempt in %.0f s", error, pause)

    def succeeded(self) -> None:
        """Told of a call that was answered."""
        if self._failures:
            self._failures = 0
            logger.info("kvstored: the store answers again")

    def close(self) -> None:
        """Lets the store go."""
        self._closed = True
        self._not_before = float("inf")
        store, self._store = self._store, None
        if store is not None:
            _release(store)

    def _open_beside(self) -> threading.Thread:
        with self._lock:
            if self._opening is None:
                self._opening = threading.Thread(target=self._reopen, name="kvstored-open", daemon=True)
                self._opening.start()
            return self._opening

    def _reopen(self) -> None:
        try:
            if self._store is not None:
                # another thread opened it between the question and this one's start
                return
            if self._seat is Seat.GUEST:
                self._wait_for_host()
            self._open()
        except KvstoredError as error:
            self.failed(error)
        finally:
            with self._lock:
                self._opening = None

    def _wait_for_host(self) -> None:
        """Until there is something to connect to: the scheduler comes when the model is loaded and warmed up."""
        socket = _meeting_place(_key(self._settings, self._engine_key)) / _SOCKET_NAME
        deadline = time.monotonic() + _GUEST_PATIENCE_S
        look_for_daemon = 0.0
        while not socket.exists() and not self._closed and time.monotonic() < deadline:
            if time.monotonic() >= look_for_daemon:
                if _daemon_socket(self._settings) is not None:
                    return
                look_for_daemon = time.monotonic() + 1.0
            time.sleep(_POLL_S)

    def _open(self) -> None:
        if self._closed:
            return
        try:
            self._store = _open(self._settings, self._engine_key, self._seat, self._call_timeout_ms)
            self.generation += 1
            if self._closed:
                self.close()
        except KvstoredError as error:
            if not error.retryable:
                raise
            self.failed(error)


_shared: dict[str, tuple[Store, int]] = {}
_shared_lock = threading.Lock()
_hosted: dict[int, Path] = {}
"""Meeting places of the stores that this process hosts."""


def _open(settings: ConnectorSettings, engine_key: str, seat: Seat, call_timeout_ms: int) -> Store:
    socket = _daemon_socket(settings)
    if socket is not None:
        store = _connect(settings, socket, call_timeout_ms)
        logger.info("kvstored: using the daemon at %s (tiers %s)", socket, "|".join(store.tier_names))
        return store
    key = _key(settings, engine_key)
    with _shared_lock:
        if key in _shared:
            store, users = _shared[key]
            _shared[key] = (store, users + 1)
            return store
        if seat is Seat.ALONE:
            store = _embed(settings, None)
        elif seat is Seat.FIRST:
            store = _host_or_join(settings, key, call_timeout_ms)
        else:
            store = _connect(settings, str(_meeting_place(key) / _SOCKET_NAME), call_timeout_ms)
        _shared[key] = (store, 1)
        return store


def _key(settings: ConnectorSettings, engine_key: str) -> str:
    """What the processes of one engine with the same settings have in common."""
    return hashlib.blake2b(f"{engine_key}\0{settings!r}".encode(), digest_size=12).hexdigest()


def _release(store: Store) -> None:
    with _shared_lock:
        for key, (held, users) in list(_shared.items()):
            if held is store:
                if users > 1:
                    _shared[key] = (held, users - 1)
                    return
                del _shared[key]
    folder = _hosted.pop(id(store), None)
    try:
        store.close()
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _daemon_socket(settings: ConnectorSettings) -> str | None:
    """The socket of the daemon to use; None for an engine of our own."""
    if settings.daemon == "off":
        return None
    if settings.daemon != "auto":
        return settings.daemon
    socket = default_socket()
    try:
        if not stat.S_ISSOCK(os.stat(socket).st_mode):
            return None
        with Store.connect(socket, timeout_ms=_CALL_TIMEOUT_MS) as probe:
            probe.ping()
        return socket
    except Mismatch:
        raise
    except (OSError, KvstoredError):
        return None


def _connect(settings: ConnectorSettings, socket: str, call_timeout_ms: int) -> Store:
    try:
        return Store.connect(
            socket, streams=settings.streams, timeout_ms=settings.dump_deadline_ms, call_timeout_ms=call_timeout_ms
        )
    except KvstoredError as error:
        if error.retryable:
            raise
        raise type(error)(f"{socket}: no daemon whose protocol this build speaks: {error}") from error


def _embed(settings: ConnectorSettings, listen: str | None) -> Store:
    options: dict[str, Any] = dict(settings.options)
    try:
        store = Store.embedded(
            options or None,
            config_file=settings.config_file,
            streams=settings.streams,
            # what a dump may take between two of its layers; calls within this process don't wait
            timeout_ms=settings.dump_deadline_ms,
            listen=listen,
        )
    except KvstoredError as error:
        if not error.retryable:
            raise
        # there is nobody who would come back
        raise InvalidInput(str(error)) from error
    served = f", serving this engine's other processes at {listen}" if listen else ""
    logger.info("kvstored: engine embedded (tiers %s)%s", "|".join(store.tier_names), served)
    return store


def _host_or_join(settings: ConnectorSettings, key: str, call_timeout_ms: int) -> Store:
    """The first process of the node to get the lock embeds the engine; the others are its clients."""
    folder = _meeting_place(key)
    socket = str(folder / _SOCKET_NAME)
    deadline = time.monotonic() + _HOST_PATIENCE_S
    lock = os.open(folder / "host.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            # the lock is held until the process ends
            _sweep(folder.parent)
            store = _embed(settings, socket)
            _hosted[id(store)] = folder
            return store
        try:
            store = _connect(settings, socket, call_timeout_ms)
        except KvstoredError as error:
            if not error.retryable or time.monotonic() > deadline:
                os.close(lock)
                raise
            time.sleep(_POLL_S)
        else:
            os.close(lock)
            return store


def _meeting_place(key: str) -> Path:
    """A private directory that all processes of the engine on this node find."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    base = Path(runtime) / "kvstored" if runtime else Path(f"/tmp/kvstored-{os.getuid()}")
    for folder in (base, base / key):
        folder.mkdir(mode=0o700, exist_ok=True, parents=False)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise PermissionDenied(f"{folder} is not a private directory of this user")
    return base / key


def _sweep(base: Path) -> None:
    """Removes meeting places whose host was killed: nobody holds their lock."""
    for folder in base.iterdir():
        try:
            if time.time() - folder.stat().st_mtime < _ABANDONED_S:
                continue
            with open(folder / "host.lock", "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue
