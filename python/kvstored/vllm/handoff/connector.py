"""The connector that vLLM loads by the name `MooncakeConnectorV1`.

A fault of ours must cost a computation of what could have been fetched, never a step: every hook that vLLM calls while
serving catches what is raised, logs it and answers as if there were nothing to hand over.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole
from vllm.utils.network_utils import get_ip
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from kvstored import _native
from kvstored.mooncake.settings import address
from kvstored.vllm import geometry
from kvstored.vllm.guard import Guard
from kvstored.vllm.handoff.configuration import HandoffSettings, read_settings
from kvstored.vllm.handoff.measures import HANDOFF_MEASURES
from kvstored.vllm.handoff.metadata import HandoffReport, HandoffStep
from kvstored.vllm.handoff.placement import Place, own_place
from kvstored.vllm.handoff.scheduler import HandoffScheduler
from kvstored.vllm.handoff.shape import Shape, read_shape
from kvstored.vllm.handoff.statistics import HandoffPrometheus, HandoffStatistics
from kvstored.vllm.handoff.worker import HandoffWorker
from kvstored.vllm.identity import block_tokens
from kvstored.vllm.measures import Accumulator
from kvstored.vllm.statistics import register_by_name

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig

_CLOSE_S = 5.0

logger = logging.getLogger("vllm.kvstored")


class MooncakeConnectorV1(KVConnectorBase_V1):
    """Hands the KV of prompts from prefill instances (`kv_producer`) to decode instances (`kv_consumer`).

    Configured by `kv_port` and `kv_connector_extra_config`; see `kvstored.vllm.handoff.configuration`.
    """

    _cache_hit_source = CacheHitSource.P2P

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        """Reads the settings; workers listen once they have KV tensors.

        Raises:
            ValueError: naming what is wrong with the settings, or what isn't supported.
        """
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        geometry.check_supported(vllm_config, kv_cache_config)
        self._statistics = Accumulator(HANDOFF_MEASURES)
        self._guard = Guard("prompts are computed instead")
        own_host = get_ip()
        self._settings, warnings = read_settings(self._kv_transfer_config.kv_connector_extra_config, own_host)
        self._place = own_place(vllm_config, self._settings, own_host)
        self._scheduler: HandoffScheduler | None = None
        self._worker: HandoffWorker | None = None
        if role == KVConnectorRole.SCHEDULER:
            for warning in warnings:
                logger.warning("kvstored: %s", warning)
            self._scheduler = self._make_scheduler()

    # --- class ---------------------------------------------------------------------------------------------------

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        """Where layers are handed over one by one, Python has to run between the parts of a graph."""
        return extra_config.get("overlap") is True

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> HandoffStatistics:
        """Statistics from what a worker sent."""
        return HandoffStatistics.of(data)

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: VllmConfig,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> HandoffPrometheus:
        """The metrics behind vLLM's /metrics."""
        return HandoffPrometheus(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    # --- worker's side -------------------------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """Takes the engine's KV tensors, and listens for decode instances.

        Raises:
            ValueError: when this build can't reach their memory.
            KvstoredError: when it can't listen.
        """
        from vllm.distributed.parallel_state import get_pp_group, get_tp_group

        pp_rank, tp_rank = get_pp_group().rank_in_group, get_tp_group().rank_in_group
        device = get_tp_group().local_rank
        shape = read_shape(self._vllm_config, self._kv_cache_config, kv_caches, tp_rank)
        native = start_native(self._settings, self._place, shape, pp_rank, tp_rank, device)
        names = [name for name, _ in shape.layers]
        self._worker = HandoffWorker(native, self._settings, self._statistics, names)

    def handle_preemptions(self, kv_connector_metadata: Any) -> None:
        """Takes back blocks that are about to be overwritten, and learns what this step computes."""
        if self._worker is not None and isinstance(kv_connector_metadata, HandoffStep):
            self._guard(None, self._worker.prepare, kv_connector_metadata)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Begins what this step brings: blocks to keep, to fetch, to give back."""
        if self._worker is not None and isinstance(self._connector_metadata, HandoffStep):
            self._guard(None, self._worker.begin, self._connector_metadata)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: requests wait outside the step until all their blocks are there."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """A layer of this step is computed: it may be pulled, if the setting `overlap` allows that."""
        if self._worker is not None:
            self._guard(None, self._worker.layer_done, layer_name)

    def wait_for_save(self) -> None:
        """Nothing: blocks stay until they were fetched."""

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Requests whose blocks may be freed, and requests whose blocks were fetched, or won't be."""
        if self._worker is None:
            return None, None
        freed, ended = self._guard((set(), set()), self._worker.finished)
        return freed or None, ended or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks that were to be fetched and weren't."""
        return self._guard(set(), self._worker.take_failed_blocks) if self._worker is not None else set()

    def build_connector_worker_meta(self) -> HandoffReport | None:
        """What the scheduler's side learns of this step."""
        return self._guard(None, self._worker.report) if self._worker is not None else None

    def get_kv_connector_stats(self) -> HandoffStatistics | None:
        """What was measured since the last call."""
        return self._guard(None, HandoffStatistics.take, self._statistics)

    def shutdown(self) -> None:
        """Ends everything under way."""
        if self._worker is not None:
            self._guard(None, self._worker.close, _CLOSE_S)

    # --- scheduler's side ----------------------------------------------------------------------------------------

    def on_new_request(self, request: Any) -> None:
        """A request has arrived."""
        if self._scheduler is not None:
            self._guard(None, self._scheduler.on_new_request, request)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """How many tokens to fetch behind those computed; always between steps."""
        assert self._scheduler is not None
        return self._guard((0, False), self._scheduler.matched_tokens, request, num_computed_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """The request has got blocks to fetch into; without external tokens, it is computed here."""
        assert self._scheduler is not None
        block_ids = blocks.get_block_ids()[0]
        allocated = self._guard(False, self._scheduler.allocated, request, block_ids, num_external_tokens)
        if num_external_tokens and not allocated:
            # the workers have to report the blocks, or the request would wait forever
            self._scheduler.not_fetched(request.request_id, block_ids)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> HandoffStep:
        """What the workers have to do in this step."""
        assert self._scheduler is not None
        return self._scheduler.take_step(scheduler_output)

    def update_connector_output(self, connector_output: Any) -> None:
        """What the workers of all ranks reported."""
        if self._scheduler is not None:
            self._guard(None, self._scheduler.worker_output, connector_output)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """A request has ended: whether its blocks stay for a decode instance, and what that has to know."""
        assert self._scheduler is not None
        answer = self._guard(None, self._scheduler.finished, request, block_ids)
        if answer is None:
            self._scheduler.abandoned(request.request_id)
            return False, None
        return answer

    # --- the rest ------------------------------------------------------------------------------------------------

    def _make_scheduler(self) -> HandoffScheduler:
        transfer = self._kv_transfer_config
        if transfer.is_kv_consumer and transfer.kv_load_failure_policy != "recompute":
            # read by the scheduler after its connector was made
            transfer.kv_load_failure_policy = "recompute"
            logger.info(
                "kvstored: prompts whose blocks can't be fetched are computed (kv_load_failure_policy: recompute); "
                "inside MultiConnector, set that on it"
            )
        logger.info(
            "kvstored: %s of prompts, workers from %s on, transports %s, lease %g s, blocks of %d tokens",
            transfer.kv_role,
            address(self._place.host, self._place.base_port),
            ", ".join(self._settings.transports) or "as they come",
            self._settings.lease_seconds,
            block_tokens(self._kv_cache_config),
        )
        return HandoffScheduler(
            self._settings,
            self._place,
            self._statistics,
            block_tokens=block_tokens(self._kv_cache_config),
            produces=transfer.is_kv_producer,
            consumes=transfer.is_kv_consumer,
        )


def start_native(
    settings: HandoffSettings, place: Place, shape: Shape, pp_rank: int, tp_rank: int, device: int
) -> _native.Handoff:
    """What moves a worker's bytes, listening.

    Args:
        settings: the hand-off's.
        place: the instance's among the others.
        shape: of the KV that the worker has.
        pp_rank: the worker's stage.
        tp_rank: its number there.
        device: its device's number on this machine.

    Raises:
        KvstoredError: when it can't listen there, or the security settings are wrong, or the plugin's.
    """
    security = settings.security
    plugged = None if settings.plugged is None else settings.plugged.of_device(device)
    native = _native.Handoff.start(
        address(settings.listen_host, place.rank_port(pp_rank, tp_rank)),
        list(settings.transports),
        security.token,
        security.certificate,
        security.key,
        security.authority,
        settings.verify,
        settings.pull_threads,
        plugged,
    )
    native.describe(
        engine_id=place.engine_id,
        fingerprint=shape.fingerprint,
        block_tokens=shape.block_tokens,
        total_heads=shape.heads.total,
        first_head=shape.heads.first,
        heads=shape.heads.count,
        tp_rank=tp_rank,
        tp_size=place.tp_size,
        pp_rank=pp_rank,
        pp_size=place.pp_size,
        layers=shape.layers,
    )
    logger.info("kvstored: worker %d of stage %d hands over at %s", tp_rank, pp_rank, native.address)
    return native


register_by_name(MooncakeConnectorV1)
