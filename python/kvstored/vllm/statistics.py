"""The connector's statistics as vLLM carries, logs and exports them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
    PromMetric,
    PromMetricT,
)

from kvstored.vllm.measures import COUNTER, GAUGE, MEASURES, Accumulator, Measure, merge

if TYPE_CHECKING:
    from typing_extensions import Self

METRIC_PREFIX = "vllm:kvstored_"

#: At most so many observations without a sample are exported of one payload.
_UNSAMPLED_LIMIT = 10_000

__all__ = ["METRIC_PREFIX", "Accumulator", "ConnectorPrometheus", "ConnectorStatistics", "register_by_name"]


@dataclass
class ConnectorStatistics(KVConnectorStats):
    """What was measured in an interval: a payload of `measures`, which crosses processes as it is.

    A block is one rank's: what four tensor-parallel ranks load together counts four times as loaded.
    """

    measures: ClassVar[Mapping[str, Measure]] = MEASURES
    """What is measured, by name."""

    @classmethod
    def of(cls, payload: Mapping[str, Any] | None = None) -> Self:
        """Statistics of a payload, which stays the caller's. What it has that isn't known here is left out."""
        statistics = cls()
        if payload:
            merge(statistics.data, payload, cls.measures)
        return statistics

    @classmethod
    def take(cls, accumulator: Accumulator) -> Self | None:
        """What was added since the last call; None if nothing was."""
        payload = accumulator.take()
        return None if payload is None else cls(data=payload)

    def reset(self) -> None:
        """Forgets everything."""
        self.data = {}

    def is_empty(self) -> bool:
        """Whether nothing was measured."""
        return not self.data

    def aggregate(self, other: KVConnectorStats) -> Self:
        """Adds others to these; the others stay as they are."""
        merge(self.data, other.data, self.measures)
        return self

    def reduce(self) -> dict[str, int | float]:
        """The interval in one line of the log: what didn't happen isn't in it."""
        line: dict[str, int | float] = {}
        lookups = self._histogram("lookup_seconds")
        self._put(line, "lookups", "Lookups")
        if lookups["count"]:
            line["Avg lookup (ms)"] = _milliseconds(lookups["sum"] / lookups["count"])
        self._put(line, "lookup_blocks", "Blocks looked up")
        self._by_label(line, "hit_blocks", "Hit blocks in {}")
        self._put(line, "hit_tokens", "Hit tokens")
        self._put(line, "declined_blocks", "Hit blocks declined")
        self._transfer(line, "loaded", "load", "Loaded")
        self._by_label(line, "failed_blocks", "Blocks not loaded ({})")
        self._transfer(line, "dumped", "dump", "Dumped")
        self._by_label(line, "skipped_blocks", "Blocks not dumped ({})")
        self._by_label(line, "unavailable", "Store unavailable ({})")
        if speed := self._total("prefill_tokens_per_second"):
            line["Prefill (tokens/s)"] = round(speed)
        for tier, bytes_per_second in self.data.get("tier_bytes_per_second", {}).items():
            line[f"{tier} (MB/s)"] = round(bytes_per_second / 1e6, 1)
        return line

    def _transfer(self, line: dict[str, int | float], done: str, time: str, words: str) -> None:
        seconds = self._histogram(f"{time}_seconds")
        if not (blocks := self._total(f"{done}_blocks")):
            return
        megabytes = self._total(f"{done}_bytes") / 1e6
        line[f"{words} blocks"] = blocks
        line[f"{words} (MB)"] = round(megabytes, 3)
        if seconds["samples"]:
            line[f"P90 {time} (ms)"] = _milliseconds(float(np.percentile(seconds["samples"], 90)))
        if seconds["sum"] > 0:
            line[f"MB/s of a {time}"] = round(megabytes / seconds["sum"], 1)

    def _put(self, line: dict[str, int | float], name: str, words: str) -> None:
        if total := self._total(name):
            line[words] = total

    def _by_label(self, line: dict[str, int | float], name: str, words: str) -> None:
        for label, value in sorted(self.data.get(name, {}).items()):
            if value:
                line[words.format(label)] = value

    def _total(self, name: str) -> int | float:
        return sum(self.data.get(name, {}).values())

    def _histogram(self, name: str) -> dict[str, Any]:
        return self.data.get(name, {}).get("", {"count": 0, "sum": 0.0, "samples": []})


class ConnectorPrometheus(KVConnectorPromMetrics):
    """Exports the statistics on vLLM's own /metrics."""

    prefix: ClassVar[str] = METRIC_PREFIX
    """What the metrics' names begin with."""
    statistics: ClassVar[type[ConnectorStatistics]] = ConnectorStatistics
    """What is exported."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        metric_types: dict[type[PromMetric], type[PromMetricT]],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        """Registers every measure; `metric_types` are the classes to make metrics of."""
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._metrics: dict[str, Any] = {
            name: self._register(measure) for name, measure in self.statistics.measures.items()
        }
        self._children: dict[tuple[int, str, str], Any] = {}
        for engine in per_engine_labelvalues:
            for measure in self.statistics.measures.values():
                for value in measure.values if measure.label else ("",):
                    if measure.kind != GAUGE:
                        self._child(engine, measure, value)

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Adds an interval's payload to an engine's metrics. What isn't known is left out."""
        if engine_idx not in self.per_engine_labelvalues:
            return
        for name, series in self.statistics.of(transfer_stats_data).data.items():
            measure = self.statistics.measures[name]
            for label, value in series.items():
                child = self._child(engine_idx, measure, label)
                if measure.kind == COUNTER:
                    child.inc(value)
                elif measure.kind == GAUGE:
                    child.set(value)
                else:
                    _observe(child, value)

    def _register(self, measure: Measure) -> Any:
        labels = [*self._labelnames, measure.label] if measure.label else self._labelnames
        name = self.prefix + measure.name
        if measure.kind == COUNTER:
            return self._counter_cls(name=name, documentation=measure.documentation, labelnames=labels)
        if measure.kind == GAUGE:
            # Several API servers export the same engine's gauges: the newest value is the true one.
            return self._gauge_cls(
                name=name, documentation=measure.documentation, labelnames=labels, multiprocess_mode="mostrecent"
            )
        return self._histogram_cls(
            name=name, documentation=measure.documentation, labelnames=labels, buckets=list(measure.buckets)
        )

    def _child(self, engine: int, measure: Measure, label: str) -> Any:
        key = (engine, measure.name, label)
        child = self._children.get(key)
        if child is None:
            values = list(self.per_engine_labelvalues[engine])
            if measure.label:
                values.append(label)
            child = self._children[key] = self._metrics[measure.name].labels(*values)
        return child


def register_by_name(connector: type) -> None:
    """Makes a connector class known by its name, under which MultiConnector looks its statistics up.

    Call it in the module that defines the class. A connector already registered under the name stays.
    """
    name, module = connector.__name__, connector.__module__
    try:
        KVConnectorFactory.get_connector_class_by_name(name)
    except ValueError:
        KVConnectorFactory.register_connector(name, module, name)


def _observe(child: Any, histogram: Mapping[str, Any]) -> None:
    for sample in histogram["samples"]:
        child.observe(sample)
    left = histogram["count"] - len(histogram["samples"])
    if left > 0:
        # Count and sum stay exact where samples were left out.
        mean = max(histogram["sum"] - sum(histogram["samples"]), 0.0) / left
        for _ in range(min(left, _UNSAMPLED_LIMIT)):
            child.observe(mean)


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1e3, 3)
