"""Repeating something for a while: speed, latency and processor time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

SECONDS = 0.25
REPEATS = 3
#: Preparations take at most that many times as long as what is timed, or the rest is left out.
PATIENCE = 8


def repeat(amount: float, action: Callable[[], Any], other_cpu: Callable[[], float] | None = None) -> dict[str, float]:
    """Does it again and again; one action moves `amount` units.

    rate: units per second. p50, p99: microseconds of an action. cpu: processor seconds per unit, those of the other
    side included, which `other_cpu` tells.
    """
    seconds: list[float] = []
    others = other_cpu() if other_cpu else 0.0
    used = time.process_time()
    start = last = time.perf_counter()
    while len(seconds) < REPEATS or last - start < SECONDS:
        action()
        now = time.perf_counter()
        seconds.append(now - last)
        last = now
    used = time.process_time() - used
    if other_cpu:
        used += other_cpu() - others
    return _result(amount, seconds, last - start, used)


def repeat_prepared(amount: float, action: Callable[[], Any], prepare: Callable[[], Any]) -> dict[str, float]:
    """The same where every action needs a preparation, which doesn't count."""
    seconds: list[float] = []
    used = 0.0
    end = time.perf_counter() + SECONDS * PATIENCE
    while len(seconds) < REPEATS or (sum(seconds) < SECONDS and time.perf_counter() < end):
        prepare()
        before, start = time.process_time(), time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
        used += time.process_time() - before
    return _result(amount, seconds, sum(seconds), used)


def _result(amount: float, seconds: list[float], span: float, used: float) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "rate": amount * len(ordered) / span,
        "p50": ordered[len(ordered) // 2] * 1e6,
        "p99": ordered[min(int(len(ordered) * 0.99), len(ordered) - 1)] * 1e6,
        "cpu": used / (amount * len(ordered)),
    }
