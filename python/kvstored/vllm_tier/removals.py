"""Chunks that the store has let go, found out beside the scheduler's steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import numpy as np

from kvstored import Namespace, Store
from kvstored.complaints import Complaints

_FETCH_EVENTS = 4096
_READY_LIMIT = 65_536
_LEFT = 1


class Removals:
    """Asks for the store's events on a thread of its own, once a step wants them and the interval is over.

    A chunk counts as removed when no tier has it any more. Events that the store has dropped meanwhile go unsaid.
    """

    def __init__(
        self, store: Store, namespaces: Mapping[int, Namespace], complaints: Complaints, interval_s: float = 0.1
    ) -> None:
        self._store = store
        self._groups = {namespace.digest: (group, namespace) for group, namespace in namespaces.items()}
        self._complaints = complaints
        self._interval_s = interval_s
        self._asked_at = -float("inf")
        self._after = 0
        self._lock = threading.Lock()
        self._ready: list[bytes] = []
        self._wake = threading.Event()
        self._is_over = False
        self._thread = threading.Thread(target=self._work, name="kvstored-removals", daemon=True)
        self._thread.start()

    def take(self) -> list[bytes]:
        """Offload keys of chunks removed since the last call, as far as they are known. Returns at once."""
        if time.monotonic() - self._asked_at >= self._interval_s:
            self._asked_at = time.monotonic()
            self._wake.set()
        with self._lock:
            ready, self._ready = self._ready, []
        return ready

    def close(self, timeout_s: float) -> None:
        """Ends the thread, waiting `timeout_s` seconds at most."""
        self._is_over = True
        self._wake.set()
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._is_over:
                return
            try:
                self._fetch()
            except Exception as error:
                self._complaints.report("events", "the store's events can't be had", error)

    def _fetch(self) -> None:
        events = self._store.take_events(self._after, _FETCH_EVENTS)
        self._after = events.next
        left: dict[bytes, dict[bytes, None]] = {}
        for place in np.flatnonzero(events.kinds == _LEFT).tolist():
            digest = events.namespaces[int(events.namespace_indices[place])]
            left.setdefault(digest, {})[events.hashes[place]] = None
        for digest, hashes in left.items():
            if digest not in self._groups:
                continue
            group, namespace = self._groups[digest]
            gone = ~namespace.lookup(list(hashes))
            keys = [h + group.to_bytes(4, "big") for h, is_gone in zip(hashes, gone.tolist(), strict=True) if is_gone]
            with self._lock:
                self._ready = (self._ready + keys)[-_READY_LIMIT:]
