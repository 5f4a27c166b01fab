"""Where the parts of a block lie in the engine's KV cache, and how they are laid out in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvstored import InvalidInput, Layout
from kvstored.vllm.identity import replicas

_ATTENTION = ("FullAttentionSpec", "MLAAttentionSpec")


def check_supported(vllm_config: Any, kv_cache_config: Any) -> None:
    """Refuses models and settings whose KV this connector can't keep.

    Raises:
        InvalidInput: saying what isn't supported and what to change.
    """
    groups = kv_cache_config.kv_cache_groups
    names = [type(spec).__name__ for group in groups for spec in _specs(group.kv_cache_spec)]
    if len(groups) != 1:
        raise InvalidInput(
            f"hybrid models are not supported: the KV cache has {len(groups)} groups ({', '.join(names)}); "
            "run this model without the connector, or try --disable-hybrid-kv-cache-manager"
        )
    for name in names:
        if name not in _ATTENTION:
            raise InvalidInput(
                f"KV of kind {name} is not supported, only {' and '.join(_ATTENTION)}: its blocks don't stay as they "
                "were computed"
            )
    if "MLAAttentionSpec" in names and _is_cpu():
        raise InvalidInput(
            "multi-head latent attention on a CPU is not supported: vLLM's kernel there computes a prompt right only "
            "in one piece, so nothing can be loaded in front of it"
        )
    parallel = vllm_config.parallel_config
    for field in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        size = getattr(parallel, field, 1)
        if size != 1:
            raise InvalidInput(f"{field} = {size}: context parallelism is not supported")
    hash_tokens = getattr(kv_cache_config, "hash_block_size", None)
    block = groups[0].kv_cache_spec.block_size
    if hash_tokens and block % hash_tokens:
        raise InvalidInput(f"blocks of {block} tokens are no multiple of the hash block size {hash_tokens}")


def hashes_per_block(kv_cache_config: Any) -> int:
    """How many of the engine's block hashes cover one block of the KV cache; the last of them names the block."""
    hash_tokens = getattr(kv_cache_config, "hash_block_size", None)
    block = kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
    return block // hash_tokens if hash_tokens else 1


def rank_layouts(vllm_config: Any, kv_cache_config: Any) -> list[Layout]:
    """The layout of a block on each pipeline rank: one shard per layer, with one tensor of a page's bytes.

    Known without the tensors, so that the scheduler and every worker come to the same.
    """
    group = kv_cache_config.kv_cache_groups[0]
    stages = vllm_config.parallel_config.pipeline_parallel_size
    if stages == 1:
        return [Layout(shards=tuple((page,) for page in page_bytes(group, group.layer_names)))]
    from vllm.distributed.utils import get_pp_indices

    layers = vllm_config.model_config.hf_text_config.num_hidden_layers
    page = page_bytes(group, group.layer_names[:1])[0]
    layouts = []
    for rank in range(stages):
        first, last = get_pp_indices(layers, rank, stages)
        layouts.append(Layout(shards=((page,),) * (last - first)))
    return layouts


def page_bytes(group: Any, layer_names: Sequence[str]) -> list[int]:
    """Bytes of one block in each layer."""
    each = getattr(group.kv_cache_spec, "kv_cache_specs", None)
    return [int((each[name] if each else group.kv_cache_spec).page_size_bytes) for name in layer_names]


def storing_rank(kv_cache_config: Any, tensor_rank: int) -> int:
    """The tensor-parallel rank under whose name this rank's KV is stored: the first of those that hold the same."""
    same = replicas(kv_cache_config)
    return tensor_rank // same * same


@dataclass(frozen=True)
class PagePiece:
    """A part of a layer's pages that lies in one piece for each block."""

    tensor: Any
    address: int
    """Of block 0's."""
    stride: int
    """Bytes from one block's to the next one's."""
    nbytes: int
    """Bytes of each."""


class BlockAddresses:
    """Addresses of the pages of blocks, layer by layer; of the pieces where a layer has several tensors."""

    def __init__(self, kv_caches: Mapping[str, Any], kv_cache_config: Any) -> None:
        """Takes the engine's KV tensors.

        Raises:
            InvalidInput: when a layer's part of a block isn't one contiguous piece of each of its tensors.
        """
        group = kv_cache_config.kv_cache_groups[0]
        self.layer_names = [name for name in group.layer_names if name in kv_caches]
        missing = [name for name in group.layer_names if name not in kv_caches]
        if missing:
            raise InvalidInput(f"the engine registered no KV tensor for layer {missing[0]}")
        self.index = {name: index for index, name in enumerate(self.layer_names)}
        self.page_bytes = page_bytes(group, self.layer_names)
        self.blocks = int(kv_cache_config.num_blocks)
        self.pieces: list[list[PagePiece]] = [
            _pieces(name, kv_caches[name], self.blocks, page)
            for name, page in zip(self.layer_names, self.page_bytes, strict=True)
        ]
        """Of each layer, in the order that they are stored in."""
        flat = [piece for layer in self.pieces for piece in layer]
        self._bases = np.array([piece.address for piece in flat], dtype=np.uint64)
        self._strides = np.array([piece.stride for piece in flat], dtype=np.uint64)
        self._starts = np.cumsum([0, *(len(layer) for layer in self.pieces)]).tolist()

    @property
    def layout(self) -> Layout:
        """The layout that fits these addresses."""
        return Layout(shards=tuple((page,) for page in self.page_bytes))

    def of(self, block_ids: Sequence[int]) -> np.ndarray:
        """Addresses, an array of blocks by pieces of all layers."""
        ids = np.asarray(block_ids, dtype=np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= self.blocks):
            raise InvalidInput(f"a block id is outside the engine's {self.blocks} blocks")
        return self._bases[None, :] + ids.astype(np.uint64)[:, None] * self._strides[None, :]

    def of_layer(self, block_ids: Sequence[int], layer: int) -> np.ndarray:
        """Addresses of one layer's pieces of each block."""
        return np.ascontiguousarray(self.of(block_ids)[:, self._starts[layer] : self._starts[layer + 1]])

    def piece_bytes(self, layer: int | None = None) -> list[int]:
        """Bytes of the pieces of a block's part in one layer, or in all."""
        layers = self.pieces if layer is None else [self.pieces[layer]]
        return [piece.nbytes for pieces in layers for piece in pieces]


def _is_cpu() -> bool:
    from vllm.platforms import current_platform

    return current_platform.device_type == "cpu"


def _specs(spec: Any) -> list[Any]:
    each = getattr(spec, "kv_cache_specs", None)
    return list(each.values()) if each else [spec]


def _pieces(name: str, cache: Any, blocks: int, page: int) -> list[PagePiece]:
    """Where a layer's pages lie: in one tensor, or in one each for keys and values."""
    tensors = [cache] if hasattr(cache, "data_ptr") else cache
    if not isinstance(tensors, (list, tuple)) or not all(hasattr(tensor, "data_ptr") for tensor in tensors):
        raise InvalidInput(f"layer {name}: KV of type {type(cache).__name__} is not supported, only tensors")
    pieces = [_piece(name, tensor, blocks) for tensor in tensors]
    if sum(piece.nbytes for piece in pieces) != page:
        raise InvalidInput(
            f"layer {name}: a block of KV of shape {' and '.join(str(tuple(tensor.shape)) for tensor in tensors)} has "
            f"{' and '.join(str(piece.nbytes) for piece in pieces)} bytes, not the {page} of a page"
        )
    return pieces


def _piece(name: str, tensor: Any, blocks: int) -> PagePiece:
    if tensor.shape[0] % blocks:
        raise InvalidInput(f"layer {name}: KV of shape {tuple(tensor.shape)} doesn't begin with {blocks} blocks")
    per_block = tensor.shape[0] // blocks
    one = tensor[:per_block]
    if not _is_dense(one):
        raise InvalidInput(
            f"layer {name}: a block of KV of shape {tuple(tensor.shape)} and strides {tensor.stride()} is not "
            "contiguous"
        )
    stride = tensor.stride(0) * per_block * tensor.element_size()
    return PagePiece(tensor, tensor.data_ptr(), stride, one.numel() * one.element_size())


def _is_dense(tensor: Any) -> bool:
    """Whether the elements fill one range of memory, in whatever order."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return last + 1 == tensor.numel()
