"""How a worker's part of the KV cache is laid out, so that workers of other tensor-parallel sizes find their heads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvstored import InvalidInput
from kvstored.vllm.geometry import BlockAddresses
from kvstored.vllm.identity import base_identity, block_tokens, kv_format

Piece = tuple[int, int, int, int, int, int]
"""Address, bytes in all, bytes from a block to the next, bytes of a block, rows in a block, heads in a row."""

_VERSION = 1


@dataclass(frozen=True)
class Heads:
    """Which of the model's KV heads a worker has."""

    total: int
    first: int
    count: int


@dataclass(frozen=True)
class Shape:
    """A worker's part of the KV cache."""

    layers: list[tuple[str, list[Piece]]]
    heads: Heads
    block_tokens: int
    fingerprint: bytes
    """Equal where bytes mean the same."""


def read_shape(vllm_config: Any, kv_cache_config: Any, kv_caches: Mapping[str, Any], tp_rank: int) -> Shape:
    """That of a worker, of its registered tensors.

    Raises:
        InvalidInput: when they aren't in host memory or not in one piece for each block and layer.
    """
    addresses = BlockAddresses(kv_caches, kv_cache_config)
    require_host_memory(addresses)
    heads = own_heads(vllm_config, kv_cache_config, tp_rank)
    layers: list[tuple[str, list[Piece]]] = []
    divisible = True
    for name, pieces in zip(addresses.layer_names, addresses.pieces, strict=True):
        told: list[Piece] = []
        for piece in pieces:
            rows = head_rows(piece.tensor, addresses.blocks, heads.count)
            divisible = divisible and rows is not None
            length = (addresses.blocks - 1) * piece.stride + piece.nbytes
            told.append((piece.address, length, piece.stride, piece.nbytes, rows or 1, heads.count))
        layers.append((name, told))
    # heads that can't be told apart go only to workers that have the same ones
    apart = 0 if divisible else vllm_config.parallel_config.tensor_parallel_size
    return Shape(
        layers,
        heads,
        block_tokens(kv_cache_config),
        fingerprint(vllm_config, kv_cache_config, apart),
    )


def require_host_memory(addresses: BlockAddresses) -> None:
    """Refuses KV on a device.

    Raises:
        InvalidInput: naming a layer and its device.
    """
    for name, pieces in zip(addresses.layer_names, addresses.pieces, strict=True):
        for piece in pieces:
            if piece.tensor.device.type != "cpu":
                raise InvalidInput(
                    f"layer {name}: KV lies on device {piece.tensor.device}, and the hand-off moves host memory only"
                )


def own_heads(vllm_config: Any, kv_cache_config: Any, tp_rank: int) -> Heads:
    """Which of the model's KV heads a tensor-parallel rank has. A latent that heads share is one head."""
    if vllm_config.model_config.use_mla:
        return Heads(1, 0, 1)
    total = int(vllm_config.model_config.get_total_num_kv_heads())
    tp_size = vllm_config.parallel_config.tensor_parallel_size
    count = max(1, total // tp_size)
    # where there are more ranks than heads, neighbours have the same
    same = max(1, tp_size // total)
    return Heads(total, tp_rank // same * count, count)


def head_rows(tensor: Any, blocks: int, heads: int) -> int | None:
    """Rows of a block in each of which the heads follow one another: 1 where heads are outermost, the block's tokens
    where tokens are. None where a head's bytes in a row aren't contiguous, or there is no axis of heads.

    vLLM's axes of a layer are blocks (or parts of blocks), heads, tokens and content, in any order in memory.
    """
    if tensor.dim() < 4:
        return 1 if heads == 1 else None
    if tensor.shape[1] != heads:
        return None
    one = tensor[: tensor.shape[0] // blocks]
    steps = [(step, size) for axis, (step, size) in enumerate(zip(one.stride(), one.shape, strict=True)) if axis != 1]
    own = one.stride(1)
    inner = [(step, size) for step, size in steps if step < own]
    rows = 1
    for step, size in steps:
        if step >= own:
            rows *= size
    expected = 1
    for step, size in sorted(inner):
        if size > 1 and step != expected:
            return None
        expected *= size
    if heads > 1 and own != expected:
        return None
    return rows


def fingerprint(vllm_config: Any, kv_cache_config: Any, apart: int) -> bytes:
    """What two instances must agree on besides tensor- and pipeline-parallel sizes: the weights with the model's
    configuration, the bytes' format, the block size. `apart`: a tensor-parallel size that must be the same too.
    """
    identity = base_identity(vllm_config, kv_cache_config)
    # how many ranks have the same heads follows from the size, and is told by the heads
    parts = [part for part in kv_format(vllm_config, kv_cache_config).split(";") if not part.startswith("replicas=")]
    digest = hashlib.blake2b(digest_size=32, person=b"kvstored handoff")
    for value in (_VERSION, identity.weights_digest, ";".join(parts), identity.block_tokens, apart):
        text = str(value).encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.digest()
