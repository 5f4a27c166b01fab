"""Pages of SGLang's host pools: where their bytes lie, and what they mean."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from kvstored import Identity, InvalidInput, Layout, Namespace, Store
from kvstored.weights import files_digest, model_folder

if TYPE_CHECKING:
    import torch
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig

logger = logging.getLogger("kvstored.sglang")

KV_POOL = "kv"
_RANK_SHARDED_POOLS = frozenset({"mamba"})


def page_identity(
    config: HiCacheStorageConfig, pool: Any, name: str, *, tenant: str, cache_salt: str, weights_digest: str
) -> Identity:
    """The identity of a pool's pages.

    MLA's pages are the same on every tensor-parallel rank and are shared by all; others belong to their rank. What has
    no field of its own (pool, memory layout, context parallelism) goes into the dtype as a digest.
    """
    replicated = config.is_mla_model and name not in _RANK_SHARDED_POOLS
    dcp_size = getattr(config, "dcp_size", 1)
    facts = {
        "engine": "sglang",
        "pool": name,
        "memory_layout": str(getattr(pool, "layout", "")),
        "format": str(getattr(pool, "storage_format_tag", None) or ""),
        "layers": [getattr(pool, "start_layer", None), getattr(pool, "end_layer", None)],
        "context_parallel": [config.attn_cp_rank, config.attn_cp_size],
        "decode_context_parallel": [getattr(config, "dcp_rank", 0), dcp_size],
        "tensor_parallel_of_shards": config.tp_size if dcp_size > 1 else None,
        "rank_replicated": replicated,
    }
    fingerprint = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()
    return Identity(
        tenant=tenant,
        model=config.model_name or "",
        weights_digest=weights_digest,
        dtype=f"{str(getattr(pool, 'dtype', '')).removeprefix('torch.')} sglang-{name} {fingerprint}",
        layout_version=1,
        block_tokens=int(getattr(pool, "page_size", 1) or 1),
        tensor_parallel_size=1 if replicated else config.tp_size,
        tensor_parallel_rank=0 if replicated else config.tp_rank,
        pipeline_parallel_size=config.pp_size,
        pipeline_parallel_rank=config.pp_rank,
        cache_salt=cache_salt,
    )


def weights_digest_of(model: str | None) -> str:
    """The digest of a model's files; empty, with a warning, where they can't be read: its name stands for them then."""
    try:
        folder = model_folder(model) if model else None
        if folder is not None:
            return files_digest(folder)
        reason = "they are not on this machine"
    except OSError as error:
        reason = str(error)
    logger.warning("no digest of the weights of model %r (%s); give weights_digest to tell them apart", model, reason)
    return ""


class PagePool:
    """A host pool whose pages move in place, and the namespace of those pages."""

    def __init__(self, store: Store, identity: Identity, pool: Any) -> None:
        """Learns a page's layout from the pool's first page. Raises InvalidInput when pages have no addresses."""
        import torch

        self._pool = pool
        self._page_tokens = int(getattr(pool, "page_size", 1) or 1)
        _, sizes = self._meta(torch.arange(self._page_tokens, dtype=torch.int64))
        self._sizes = [int(size) for size in sizes]
        self.namespace: Namespace = store.open_namespace(identity, Layout(shards=(tuple(self._sizes),)))

    def addresses(self, host_indices: torch.Tensor, pages: int) -> np.ndarray:
        """Addresses of the pages that these token slots make, a row for each. Raises InvalidInput."""
        if len(host_indices) != pages * self._page_tokens:
            raise InvalidInput(f"{len(host_indices)} slots don't make {pages} pages of {self._page_tokens} tokens")
        pointers, sizes = self._meta(host_indices)
        if len(pointers) != pages * len(self._sizes) or list(map(int, sizes)) != self._sizes * pages:
            raise InvalidInput("the pool's pages don't have the layout that its first page had")
        return np.array(pointers, dtype=np.uint64).reshape(pages, len(self._sizes))

    def _meta(self, indices: torch.Tensor) -> tuple[list[int], list[int]]:
        meta = self._pool.get_page_buffer_meta(indices)
        if not meta or not meta[0]:
            raise InvalidInput(f"pool {type(self._pool).__name__} has no addresses of pages to give")
        return meta


def flat_page_bytes(pool: Any) -> int:
    """Bytes of a page in the flat form of SGLang's generic interface."""
    page = pool.get_dummy_flat_data_page()
    return page.numel() * page.element_size()
