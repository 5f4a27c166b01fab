"""Fetches the store's events beside the engine's steps, so that no step ever waits for them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from vllm.distributed.kv_events import KVCacheEvent

from kvstored.vllm.events import EventTranslator

_FETCH_EVENTS = 512
_READY_EVENTS = 8_192
_NAMESPACES = 65_536
_COMPLAINT_INTERVAL_S = 60.0

logger = logging.getLogger("vllm.kvstored")


class EventFeed:
    """KV events of the store, ready to be taken at each step.

    A thread asks the store once a step has asked for events and the interval is over: an idle engine asks nothing.
    """

    def __init__(
        self,
        translator: EventTranslator,
        store: Callable[[], Any],
        namespaces: Callable[[], Mapping[bytes, int]],
        *,
        interval_s: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Asks nothing yet.

        Args:
            translator: turns the store's events into vLLM's.
            store: the store, or None while it's away. Called by the feed's thread.
            namespaces: rank by digest of this engine's namespaces. Called by the thread that takes events.
            interval_s: how often to ask the store at most, in seconds.
            clock: tells seconds.
        """
        self._translator = translator
        self._store = store
        self._namespaces = namespaces
        self._interval_s = interval_s
        self._clock = clock
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._ready: list[KVCacheEvent] = []
        self._ranks: dict[bytes, int] = {}
        self._void: set[bytes] = set()
        self._asked_at = -float("inf")
        self._source: Any = None
        self._after = 0
        self._complained_at = -float("inf")

    def take(self) -> list[KVCacheEvent]:
        """The events since the last call. Never waits and never raises."""
        try:
            now = self._clock()
            if not self._stopped and now - self._asked_at >= self._interval_s:
                self._asked_at = now
                self._learn(self._namespaces())
                self._ask()
        except Exception as error:
            self._complain(error)
        with self._lock:
            ready, self._ready = self._ready, []
        return ready

    def forget(self) -> None:
        """What is stored in the namespaces known so far isn't served any more: takes back what was published."""
        try:
            known = self._namespaces()
        except Exception as error:
            self._complain(error)
            known = {}
        with self._lock:
            void = self._ranks.keys() | known.keys()
            self._void = void if len(self._void) >= _NAMESPACES else self._void | void
            self._ranks = {}
            self._ready += self._translator.clear()

    def close(self, timeout_s: float = 1.0) -> None:
        """Ends the thread; waits for it at most so many seconds."""
        self._stopped = True
        self._wake.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def fetch(self) -> None:
        """Asks the store for events until there are no more, or enough. Called by the feed's thread."""
        store = self._store()
        if store is None or not hasattr(store, "take_events"):
            return
        if store is not self._source:
            # Another store: its events begin anew, and what the former held is uncertain.
            events = self._translator.use_tiers(store.tier_names)
            with self._lock:
                self._ready += events
            self._source, self._after = store, 0
        while not self._stopped and len(self._ready) < _READY_EVENTS:
            batch = store.take_events(self._after, _FETCH_EVENTS)
            with self._lock:
                self._ready += self._translator.translate(batch, self._ranks)
            end = batch.next <= self._after
            self._after = batch.next
            if end or len(batch.hashes) < _FETCH_EVENTS:
                return

    def _learn(self, ranks: Mapping[bytes, int]) -> None:
        """Namespaces that the engine doesn't have open any more still count."""
        with self._lock:
            if len(self._ranks) >= _NAMESPACES:
                self._ranks = {}
            for digest, rank in ranks.items():
                if digest not in self._void:
                    self._ranks[digest] = rank

    def _ask(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="kvstored-events", daemon=True)
            self._thread.start()
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._stopped:
                return
            try:
                self.fetch()
            except Exception as error:
                self._complain(error)

    def _complain(self, error: Exception) -> None:
        now = self._clock()
        if now - self._complained_at >= _COMPLAINT_INTERVAL_S:
            self._complained_at = now
            logger.warning("kvstored: no events from the store: %s", error)
