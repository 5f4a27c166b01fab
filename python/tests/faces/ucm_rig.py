"""Blocks, configurations and stores for the tests of UCM's face."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kvstored.ucm import UcmPipelineStore

LAYERS, TENSORS, TENSOR_BYTES = 7, 2, 4096
SHARD_BYTES = TENSORS * TENSOR_BYTES
Maker = Callable[..., UcmPipelineStore]


def configuration(folder: Path, *, layers: int = LAYERS, **config: Any) -> dict[str, Any]:
    """What UCM hands to a worker's store: the file's keys, and those that it works out."""
    return {
        "store_pipeline": "Cache|Posix",
        "storage_backends": [str(folder / "store")],
        "cache_buffer_capacity": "64MiB",
        "posix_capacity": "256MiB",
        "posix_segment_bytes": "64MiB",
        "unique_id": "engine-1",
        "tensor_layout": "gqa",
        "device_id": 0,
        "local_rank_size": 1,
        "share_buffer_enable": False,
        "posix_gc_enable": False,
        "timeout_ms": 5000,
        "tensor_size_list": [TENSOR_BYTES] * TENSORS,
        "shard_size": SHARD_BYTES,
        "block_size": layers * SHARD_BYTES,
        **config,
    }


def create(config: dict[str, Any]) -> UcmPipelineStore:
    try:
        from ucm.store.factory_v1 import UcmConnectorFactoryV1
    except ImportError:
        return UcmPipelineStore(config)
    return UcmConnectorFactoryV1.create_connector("UcmPipelineStore", config, "kvstored.ucm")


class Memory:
    """Blocks in host memory, layer by layer, and their addresses."""

    def __init__(self, blocks: int, layers: int = LAYERS, seed: int = 0) -> None:
        self.bytes = np.random.default_rng(seed).integers(0, 256, (blocks, layers, TENSORS, TENSOR_BYTES), np.uint8)
        steps = np.arange(blocks * layers * TENSORS, dtype=np.uint64) * np.uint64(TENSOR_BYTES)
        self.addresses = (np.uint64(self.bytes.ctypes.data) + steps).reshape(blocks, layers, TENSORS)

    def emptied(self) -> Memory:
        other = Memory(*self.bytes.shape[:2])
        other.bytes[:] = 0
        return other


def ids(count: int, seed: int = 0) -> list[bytes]:
    return [random.Random(f"{seed}/{index}").randbytes(16) for index in range(count)]


def dump(store: UcmPipelineStore, blocks: list[bytes], memory: Memory, layers: int = LAYERS) -> None:
    tasks = [store.dump_data(blocks, [layer] * len(blocks), memory.addresses[:, layer]) for layer in range(layers)]
    for task in tasks:
        store.wait(task)


def load(store: UcmPipelineStore, blocks: list[bytes], memory: Memory, layers: int = LAYERS) -> None:
    for layer in range(layers):
        store.wait(store.load_data(blocks, [layer] * len(blocks), memory.addresses[:, layer].tolist()))


def scheduler_configuration(folder: Path) -> dict[str, Any]:
    config = configuration(folder, posix_gc_enable=True)
    for key in ("device_id", "tensor_size_list", "shard_size", "block_size", "local_rank_size"):
        del config[key]
    return config
