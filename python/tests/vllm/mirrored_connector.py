"""The connector in a vLLM that computes on the CPU, as if its KV lay on an NPU.

What a step has computed of the blocks to store is copied to the emulator's memory, as the device would have computed it
there, and what was loaded there is copied back. The connector sees the emulator's memory only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from emulated_device import DeviceTensor, EmulatedDevice

from kvstored.vllm.connector import UCMConnector
from kvstored.vllm.geometry import BlockAddresses
from kvstored.vllm.metadata import BlockRun, LoadRun

FOLDER = "KVSTORED_TEST_MIRROR"
"""Names the folder in which the plugin is laid out."""


class MirroredConnector(UCMConnector):
    """Ours, between a CPU's KV and a device's."""

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        self._npu = EmulatedDevice(os.environ["KVSTORED_PROGRAM"], Path(os.environ[FOLDER]))
        torch.npu = self._npu.torch_module()
        self._waiting: dict[str, LoadRun] = {}
        self._computed = BlockAddresses(kv_caches, self._assembly._kv_cache_config)
        mirrors = {}
        for name, (piece,) in zip(self._computed.layer_names, self._computed.pieces, strict=True):
            length = piece.stride * (self._computed.blocks - 1) + piece.nbytes
            like = torch.empty_strided(
                piece.tensor.shape, piece.tensor.stride(), dtype=piece.tensor.dtype, device="meta"
            )
            mirrors[name] = DeviceTensor(self._npu.allocate(length), like)
        self._mirrored = BlockAddresses(mirrors, self._assembly._kv_cache_config)
        super().register_kv_caches(mirrors)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        metadata = self._metadata()
        super().start_load_kv(forward_context, **kwargs)
        for run in metadata.loads if metadata is not None else ():
            if run.asynchronous:
                self._waiting[run.request_id] = run
            else:
                self._bring_back([run])

    def wait_for_layer_load(self, layer_name: str) -> None:
        super().wait_for_layer_load(layer_name)
        metadata = self._metadata()
        if metadata is not None and layer_name in self._mirrored.index:
            self._bring_back((run for run in metadata.loads if not run.asynchronous), self._mirrored.index[layer_name])

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        metadata = self._metadata()
        if metadata is not None and layer_name in self._mirrored.index:
            self._compute(metadata.dumps, self._mirrored.index[layer_name])
        super().save_kv_layer(layer_name, kv_layer, attn_metadata, **kwargs)

    def wait_for_save(self) -> None:
        metadata = self._metadata()
        if metadata is not None:
            self._compute(metadata.dumps)
        super().wait_for_save()

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        dumped, loaded = super().get_finished(finished_req_ids)
        self._bring_back(self._waiting.pop(request) for request in loaded or () if request in self._waiting)
        return dumped, loaded

    def _compute(self, runs: Iterable[BlockRun], layer: int | None = None) -> None:
        for computed, mirrored, nbytes in self._pages(runs, layer):
            self._npu.write(mirrored, _host(computed, nbytes))

    def _bring_back(self, runs: Iterable[BlockRun], layer: int | None = None) -> None:
        for computed, mirrored, nbytes in self._pages(runs, layer):
            _host(computed, nbytes)[:] = self._npu.read(mirrored, nbytes)

    def _pages(self, runs: Iterable[BlockRun], layer: int | None) -> Iterable[tuple[int, int, int]]:
        layers = range(len(self._mirrored.layer_names)) if layer is None else (layer,)
        for run in runs:
            for one in layers:
                (nbytes,) = self._mirrored.piece_bytes(one)
                computed = self._computed.of_layer(run.block_ids, one).reshape(-1).tolist()
                mirrored = self._mirrored.of_layer(run.block_ids, one).reshape(-1).tolist()
                yield from ((here, there, nbytes) for here, there in zip(computed, mirrored, strict=True))


def _host(address: int, nbytes: int) -> np.ndarray:
    import ctypes

    return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), dtype=np.uint8)
