"""The hand-off's statistics as vLLM carries, logs and exports them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from kvstored.vllm.handoff.measures import HANDOFF_MEASURES
from kvstored.vllm.measures import Measure
from kvstored.vllm.statistics import METRIC_PREFIX, ConnectorPrometheus, ConnectorStatistics


class HandoffStatistics(ConnectorStatistics):
    """What was measured of the hand-off in an interval."""

    measures: ClassVar[Mapping[str, Measure]] = HANDOFF_MEASURES

    def reduce(self) -> dict[str, int | float]:
        """The interval in one line of the log: what didn't happen isn't in it."""
        line: dict[str, int | float] = {}
        self._put(line, "offered", "Offered")
        self._by_label(line, "released", "Released ({})")
        self._put(line, "held_requests", "Held")
        self._put(line, "held_blocks", "Held blocks")
        self._put(line, "pulled_requests", "Pulled")
        seconds = self._histogram("pull_seconds")
        if self._total("pulled_blocks"):
            megabytes = self._total("pulled_bytes") / 1e6
            line["Pulled (MB)"] = round(megabytes, 3)
            if seconds["samples"]:
                line["P90 pull (ms)"] = round(float(np.percentile(seconds["samples"], 90)) * 1e3, 3)
        self._by_label(line, "failed_pulls", "Not pulled ({})")
        self._by_label(line, "declined", "Declined ({})")
        return line


class HandoffPrometheus(ConnectorPrometheus):
    """Exports them on vLLM's own /metrics."""

    prefix: ClassVar[str] = METRIC_PREFIX + "handoff_"
    statistics: ClassVar[type[ConnectorStatistics]] = HandoffStatistics
