"""vLLM's native offloading on the CPU platform, for which vLLM itself has no worker.

Scheduler, primary tier and secondary tiers are vLLM's own; only the copies between the engine's blocks and the primary
tier's rows are made here, at once and in the worker's thread: the blocks are host memory, so there is nothing to wait
for. Used with `"spec_name": "CpuTieringSpec", "spec_module_path": "cpu_offloading"` and this folder on the path.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from vllm.v1.kv_offload.base import CanonicalKVCaches, GPULoadStoreSpec, OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec


class HostCopies(OffloadingWorker):
    """Copies pages between the engine's blocks and the rows of the shared region."""

    def __init__(self, caches: CanonicalKVCaches, region: SharedOffloadRegion, blocks_per_chunk: int) -> None:
        self._region = region
        self._blocks_per_chunk = blocks_per_chunk
        self._groups = caches.group_data_refs
        self._blocks = [cache.tensor for cache in caches.tensors]
        self._rows = [region.create_next_worker_view(c.page_size_bytes * blocks_per_chunk) for c in caches.tensors]
        self._results: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: CPULoadStoreSpec) -> bool:
        return self._run(job_id, src_spec, dst_spec, to_host=True)

    def submit_load(self, job_id: int, src_spec: CPULoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        return self._run(job_id, dst_spec, src_spec, to_host=False)

    def get_finished(self) -> list[TransferResult]:
        results, self._results = self._results, []
        return results

    def wait(self, job_ids: set[int]) -> None:
        pass

    def shutdown(self) -> None:
        self._rows.clear()
        self._region.cleanup()

    def _run(self, job_id: int, blocks: GPULoadStoreSpec, chunks: CPULoadStoreSpec, *, to_host: bool) -> bool:
        started, copied = time.perf_counter(), 0
        for page, part in self._pairs(blocks, chunks):
            source, target = (page, part) if to_host else (part, page)
            target.copy_(source)
            copied += page.numel()
        self._results.append(TransferResult(job_id, True, copied, time.perf_counter() - started))
        return True

    def _pairs(self, blocks: GPULoadStoreSpec, chunks: CPULoadStoreSpec) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Each page with the part of a row that stands for it. A group's first block may lie within a chunk."""
        block_ids, chunk_ids = iter(blocks.block_ids.tolist()), iter(chunks.chunk_ids.tolist())
        for group, (count, first) in enumerate(zip(blocks.group_sizes, blocks.block_indices, strict=True)):
            chunk = None
            for index in range(first, first + count):
                place = index % self._blocks_per_chunk
                if chunk is None or place == 0:
                    chunk = next(chunk_ids)
                block = next(block_ids)
                for reference in self._groups[group]:
                    page = self._blocks[reference.tensor_idx][block]
                    row = self._rows[reference.tensor_idx][chunk]
                    yield page, row[place * page.numel() : (place + 1) * page.numel()]


class CpuTieringSpec(TieringOffloadingSpec):
    """vLLM's tiered offloading with copies in host memory."""

    def get_worker(self, kv_caches: Any) -> OffloadingWorker:
        if self._worker is None:
            region = SharedOffloadRegion(
                engine_id=self._engine_id,
                num_chunks=self.num_chunks,
                rank=self.config.parallel.rank,
                kv_bytes_per_chunk=self.kv_bytes_per_chunk,
                cpu_page_size=self.cpu_page_size_per_worker,
            )
            self._worker = HostCopies(kv_caches, region, self.blocks_per_chunk)
        return self._worker
