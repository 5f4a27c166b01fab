"""What the tier counts, under vLLM's own metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.v1.kv_offload.base import OffloadingCounterMetadata, OffloadingGaugeMetadata, OffloadingMetricMetadata

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats

LOADED_CHUNKS = "vllm:kvstored_tier_loaded_chunks"
LOAD_FAILED_CHUNKS = "vllm:kvstored_tier_load_failed_chunks"
STORED_CHUNKS = "vllm:kvstored_tier_stored_chunks"
STORE_FAILED_CHUNKS = "vllm:kvstored_tier_store_failed_chunks"
STORE_REFUSED_CHUNKS = "vllm:kvstored_tier_store_refused_chunks"
JOBS_IN_FLIGHT = "vllm:kvstored_tier_jobs_in_flight"

_DOCUMENTATION = {
    LOADED_CHUNKS: "Chunks loaded from kvstored, labeled by tier.",
    LOAD_FAILED_CHUNKS: "Chunks that a lookup had found and a load did not get (recomputed), labeled by tier.",
    STORED_CHUNKS: "Chunks stored in kvstored, or found there already, labeled by tier.",
    STORE_FAILED_CHUNKS: "Chunks that could not be stored, labeled by tier.",
    STORE_REFUSED_CHUNKS: "Chunks not stored because too many stores were under way, labeled by tier.",
}


def definitions() -> dict[str, OffloadingMetricMetadata]:
    """Names and descriptions of the tier's metrics."""
    made: dict[str, OffloadingMetricMetadata] = {
        name: OffloadingCounterMetadata(documentation=text, labelnames=("tier",))
        for name, text in _DOCUMENTATION.items()
    }
    made[JOBS_IN_FLIGHT] = OffloadingGaugeMetadata(
        documentation="Transfers between the primary tier and kvstored under way, labeled by tier.",
        labelnames=("tier",),
    )
    return made


class Counters:
    """Counts between two collections."""

    def __init__(self, tier_type: str) -> None:
        self._label = (tier_type,)
        self._counts: dict[str, int] = {}
        self._last_jobs = 0

    def add(self, name: str, count: int) -> None:
        """Adds to a counter."""
        if count:
            self._counts[name] = self._counts.get(name, 0) + count

    def take(self, jobs_in_flight: int) -> OffloadingConnectorStats | None:
        """The counts since the last call, None when nothing changed."""
        if not self._counts and jobs_in_flight == self._last_jobs:
            return None
        from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats

        stats = OffloadingConnectorStats()
        for name, count in self._counts.items():
            stats.increase_counter(name, count, self._label)
        stats.set_gauge(JOBS_IN_FLIGHT, jobs_in_flight, self._label)
        self._counts = {}
        self._last_jobs = jobs_in_flight
        return stats
