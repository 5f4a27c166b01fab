"""The connector that vLLM loads: hands its calls to the side that this process plays, and lets nothing out.

A fault of ours must cost a cache hit, never a step: every hook that vLLM calls while serving catches what is raised,
logs it and answers as if the cache weren't there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from kvstored import KvstoredError
from kvstored.vllm import assembly
from kvstored.vllm.configuration import read_settings
from kvstored.vllm.guard import Guard
from kvstored.vllm.measures import Accumulator
from kvstored.vllm.metadata import StepMetadata, WorkerReport
from kvstored.vllm.statistics import ConnectorPrometheus, ConnectorStatistics, register_by_name

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig

_SOURCES = {"Cache": CacheHitSource.HOST, "Posix": CacheHitSource.DISK}

logger = logging.getLogger("vllm.kvstored")


class UCMConnector(KVConnectorBase_V1):
    """A best-effort prefix cache over a kvstored daemon or an engine embedded in vLLM.

    Configured by `kv_connector_extra_config`; see `kvstored.vllm.configuration`.
    """

    _cache_hit_source = CacheHitSource.HOST

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        """Reads the settings and opens the store.

        Raises:
            ValueError: naming what is wrong with the settings, or what isn't supported.
        """
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        self._statistics = Accumulator()
        self._guard = Guard("the cache does without")
        settings, warnings = read_settings(self._kv_transfer_config.kv_connector_extra_config)
        if role == KVConnectorRole.SCHEDULER:
            for warning in warnings:
                logger.warning("kvstored: %s", warning)
        self._assembly = assembly.Assembly(vllm_config, kv_cache_config, settings, self._statistics)
        self._scheduler = self._assembly.scheduler() if role == KVConnectorRole.SCHEDULER else None
        self._worker: Any = None

    # --- class and properties ------------------------------------------------------------------------------------

    @property
    def requires_kv_delivery(self) -> bool:
        """No: a dump that is dropped is a later miss."""
        return False

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        """Layer by layer, Python has to run between the parts of a graph."""
        try:
            return read_settings(extra_config)[0].use_layerwise
        except KvstoredError:
            return False  # the constructor says what is wrong

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> ConnectorStatistics:
        """Statistics from what a worker sent."""
        return ConnectorStatistics.of(data)

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: VllmConfig,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> ConnectorPrometheus:
        """The metrics behind vLLM's /metrics."""
        return ConnectorPrometheus(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    # --- worker's side -------------------------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """Takes the engine's KV tensors.

        Raises:
            ValueError: when this build can't reach their memory.
        """
        self._worker = self._assembly.worker(kv_caches)

    def handle_preemptions(self, kv_connector_metadata: Any) -> None:
        """Ends dumps of blocks that are about to be overwritten."""
        if self._worker is not None and isinstance(kv_connector_metadata, StepMetadata):
            self._guard(None, self._worker.prepare, kv_connector_metadata)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Begins this step's loads."""
        metadata = self._metadata()
        if metadata is not None:
            self._guard(None, self._worker.start_loads, metadata)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Waits until a layer is loaded, at most until the load's deadline."""
        if self._worker is not None:
            self._guard(None, self._worker.wait_for_layer, layer_name)

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Begins to copy a layer that was just computed."""
        metadata = self._metadata()
        if metadata is not None:
            self._guard(None, self._worker.save_layer, metadata, layer_name)

    def wait_for_save(self) -> None:
        """Settles the step's loads and begins its dumps; these go on beside later steps."""
        metadata = self._metadata()
        if metadata is not None:
            self._guard(None, self._worker.end_step, metadata)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Requests whose dumps, and requests whose loads between steps, have ended."""
        if self._worker is None:
            return None, None
        dumped, loaded = self._guard((set(), set()), self._worker.finished)
        return dumped or None, loaded or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks that were to be loaded and weren't."""
        return self._guard(set(), self._worker.take_failed_blocks) if self._worker is not None else set()

    def build_connector_worker_meta(self) -> WorkerReport | None:
        """What the scheduler's side learns of this step."""
        return self._guard(None, self._worker.report) if self._worker is not None else None

    def get_kv_connector_stats(self) -> ConnectorStatistics | None:
        """What was measured since the last call."""
        if self._scheduler is not None:
            self._guard(None, self._scheduler.take_governor_measures)
        return self._guard(None, ConnectorStatistics.take, self._statistics)

    def shutdown(self) -> None:
        """Ends everything under way and lets the store go."""
        if self._worker is not None:
            self._guard(None, self._worker.close, 5.0)
        if self._scheduler is not None:
            self._guard(None, self._scheduler.close)
        self._guard(None, self._assembly.close)

    # --- scheduler's side ----------------------------------------------------------------------------------------

    def on_new_request(self, request: Any) -> None:
        """A request has arrived."""
        if self._scheduler is not None:
            self._guard(None, self._scheduler.on_new_request, request)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """How many tokens to load behind those computed, and whether between steps."""
        assert self._scheduler is not None
        return self._guard((0, False), self._scheduler.matched_tokens, request, num_computed_tokens)

    def get_external_cache_hit_sources(self, request: Any, num_external_tokens: int) -> dict[CacheHitSource, int]:
        """Where the tokens to load come from."""
        assert self._scheduler is not None
        return self._guard({}, self._sources, request, num_external_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """The request has got blocks to load into."""
        if num_external_tokens <= 0 or self._scheduler is None:
            return
        block_ids = blocks.get_block_ids()[0]
        if not self._guard(False, self._scheduler.allocated, request, block_ids, num_external_tokens):
            # nobody would fill these blocks: the workers have to report them
            self._scheduler.not_loaded(request.request_id, block_ids)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> StepMetadata:
        """What the workers have to do in this step."""
        assert self._scheduler is not None
        metadata = self._scheduler.begin_step(scheduler_output)
        self._guard(None, self._scheduler.plan_dumps, scheduler_output, metadata)
        return metadata

    def update_connector_output(self, connector_output: Any) -> None:
        """What the workers of all ranks reported."""
        if self._scheduler is not None:
            self._guard(None, self._scheduler.worker_output, connector_output)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """A request has ended: whether its blocks stay until they are dumped."""
        assert self._scheduler is not None
        retained = self._guard(None, self._scheduler.finished, request)
        if retained is None:
            # its blocks are freed now: the workers end its dumps first
            self._scheduler.abandoned(request.request_id)
        return bool(retained), None

    def take_events(self) -> Iterable[Any]:
        """KV events: blocks stored in, and removed from, the tiers."""
        return self._guard((), self._scheduler.take_events) if self._scheduler is not None else ()

    def reset_cache(self) -> bool | None:
        """Makes this engine forget what is stored, as after an update of the weights."""
        return self._guard(False, self._scheduler.forget_everything) if self._scheduler is not None else None

    # --- the rest ------------------------------------------------------------------------------------------------

    def _sources(self, request: Any, tokens: int) -> dict[CacheHitSource, int]:
        assert self._scheduler is not None
        size = self._assembly.block_tokens
        sources: dict[CacheHitSource, int] = {}
        for tier, blocks in self._scheduler.hit_tiers(request, tokens // size).items():
            source = _SOURCES.get(tier, CacheHitSource.EXTERNAL_UNSPECIFIED)
            sources[source] = sources.get(source, 0) + blocks * size
        return sources

    def _metadata(self) -> StepMetadata | None:
        metadata = self._connector_metadata
        return metadata if self._worker is not None and isinstance(metadata, StepMetadata) else None


KVStoredConnector = UCMConnector
"""The same connector under our own name."""

register_by_name(UCMConnector)
