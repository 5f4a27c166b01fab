"""Which KV bytes may stand for which: the identity that blocks of a vLLM instance are stored under."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvstored import Identity
from kvstored.vllm.metadata import Variant
from kvstored.weights import files_digest, model_folder

LAYOUT_VERSION = 1
"""Raised whenever this connector changes what it stores of a block."""
_TEXT_LIMIT = 1000

logger = logging.getLogger("vllm.kvstored")


def base_identity(vllm_config: Any, kv_cache_config: Any, *, tenant: str = "", weights_digest: str = "") -> Identity:
    """The identity of rank (0, 0) without adapter and salt; see [`with_rank`] and [`with_variant`].

    Args:
        vllm_config: vLLM's configuration.
        kv_cache_config: vLLM's KV cache configuration (the layout it resolved counts).
        tenant: whose quota the blocks count against.
        weights_digest: given by the user; computed from the model's files where empty.
    """
    model = vllm_config.model_config
    parallel = vllm_config.parallel_config
    name = f"{model.model}@{model.revision}" if model.revision else str(model.model)
    return Identity(
        tenant=tenant,
        model=_fitting(name if not Path(model.model).is_dir() else Path(model.model).name),
        weights_digest=_fitting(_weights(vllm_config, weights_digest)),
        dtype=_fitting(kv_format(vllm_config, kv_cache_config)),
        layout_version=LAYOUT_VERSION,
        block_tokens=block_tokens(kv_cache_config),
        tensor_parallel_size=parallel.tensor_parallel_size,
        pipeline_parallel_size=parallel.pipeline_parallel_size,
    )


def block_tokens(kv_cache_config: Any) -> int:
    """Tokens in a block of the engine's KV cache."""
    return int(kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size)


def with_rank(identity: Identity, pipeline_rank: int, tensor_rank: int) -> Identity:
    """The identity of one rank's part of the blocks."""
    return dataclasses.replace(identity, pipeline_parallel_rank=pipeline_rank, tensor_parallel_rank=tensor_rank)


def with_variant(identity: Identity, variant: Variant) -> Identity:
    """The identity of blocks computed with an adapter, under a salt, in an epoch of the weights."""
    digest = identity.weights_digest
    if variant.weights_epoch:
        digest = _fitting(f"{digest};epoch={variant.weights_epoch}")
    return dataclasses.replace(
        identity, lora=_fitting(variant.lora), cache_salt=_fitting(variant.cache_salt), weights_digest=digest
    )


def kv_format(vllm_config: Any, kv_cache_config: Any) -> str:
    """How the bytes of a KV page are to be read: element type, device, what fixes the inner order, vLLM's layout."""
    spec = kv_cache_config.kv_cache_groups[0].kv_cache_spec
    element = str(getattr(spec, "dtype", vllm_config.model_config.dtype)).removeprefix("torch.")
    parts = [
        f"kv={element}",
        f"cache_dtype={vllm_config.cache_config.cache_dtype}",
        f"model_dtype={str(vllm_config.model_config.dtype).removeprefix('torch.')}",
        f"spec={type(spec).__name__}",
        f"layout={getattr(kv_cache_config, 'kv_cache_layout', None)}",
        f"replicas={replicas(kv_cache_config)}",
        *_device_format(vllm_config, spec),
    ]
    return ";".join(parts)


def replicas(kv_cache_config: Any) -> int:
    """How many consecutive tensor-parallel ranks hold the same KV (multi-head latent attention, few KV heads)."""
    return max(1, int(getattr(kv_cache_config, "kv_tp_replicas", 1) or 1))


def lora_name(lora_request: Any) -> str:
    """Name and digest of a request's adapter; empty for none."""
    if lora_request is None:
        return ""
    return f"{lora_request.lora_name}:{_lora_digest(lora_request.lora_path)}"


@functools.lru_cache(maxsize=1024)
def _lora_digest(path: str) -> str:
    folder = model_folder(path) if path else None
    try:
        return files_digest(folder) if folder else path
    except OSError as error:
        logger.warning("kvstored: adapter %s can't be read for its digest (%s); its path stands for it", path, error)
        return path


def _weights(vllm_config: Any, given: str) -> str:
    """What identifies the weights, with everything of the model's configuration that changes what they compute."""
    model = vllm_config.model_config
    settings = hashlib.blake2b(digest_size=16)
    for value in (
        _try(lambda: model.hf_config.to_json_string(use_diff=False)),
        str(getattr(model, "quantization", None)),
        str(getattr(model, "hf_overrides", None)),
    ):
        settings.update(f"{len(value)}:{value}".encode())
    return (
        f"{given or weights_digest(str(model.model), model.revision, _load_format(vllm_config))};{settings.hexdigest()}"
    )


@functools.lru_cache(maxsize=16)
def weights_digest(model: str, revision: str | None = None, load_format: str = "auto") -> str:
    """Digest of a model's weights as they lie on this machine; its name and revision where they don't."""
    if load_format == "dummy":
        return "dummy"
    folder = model_folder(model, revision)
    if folder is None:
        logger.warning("kvstored: no files of model %s on this machine; its name and revision stand for them", model)
        return f"name:{model}@{revision}"
    try:
        return files_digest(folder)
    except OSError as error:
        logger.warning("kvstored: %s can't be read for a digest (%s); name and revision stand for it", folder, error)
        return f"name:{model}@{revision}"


def _load_format(vllm_config: Any) -> str:
    chosen = getattr(getattr(vllm_config, "load_config", None), "load_format", "auto")
    return str(getattr(chosen, "value", chosen))


def _device_format(vllm_config: Any, spec: Any) -> list[str]:
    from vllm.platforms import current_platform

    kind = current_platform.device_type
    parts = [f"device={kind}"]
    if kind == "cpu":
        # the CPU's attention kernels keep keys in an order of their own, which the instruction set decides
        parts.append(f"isa={_cpu_isa(vllm_config, spec)}")
    return parts


def _cpu_isa(vllm_config: Any, spec: Any) -> str:
    import torch

    capability = _try(lambda: str(torch.backends.cpu.get_cpu_capability()))

    def chosen() -> str:
        from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

        return str(
            _get_attn_isa(
                vllm_config.model_config.dtype, spec.block_size, spec.head_size, vllm_config.cache_config.cache_dtype
            )
        )

    return _try(chosen) or capability


def _try(make: Callable[[], str]) -> str:
    try:
        return make()
    except Exception:  # a part that this version of vLLM doesn't have says nothing
        return ""


def _fitting(text: str) -> str:
    """The text, or where it's too long for an identity, its start and its digest."""
    if len(text.encode()) <= _TEXT_LIMIT:
        return text
    return f"{text[:200]}#{hashlib.blake2b(text.encode(), digest_size=20).hexdigest()}"
