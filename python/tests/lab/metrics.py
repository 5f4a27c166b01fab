"""What an engine tells in the Prometheus text format."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_SAMPLE = re.compile(r"^(?P<name>[A-Za-z_:][A-Za-z0-9_:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Sample:
    """One line."""

    name: str
    labels: Mapping[str, str]
    value: float


class Metrics:
    """All samples of one moment."""

    def __init__(self, exposition: str) -> None:
        self.samples: list[Sample] = []
        for line in exposition.splitlines():
            match = None if line.startswith("#") else _SAMPLE.match(line)
            if match is not None:
                labels = dict(_LABEL.findall(match["labels"] or ""))
                self.samples.append(Sample(match["name"], labels, float(match["value"])))

    def total(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels; 0 when there are none."""
        return sum(
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= dict(sample.labels).items()
        )

    def names(self) -> set[str]:
        """Of all samples."""
        return {sample.name for sample in self.samples}

    def prefix_cache(self) -> PrefixCache:
        """Tokens looked up and found, in the engine's own prefix cache and through its connector."""
        return PrefixCache(
            local_queries=int(self.total("vllm:prefix_cache_queries_total")),
            local_hits=int(self.total("vllm:prefix_cache_hits_total")),
            external_queries=int(self.total("vllm:external_prefix_cache_queries_total")),
            external_hits=int(self.total("vllm:external_prefix_cache_hits_total")),
        )


@dataclass(frozen=True)
class PrefixCache:
    """Counts of tokens since the engine started."""

    local_queries: int
    local_hits: int
    external_queries: int
    external_hits: int

    def __sub__(self, earlier: PrefixCache) -> PrefixCache:
        return PrefixCache(
            self.local_queries - earlier.local_queries,
            self.local_hits - earlier.local_hits,
            self.external_queries - earlier.external_queries,
            self.external_hits - earlier.external_hits,
        )
