"""Which chunks are stored: verdicts per request, asked for in batches."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from kvstored.complaints import Complaints

Probe = Callable[[Sequence[bytes]], np.ndarray]
"""Tells for each key whether it is stored. May raise."""


class Lookups:
    """Answers one key at a time from verdicts fetched for all keys of a request at once.

    A verdict holds until its request ends, so that a request sees one state of the store. `in_step` probes within the
    scheduler's call: right where a probe is a look at memory of this process. Otherwise a thread probes between two
    steps, and the answer until then is None. Everything but the thread's work belongs to the scheduler's thread.
    """

    WAITING_KEYS_LIMIT = 1 << 20

    def __init__(self, probe: Probe, complaints: Complaints, *, in_step: bool) -> None:
        self._probe = probe
        self._complaints = complaints
        self._in_step = in_step
        self._verdicts: dict[str, dict[bytes, bool | None]] = {}
        self._batch: list[tuple[str, bytes]] = []
        self._waiting_keys = 0
        self._requests: queue.SimpleQueue[list[tuple[str, bytes]] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[list[tuple[str, bytes]], np.ndarray]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def lookup(self, key: bytes, request_id: str, keys_of_request: Iterable[bytes]) -> bool | None:
        """Tells whether the chunk is stored; None: ask again in the next step.

        `keys_of_request` are the keys that the scheduler will ask for, in any order.
        """
        verdicts = self._verdicts.setdefault(request_id, {})
        if key in verdicts:
            self._take_answers()
            return verdicts[key]
        fresh = [other for other in keys_of_request if other not in verdicts]
        if key not in fresh:
            fresh.append(key)
        if self._in_step:
            verdicts.update(zip(fresh, self._ask(fresh).tolist(), strict=True))
            return verdicts[key]
        if self._waiting_keys + len(fresh) > self.WAITING_KEYS_LIMIT:
            self._complaints.report("lookup queue", "too many lookups wait; taken as misses")
            return False
        self._waiting_keys += len(fresh)
        verdicts.update(dict.fromkeys(fresh))
        self._batch.extend((request_id, other) for other in fresh)
        return None

    def flush(self) -> None:
        """Hands the step's new keys to the thread and takes the answers that are there."""
        self._take_answers()
        if self._batch:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="kvstored-lookups", daemon=True)
                self._thread.start()
            self._requests.put(self._batch)
            self._batch = []

    def waits(self) -> bool:
        """Tells whether answers are on their way."""
        return self._waiting_keys > 0

    def mark_missing(self, keys: Iterable[bytes]) -> None:
        """Turns the verdict on these keys to missing for every request: loading them failed."""
        for key in keys:
            for verdicts in self._verdicts.values():
                if key in verdicts:
                    verdicts[key] = False

    def forget(self, request_id: str) -> None:
        """Drops a finished request's verdicts."""
        self._verdicts.pop(request_id, None)

    def shutdown(self, timeout_s: float) -> bool:
        """Ends the thread; False when it still runs after `timeout_s` seconds."""
        if self._thread is None:
            return True
        self._requests.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _take_answers(self) -> None:
        while self._waiting_keys:
            try:
                batch, found = self._answers.get_nowait()
            except queue.Empty:
                return
            self._waiting_keys -= len(batch)
            for (request_id, key), is_stored in zip(batch, found.tolist(), strict=True):
                verdicts = self._verdicts.get(request_id)
                # a load that failed meanwhile has the last word
                if verdicts is not None and key in verdicts and verdicts[key] is None:
                    verdicts[key] = is_stored

    def _ask(self, keys: Sequence[bytes]) -> np.ndarray:
        try:
            return self._probe(keys)
        except Exception as error:
            self._complaints.report("lookup", "a lookup failed; taken as misses", error)
            return np.zeros(len(keys), dtype=bool)

    def _work(self) -> None:
        while (batch := self._requests.get()) is not None:
            self._answers.put((batch, self._ask([key for _, key in batch])))
