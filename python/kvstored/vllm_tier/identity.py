"""What makes the bytes of a chunk meaningful, from vLLM's offloading configuration."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from kvstored import Identity
from kvstored.vllm.identity import weights_digest as digest_of

if TYPE_CHECKING:
    from vllm.v1.kv_offload.config import OffloadingConfig


def chunk_identities(
    config: OffloadingConfig,
    *,
    tenant: str = "",
    cache_salt: str = "",
    weights_digest: str | None = None,
) -> dict[int, Identity]:
    """One identity for each KV cache group, by the group index that ends an offload key.

    A chunk's row holds the pages of every worker, so the parallel shape is that of all ranks, with rank 0. What has no
    field of its own (groups and layers, chunk size, context parallelism, page layout, instruction set) goes into the
    dtype as a digest. The weights' digest is read from the model's folder unless given; LoRA, multimodal inputs and a
    request's salt are in vLLM's block hashes already.
    """
    digest = digest_of(config.model.name) if weights_digest is None else weights_digest
    facts = _facts(config)
    identities = {}
    for group in config.groups:
        description = json.dumps({**facts, "group": group.group_id}, sort_keys=True)
        fingerprint = hashlib.blake2b(description.encode(), digest_size=16).hexdigest()
        identities[group.group_id] = Identity(
            tenant=tenant,
            model=config.model.name,
            weights_digest=digest,
            dtype=f"{config.model.dtype} vllm-chunk {fingerprint}",
            layout_version=1,
            block_tokens=group.tokens_per_block * config.cache.blocks_per_chunk,
            tensor_parallel_size=config.parallel.tp_size,
            pipeline_parallel_size=config.parallel.pp_size,
            cache_salt=cache_salt,
        )
    return identities


def _facts(config: OffloadingConfig) -> dict[str, object]:
    parallel = config.parallel
    return {
        "engine": "vllm",
        "groups": [[g.group_id, g.tokens_per_block, list(g.layer_names)] for g in config.groups],
        "worker_bytes_per_block": config.worker_kv_bytes_per_block,
        "tokens_per_hash": config.cache.tokens_per_hash,
        "blocks_per_chunk": config.cache.blocks_per_chunk,
        "world_size": parallel.world_size,
        "prefill_context_parallel_size": parallel.pcp_size,
        "decode_context_parallel_size": parallel.dcp_size,
        "replicated_layout": config.replicated_layout,
        "canonical_layout": config.canonical_layout,
        "page_layout": config.kv_cache_layout,
        "instruction_set": instruction_set(),
    }


def instruction_set() -> str:
    """The instruction set that decides how pages are laid out inside, on the CPU platform; empty on others."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return ""
    import platform

    import torch

    # AMX keeps bfloat16 pages in another order than the vector units do
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}{' AMX' if has_tiles else ''}"
