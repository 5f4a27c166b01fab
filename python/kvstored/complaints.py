"""Logging that stays readable when the same thing fails thousands of times."""

from __future__ import annotations

import logging
import threading
import time


class Complaints:
    """Logs the first failure of each kind at once, then at most one line per interval with how many were left out.

    Safe to call from any thread. Never raises.
    """

    def __init__(self, logger: logging.Logger, interval_s: float = 60.0) -> None:
        self._logger = logger
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._kinds: dict[str, tuple[float, int]] = {}

    def report(self, kind: str, message: str, error: BaseException | str | None = None) -> None:
        """Logs a failure of that kind as a warning, unless one was logged within the interval."""
        now = time.monotonic()
        with self._lock:
            last, left_out = self._kinds.get(kind, (None, 0))
            if last is not None and now - last < self._interval_s:
                self._kinds[kind] = (last, left_out + 1)
                return
            self._kinds[kind] = (now, 0)
        text = message if error is None else f"{message}: {error}"
        if left_out:
            text += f" ({left_out} more like it were not logged)"
        self._logger.warning("%s", text)
