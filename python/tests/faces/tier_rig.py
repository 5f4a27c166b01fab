"""vLLM's tiering manager with our tier below it, without an engine: keys and rows made by hand."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cpu_offloading import CpuTieringSpec
from vllm.v1.kv_offload.base import OffloadKey, ReqContext, ScheduleEndContext, make_offload_key
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.tiering.base import JobResult, TransferJob
from vllm.v1.kv_offload.tiering.manager import TieringOffloadingManager

from kvstored.vllm_tier import KvstoredTier

PAGE_BYTES = 8192
NO_STEP = ScheduleEndContext(new_req_ids=(), preempted_req_ids=())


def configuration(folder: Path, *, rows: int = 32, world_size: int = 1, **tier: Any) -> OffloadingConfig:
    """Two KV cache groups, a chunk a block, and an embedded store below."""
    store = {
        "pipeline": "Cache|Posix",
        "storage_backends": str(folder / "store"),
        "cache_buffer_capacity": "32MiB",
        "posix_capacity": "256MiB",
        "posix_segment_bytes": "64MiB",
    }
    if "socket" in tier:
        store = {}
    # no multiple of the system's page, so that rows end with padding
    page_bytes = PAGE_BYTES - 512
    return OffloadingConfig(
        groups=tuple(
            OffloadingGroupConfig(tokens_per_block=128, layer_names=(f"layer.{group}",), group_id=group)
            for group in range(2)
        ),
        worker_kv_bytes_per_block=page_bytes,
        enable_kv_cache_events=True,
        extra_config={
            "cpu_bytes_to_use": rows * -(-page_bytes * world_size // 4096) * 4096,
            "secondary_tiers": [
                {
                    "type": "KvstoredTier",
                    "module_path": "kvstored.vllm_tier",
                    "weights_digest": "w",
                    "enable_kv_events": True,
                    **store,
                    **tier,
                }
            ],
        },
        engine_id=str(uuid.uuid4()),
        model=OffloadingModelConfig(name="m", dtype="float32"),
        cache=OffloadingCacheConfig(tokens_per_hash=128, blocks_per_chunk=1),
        parallel=OffloadingParallelConfig(
            rank=0,
            world_size=world_size,
            tp_size=world_size,
            pp_size=1,
            pcp_size=1,
            dcp_size=1,
            data_parallel_index=0,
            data_parallel_size=1,
            data_parallel_rank_local=None,
            is_parallelism_agnostic=False,
        ),
    )


def keys(count: int, group: int = 0, seed: int = 0) -> list[OffloadKey]:
    """Offload keys of a group."""
    source = np.random.default_rng(seed)
    return [make_offload_key(source.bytes(32), group) for _ in range(count)]


class Rig:
    """A manager and its tier. Jobs are numbered from 1000 so that the manager's own never meet them."""

    def __init__(self, config: OffloadingConfig) -> None:
        manager = CpuTieringSpec(config).get_manager()
        assert isinstance(manager, TieringOffloadingManager)
        self.manager = manager
        tier = manager.secondary_tiers[0]
        assert isinstance(tier, KvstoredTier)
        self.tier = tier
        # an array made from the view would keep vLLM from unmapping it
        self._view = manager.primary_tier.get_kv_memoryview()
        self._jobs = 1000

    def row(self, chunk: int) -> memoryview:
        """What the row holds, but for its padding."""
        return memoryview(self._view.cast("B"))[chunk * self.tier.block_size_bytes :][: PAGE_BYTES - 512]

    def fill(self, chunk: int, seed: int) -> bytes:
        """Puts bytes into a row, and returns them."""
        content = np.random.default_rng(seed).bytes(PAGE_BYTES - 512)
        with self.row(chunk) as row:
            row[:] = content
        return content

    def read(self, chunk: int) -> bytes:
        """The bytes in a row."""
        with self.row(chunk) as row:
            return bytes(row)

    def store(self, job_keys: Sequence[OffloadKey], chunks: Sequence[int]) -> JobResult:
        """Stores rows and waits."""
        self.tier.submit_store(self._job(job_keys, chunks, False))
        return self.finished()[0]

    def load(self, job_keys: Sequence[OffloadKey], chunks: Sequence[int]) -> JobResult:
        """Loads rows and waits."""
        self.tier.submit_load(self._job(job_keys, chunks, True))
        return self.finished()[0]

    def finished(self) -> list[JobResult]:
        """Waits for every job, as `reset_cache` does, and collects."""
        self.tier.drain_jobs()
        return list(self.tier.get_finished_jobs())

    def close(self) -> None:
        """Ends as vLLM does."""
        self.manager.shutdown()

    def _job(self, job_keys: Sequence[OffloadKey], chunks: Sequence[int], is_promotion: bool) -> TransferJob:
        self._jobs += 1
        return TransferJob(
            self._jobs, list(job_keys), np.array(chunks, dtype=np.int32), is_promotion, request("store", job_keys)
        )


def request(name: str, request_keys: Sequence[OffloadKey] = ()) -> ReqContext:
    """A request's context, with the positions that vLLM's scheduler notes."""
    context = ReqContext(name)
    for place, key in enumerate(request_keys):
        context.set_offload_key_position(key, (place + 1) * 128)
    return context


def with_dtype(config: OffloadingConfig, dtype: str) -> OffloadingConfig:
    """The same with another KV dtype."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype))
