"""Who listens where: the ports of an instance's workers.

A data-parallel rank begins at `kv_port + dp_rank * tp_size * pp_size`, its base port; there its workers follow one
another by `pp_rank * tp_size + tp_rank`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from kvstored import InvalidInput
from kvstored.mooncake.settings import address
from kvstored.vllm.handoff.configuration import HandoffSettings, Sizes, is_unspecified

_LAST_PORT = 65_535

logger = logging.getLogger("vllm.kvstored")


@dataclass(frozen=True)
class Place:
    """One data-parallel rank of an instance, which is an engine of its own."""

    engine_id: str
    """Differs between engines, and from one start to the next unless it is configured."""
    host: str
    """Where peers reach its workers."""
    base_port: int
    """Of its first worker."""
    pp_size: int
    tp_size: int

    def rank_port(self, pp_rank: int, tp_rank: int) -> int:
        """The port of a worker."""
        return self.base_port + pp_rank * self.tp_size + tp_rank

    def addresses(self) -> list[str]:
        """Where its workers are reached, by `pp_rank * tp_size + tp_rank`."""
        return [address(self.host, self.base_port + rank) for rank in range(self.pp_size * self.tp_size)]


def own_place(vllm_config: Any, settings: HandoffSettings, own_host: str) -> Place:
    """The place of this engine.

    Raises:
        InvalidInput: when the settings contradict vLLM's own, or a port is none.
    """
    parallel = vllm_config.parallel_config
    transfer = vllm_config.kv_transfer_config
    pp_size, tp_size = parallel.pipeline_parallel_size, parallel.tensor_parallel_size
    if getattr(parallel, "nnodes_within_dp", 1) != 1:
        raise InvalidInput("an engine whose workers are on several nodes is not supported: all need the same address")
    if transfer.is_kv_producer:
        _check("prefill", settings.prefill, parallel)
    if transfer.is_kv_consumer:
        _check("decode", settings.decode, parallel)
    # where data-parallel ranks are engines of their own, vLLM resets the rank and keeps the index
    dp_rank = getattr(parallel, "data_parallel_index", parallel.data_parallel_rank)
    base_port = transfer.kv_port + dp_rank * tp_size * pp_size
    if transfer.kv_port < 1 or base_port + tp_size * pp_size - 1 > _LAST_PORT:
        raise InvalidInput(
            f"kv_port = {transfer.kv_port}: data-parallel rank {dp_rank} has no {tp_size * pp_size} ports"
        )
    host = own_host if is_unspecified(settings.listen_host) else settings.listen_host
    return Place(_engine_id(transfer.engine_id, dp_rank), host, base_port, pp_size, tp_size)


def _engine_id(configured: str, dp_rank: int) -> str:
    """Tells data-parallel ranks apart, as vLLM does itself in most ways of starting them."""
    suffix = f"_dp{dp_rank}"
    return configured if not dp_rank or configured.endswith(suffix) else configured + suffix


def _check(role: str, sizes: Sizes, parallel: Any) -> None:
    for name, size, own in (
        ("tp_size", sizes.tp_size, parallel.tensor_parallel_size),
        ("pp_size", sizes.pp_size, parallel.pipeline_parallel_size),
    ):
        if size is not None and size != own:
            raise InvalidInput(f"{role}.{name} = {size}, but this {role} instance has {own}")
    index = getattr(parallel, "data_parallel_index", 0)
    if sizes.dp_size is not None and index >= sizes.dp_size:
        logger.warning("kvstored: %s.dp_size = %d, but this is data-parallel rank %d", role, sizes.dp_size, index)
