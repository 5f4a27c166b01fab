"""What the connector measures, and a cheap place to add it up between two steps.

Payloads are plain dicts that any serialiser takes: measure → label → number, or, for a histogram, its count, its
sum and some of its samples. Measures without a label use the empty one.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvstored.vllm.governor import Governor

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

#: A histogram's payload carries at most so many samples; further ones are in its count and sum alone.
SAMPLES = 256
#: At most so many labels per measure; further ones are added up under the last.
LABELS = 64
OTHER_LABEL = "other"
UNKNOWN_LABEL = "unknown"
#: A gauge is sent again once it has changed by this part.
_GAUGE_CHANGE = 0.01

_LOOKUP_BUCKETS = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5)
_TRANSFER_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure: its name without prefix, its kind and its label, if any."""

    name: str
    kind: str
    documentation: str
    label: str | None = None
    values: tuple[str, ...] = ()
    """Values of the label that are known beforehand; their series begin at 0."""
    buckets: tuple[float, ...] = ()


_MEASURES = (
    Measure("lookups", COUNTER, "Lookups for requests.", "outcome", ("hit", "miss", "unavailable")),
    Measure("lookup_seconds", HISTOGRAM, "Time of a lookup, in seconds.", buckets=_LOOKUP_BUCKETS),
    Measure("lookup_blocks", COUNTER, "Blocks that were looked up."),
    Measure("hit_blocks", COUNTER, "Blocks that lookups found, by the fastest tier that has them.", "tier"),
    Measure("hit_tokens", COUNTER, "Tokens of the blocks that lookups found.", "tier"),
    Measure(
        "decisions",
        COUNTER,
        "Hits by how much of them was loaded: everything, up to where loading no longer pays, nothing, a few blocks"
        " to measure a slow tier; off: not judged; unknown: before anything was measured.",
        "reason",
        ("all", "trimmed", "skipped", "probe", "off", "unknown"),
    ),
    Measure("declined_blocks", COUNTER, "Blocks that were found and left to be computed, which was to be faster."),
    Measure("loaded_blocks", COUNTER, "Blocks loaded into the engine.", "tier"),
    Measure("loaded_bytes", COUNTER, "Bytes of the blocks loaded into the engine.", "tier"),
    Measure("load_seconds", HISTOGRAM, "Time from a load's start to its end, in seconds.", buckets=_TRANSFER_BUCKETS),
    Measure(
        "failed_blocks",
        COUNTER,
        "Blocks that were to be loaded and had to be computed: gone since the lookup, too late, or for an error.",
        "cause",
        ("missing", "late", "error"),
    ),
    Measure("dumped_blocks", COUNTER, "Blocks stored, or found stored already."),
    Measure("dumped_bytes", COUNTER, "Bytes of these blocks."),
    Measure("dump_seconds", HISTOGRAM, "Time from a dump's start to its end, in seconds.", buckets=_TRANSFER_BUCKETS),
    Measure(
        "skipped_blocks",
        COUNTER,
        "Blocks that were not stored: the store was busy, took too long, or failed.",
        "cause",
        ("busy", "late", "error"),
    ),
    Measure(
        "unavailable",
        COUNTER,
        "Operations for which the store could not be reached.",
        "operation",
        ("open", "lookup", "load", "dump"),
    ),
    Measure("prefill_tokens_per_second", GAUGE, "Estimated prefill speed at a prompt's start, in tokens per second."),
    Measure("tier_bytes_per_second", GAUGE, "Estimated speed of loads from a tier, in bytes per second.", "tier"),
    Measure("tier_latency_seconds", GAUGE, "Estimated time of a load from a tier besides its bytes.", "tier"),
)

MEASURES: Mapping[str, Measure] = {measure.name: measure for measure in _MEASURES}

logger = logging.getLogger("vllm.kvstored")


class Accumulator:
    """Adds measures up until they are taken. Safe to use from any thread; never raises for what it's given."""

    def __init__(self, measures: Mapping[str, Measure] = MEASURES) -> None:
        """Starts empty; `measures`: those of the connector, by name."""
        self._measures = measures
        self._lock = threading.Lock()
        self._data: dict[str, dict[str, Any]] = {}
        self._sent: dict[tuple[str, str], float] = {}
        self._complained: set[str] = set()

    def add(self, name: str, value: float = 1, label: str | None = None) -> None:
        """Adds to a counter, sets a gauge or observes a value of a histogram.

        A measure that has a label and is given none counts as `unknown`. Values that aren't finite numbers of at
        least 0 are left out.
        """
        measure = self._measures.get(name)
        number = _plain(value)
        if measure is None or number is None:
            self._complain(name if measure is None else f"{name} = {value!r}")
            return
        if number == 0 and measure.kind == COUNTER:
            return
        key = (label or UNKNOWN_LABEL) if measure.label else ""
        with self._lock:
            if measure.kind == GAUGE:
                sent = self._sent.get((name, key))
                if sent is not None and abs(number - sent) <= _GAUGE_CHANGE * abs(sent):
                    return
                if sent is None and len(self._sent) >= LABELS:
                    return
                self._sent[name, key] = number
            _put(self._data.setdefault(name, {}), measure.kind, key, number)

    def add_by_label(self, name: str, values: Mapping[str, float]) -> None:
        """Adds several values of one measure by label."""
        for label, value in values.items():
            self.add(name, value, label)

    def add_governor(self, governor: Governor, tier_names: Sequence[str]) -> None:
        """Adds what a governor decided since the last call, and sets the gauges to what it estimates.

        Cheap enough for every step. `tier_names`: the tiers' names by index.
        """
        counts = governor.take_counts()
        self.add_by_label("decisions", counts.decisions)
        self.add("declined_blocks", counts.offered_blocks - counts.allowed_blocks)
        estimates = governor.estimates()
        if estimates.prefill_tokens_per_s is not None:
            self.add("prefill_tokens_per_second", estimates.prefill_tokens_per_s)
        for tier, estimate in estimates.tiers.items():
            name = tier_names[tier] if tier < len(tier_names) else str(tier)
            self.add("tier_bytes_per_second", estimate.bytes_per_s, name)
            self.add("tier_latency_seconds", estimate.latency_s, name)

    def take(self) -> dict[str, dict[str, Any]] | None:
        """What was added since the last call; None if nothing was."""
        with self._lock:
            data, self._data = self._data, {}
        return data or None

    def _complain(self, what: str) -> None:
        with self._lock:
            if what in self._complained or len(self._complained) >= LABELS:
                return
            self._complained.add(what)
        logger.warning("not a measure, or not a value for it: %s", what)


def merge(
    into: dict[str, dict[str, Any]], payload: Mapping[str, Any], measures: Mapping[str, Measure] = MEASURES
) -> None:
    """Adds a payload to another. What isn't known or isn't well formed is left out; nothing is shared afterwards."""
    for name, labels in payload.items():
        measure = measures.get(name)
        if measure is None or not isinstance(labels, Mapping):
            continue
        series = into.setdefault(name, {})
        for label, value in labels.items():
            if measure.kind != HISTOGRAM:
                if (number := _plain(value)) is not None:
                    _put(series, measure.kind, str(label), number)
                continue
            histogram = _histogram(value)
            if histogram is None:
                continue
            label = _bounded(series, str(label))
            known = series.setdefault(label, {"count": 0, "sum": 0.0, "samples": []})
            known["count"] += histogram["count"]
            known["sum"] += histogram["sum"]
            known["samples"].extend(histogram["samples"][: SAMPLES - len(known["samples"])])
        if not series:
            del into[name]


def _put(series: dict[str, Any], kind: str, label: str, number: float) -> None:
    label = _bounded(series, label)
    if kind == COUNTER:
        series[label] = series.get(label, 0) + number
    elif kind == GAUGE:
        series[label] = number
    else:
        histogram = series.setdefault(label, {"count": 0, "sum": 0.0, "samples": []})
        histogram["count"] += 1
        histogram["sum"] += number
        if len(histogram["samples"]) < SAMPLES:
            histogram["samples"].append(number)


def _bounded(series: Mapping[str, Any], label: str) -> str:
    return label if label in series or len(series) < LABELS else OTHER_LABEL


def _histogram(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, Mapping):
        return None
    count, total, samples = _plain(value.get("count")), _plain(value.get("sum")), value.get("samples")
    if count is None or total is None or not isinstance(samples, list):
        return None
    return {"count": int(count), "sum": total, "samples": [n for s in samples if (n := _plain(s)) is not None]}


def _plain(value: Any) -> float | int | None:
    """The value as a plain number, which every serialiser knows; None unless it's a finite one of at least 0."""
    if type(value) is not int:
        try:
            value = float(value)
        except (TypeError, ValueError, OverflowError):
            return None
        if not math.isfinite(value):
            return None
        if value.is_integer():
            value = int(value)
    return value if value >= 0 else None
