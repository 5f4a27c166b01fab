"""Puts the sides of the connector together from vLLM's configuration."""

from __future__ import annotations

import logging
from typing import Any

from kvstored.vllm import geometry
from kvstored.vllm.configuration import ConnectorSettings
from kvstored.vllm.device import open_memory
from kvstored.vllm.event_feed import EventFeed
from kvstored.vllm.events import EventTranslator
from kvstored.vllm.governor import Governor, GovernorSettings
from kvstored.vllm.hosting import Seat, StoreAccess
from kvstored.vllm.identity import base_identity, block_tokens, replicas, with_rank
from kvstored.vllm.measures import Accumulator
from kvstored.vllm.namespaces import NamespaceCache, RankNamespaces
from kvstored.vllm.scheduler import SchedulerEvents, SchedulerSide
from kvstored.vllm.worker import WorkerSide

logger = logging.getLogger("vllm.kvstored")


class Assembly:
    """What one process's connector is made of."""

    def __init__(
        self, vllm_config: Any, kv_cache_config: Any, settings: ConnectorSettings, statistics: Accumulator
    ) -> None:
        """Checks what is asked for.

        Raises:
            KvstoredError: saying what isn't supported or can't be opened.
        """
        geometry.check_supported(vllm_config, kv_cache_config)
        self._config = vllm_config
        self._kv_cache_config = kv_cache_config
        self._settings = settings
        self._statistics = statistics
        self._transfer = vllm_config.kv_transfer_config
        self.block_tokens = block_tokens(kv_cache_config)
        self._base = base_identity(
            vllm_config, kv_cache_config, tenant=settings.tenant, weights_digest=settings.weights_digest
        )
        self._layouts = geometry.rank_layouts(vllm_config, kv_cache_config)
        self._access: StoreAccess | None = None

    def scheduler(self) -> SchedulerSide:
        """The scheduler's side."""
        parallel = self._config.parallel_config
        access = self._open(Seat.ALONE if _in_one_process(parallel) else Seat.FIRST)
        ranks = range(0, parallel.tensor_parallel_size, replicas(self._kv_cache_config))
        self.namespaces = RankNamespaces(access, self._base, self._layouts, list(ranks))
        # what can't work shows at the start, and KV events of what other engines store count from the first on
        self.namespaces.open_plain()
        logger.info(
            "kvstored: blocks of %d tokens, %d bytes, in %d parts; model %s, weights %s, %s",
            self.block_tokens,
            self.namespaces.block_bytes,
            len(self.namespaces.ranks),
            self._base.model,
            self._base.weights_digest,
            self._base.dtype,
        )
        governor = Governor(
            GovernorSettings(enabled=self._settings.governor, load_deadline_ms=self._settings.load_deadline_ms)
        )
        return SchedulerSide(
            self._settings,
            self.namespaces,
            governor,
            self._statistics,
            self._events(access, self.namespaces),
            block_tokens=self.block_tokens,
            hashes_per_block=geometry.hashes_per_block(self._kv_cache_config),
            loads=self._transfer.is_kv_consumer,
            dumps=self._transfer.is_kv_producer,
        )

    def worker(self, kv_caches: dict[str, Any]) -> WorkerSide:
        """A worker's side, over its KV tensors."""
        from vllm.distributed.parallel_state import get_pp_group, get_tp_group

        stage, rank = get_pp_group().rank_in_group, get_tp_group().rank_in_group
        addresses = geometry.BlockAddresses(kv_caches, self._kv_cache_config)
        memory = open_memory(kv_caches, self._settings)
        if addresses.layout != self._layouts[stage]:
            logger.error(
                "kvstored: rank %d of stage %d has another layout of KV than the scheduler expects: no hits",
                rank,
                stage,
            )
        storing = geometry.storing_rank(self._kv_cache_config, rank)
        access = self._open(_worker_seat(self._config.parallel_config))
        namespaces = NamespaceCache(access, with_rank(self._base, stage, storing), addresses.layout)
        return WorkerSide(
            self._settings,
            namespaces,
            addresses,
            memory,
            self._statistics,
            dumps=self._transfer.is_kv_producer and storing == rank,
        )

    def _events(self, access: StoreAccess, namespaces: RankNamespaces) -> SchedulerEvents | None:
        """The source of KV events; None where vLLM publishes none."""
        wanted = self._config.kv_events_config
        if not self._settings.kv_events or wanted is None or not wanted.enable_kv_cache_events:
            return None
        translator = EventTranslator(len(namespaces.ranks), self.block_tokens)
        digests = lambda: {  # noqa: E731
            digest: rank for rank, cache in enumerate(namespaces.ranks) for digest in cache.known()
        }
        return SchedulerEvents(translator, EventFeed(translator, access.get, digests))

    def close(self) -> None:
        """Lets the store go."""
        if self._access is not None:
            self._access.close()

    def _open(self, seat: Seat) -> StoreAccess:
        parallel = self._config.parallel_config
        # one store of our own for each data-parallel engine of the node
        key = f"{self._transfer.engine_id}/{getattr(parallel, 'data_parallel_rank', 0)}"
        self._access = StoreAccess(
            self._settings,
            key,
            seat=seat,
            call_timeout_ms=self._settings.lookup_deadline_ms,
        )
        return self._access


def _in_one_process(parallel: Any) -> bool:
    """Whether scheduling and computing happen in one process. Workers may be apart even if there is only one."""
    backend = parallel.distributed_executor_backend
    return backend == "uni" or getattr(backend, "__name__", "") == "UniProcExecutor"


def _worker_seat(parallel: Any) -> Seat:
    """What a worker's process is to its node."""
    if _in_one_process(parallel):
        return Seat.ALONE
    # with one node, the scheduler is on it; with several, or processes placed by another system, it may not be
    one_node = parallel.distributed_executor_backend == "mp" and getattr(parallel, "nnodes", 1) == 1
    return Seat.GUEST if one_node else Seat.FIRST
