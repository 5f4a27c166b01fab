"""Transfers between the primary tier's rows and the store, job by job."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvstored import KvstoredError, Task
from kvstored.ending import end


@dataclass
class Part:
    """The keys of a job that share a namespace: one task of the store."""

    task: Task
    positions: np.ndarray
    """Places of the part's keys among the job's keys."""


@dataclass
class Job:
    """A job under way."""

    job_id: int
    keys: Sequence[bytes]
    is_promotion: bool
    started_s: float = field(default_factory=time.monotonic)
    parts: list[Part] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    """Places of keys that no task was begun for."""

    def has_ended(self) -> bool:
        """Tells whether nothing touches the job's rows any more."""
        return all(part.task.check() for part in self.parts)

    def outcome(self) -> Outcome:
        """What became of an ended job's keys."""
        failed = np.zeros(len(self.keys), dtype=bool)
        failed[self.refused] = True
        errors: list[str] = []
        for part in self.parts:
            report = part.task.report()
            if report is None:
                failed[part.positions] = True
                errors.append("the task ended without a report")
                continue
            failed[part.positions[np.asarray(report.failed, dtype=np.int64)]] = True
            errors.extend(report.errors)
        return Outcome(self, failed, errors, time.monotonic() - self.started_s)

    def wait(self, timeout_s: float) -> bool:
        """Waits for the end, cancels what has not ended after `timeout_s` seconds; False when even that is no end."""
        deadline = time.monotonic() + timeout_s
        for part in self.parts:
            if not part.task.check():
                try:
                    end(part.task, deadline - time.monotonic())
                except KvstoredError:
                    if not part.task.check():
                        return False
        return True


@dataclass
class Outcome:
    """What became of a job's keys."""

    job: Job
    failed: np.ndarray
    """For each key: was it neither loaded nor stored."""
    errors: list[str]
    duration_s: float

    @property
    def failures(self) -> int:
        """Number of keys that failed."""
        return int(self.failed.sum())

    def keys(self, *, failed: bool) -> list[Any]:
        """The keys that failed, or those that did not."""
        return [key for key, is_failed in zip(self.job.keys, self.failed.tolist(), strict=True) if is_failed is failed]
