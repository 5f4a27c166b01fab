"""Waiting for a task so that its memory is free afterwards, whatever happens."""

from __future__ import annotations

import logging
import time

from kvstored import KvstoredError, Task, TaskReport, TimedOut

logger = logging.getLogger("kvstored")

GRACE_S = 30.0
"""How long a cancelled task may take to end, in seconds."""


def end(task: Task, timeout_s: float, grace_s: float = GRACE_S) -> TaskReport:
    """Waits for a task's end, cancels it when `timeout_s` seconds have passed, and waits for that end.

    What was cancelled counts among the report's failures. Raises TimedOut when the task goes on even so: its memory is
    in use then. Raises another KvstoredError where the store is gone.
    """
    try:
        return task.wait(max(timeout_s, 0.0))
    except TimedOut:
        task.cancel()
    return task.wait(grace_s)


def end_surely(task: Task, timeout_s: float) -> TaskReport | None:
    """As `end`, but never returns while the task may touch its memory; None where the store is gone.

    For callers that have no other way to keep the memory from being used again.
    """
    started = time.monotonic()
    while True:
        try:
            return end(task, timeout_s)
        except TimedOut:
            logger.error("a transfer has not ended after %.0f s and can't be stopped", time.monotonic() - started)
        except KvstoredError:
            return None
