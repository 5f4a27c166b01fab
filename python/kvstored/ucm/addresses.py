"""Addresses as UCM gives them, checked before anything is copied from or to them."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from kvstored import InvalidInput, Unsupported

_GHOST_LIMIT_BYTES = 64 << 20
_LIBC = ctypes.CDLL(None, use_errno=True)


class Buffers:
    """Tells the engine's memory from what this store can't or mustn't copy.

    `ranges` are the (address, bytes) of the engine's KV buffers, where UCM names them: nothing outside is touched then.
    Without a device, they and all addresses have to be host memory of this process.
    """

    def __init__(self, ranges: Sequence[tuple[int, int]], *, on_device: bool) -> None:
        kept = sorted((int(start), int(start) + int(size)) for start, size in ranges if start and size)
        self._on_device = on_device
        self._starts = np.array([start for start, _ in kept], dtype=np.uint64)
        # of overlapping buffers the end that reaches furthest counts
        self._ends = np.maximum.accumulate(np.array([end for _, end in kept], dtype=np.uint64))
        if on_device and not kept:
            raise InvalidInput("gpu_kv_buffer_addrs is empty: buffers on a device have to be named, nothing tells them")
        if not on_device:
            for start, end in kept:
                _require_readable(start, end - 1)

    def check(self, addresses: np.ndarray, sizes: Sequence[int]) -> None:
        """Checks rows of addresses of tensors of these sizes. Raises InvalidInput or Unsupported."""
        if addresses.size == 0:
            return
        if not addresses.all():
            raise InvalidInput("an address is null")
        if self._starts.size:
            place = np.searchsorted(self._starts, addresses, side="right")
            ends = addresses + np.array(sizes, dtype=np.uint64)
            outside = (place == 0) | (ends > self._ends[np.maximum(place, 1) - 1])
            if outside.any():
                raise InvalidInput(f"address {int(addresses[outside][0]):#x} lies outside the engine's KV buffers")
        elif not self._on_device:
            first = addresses[0].tolist()
            _require_readable(*first, *(start + size - 1 for start, size in zip(first, sizes, strict=True)))


def _require_readable(*addresses: int) -> None:
    # the kernel says what this process can read, where reading itself would be the end
    probe = os.memfd_create("kvstored-probe", os.MFD_CLOEXEC)
    try:
        for address in addresses:
            if _LIBC.pwrite(probe, ctypes.c_void_p(address), ctypes.c_size_t(1), ctypes.c_int64(0)) != 1:
                raise Unsupported(
                    f"address {address:#x} is not host memory of this process, and no device is known that it lies on "
                    "(kv_device)"
                )
    finally:
        os.close(probe)


def address_rows(addresses: Any, rows: int) -> np.ndarray:
    """A list of lists or an array of addresses, as a row of uint64 for each block. Raises InvalidInput."""
    try:
        table = np.ascontiguousarray(np.asarray(addresses, dtype=np.uint64))
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"the addresses are no table of numbers: {error}") from error
    if rows == 0 or table.size % rows:
        raise InvalidInput(f"{table.size} addresses don't make {rows} rows")
    return table.reshape(rows, -1)


def tensor_rows(tensors: Sequence[Sequence[Any]], sizes: Sequence[int]) -> np.ndarray:
    """The addresses of contiguous tensors of these sizes in bytes. Raises InvalidInput."""
    for row in tensors:
        if len(row) != len(sizes):
            raise InvalidInput(f"{len(row)} tensors are given for a shard of {len(sizes)}")
        for tensor, size in zip(row, sizes, strict=True):
            if not tensor.is_contiguous() or tensor.nbytes != size:
                raise InvalidInput(
                    f"a tensor of {tensor.nbytes} bytes is given where {size} contiguous ones are needed"
                )
    return np.array([[tensor.data_ptr() for tensor in row] for row in tensors], dtype=np.uint64)


def fill_ghosts(addresses: np.ndarray, sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray | None]:
    """Gives memory to tensors that a layer doesn't have: UCM leaves their column null in every row.

    Returns the addresses and the memory, zeroed, which must live as long as they are used. A null among others in its
    column stays: it's a mistake for the caller to refuse.
    """
    ghosts = np.flatnonzero(~addresses.any(axis=0)).tolist()
    if len(ghosts) in (0, addresses.shape[1]):
        return addresses, None
    row_bytes = sum(sizes[column] for column in ghosts)
    if row_bytes * len(addresses) > _GHOST_LIMIT_BYTES:
        raise InvalidInput(f"{row_bytes} bytes of each of {len(addresses)} blocks have no address")
    memory = np.zeros(row_bytes * len(addresses), dtype=np.uint8)
    filled, start = addresses.copy(), int(memory.ctypes.data)
    for column in ghosts:
        filled[:, column] = [start + place * sizes[column] for place in range(len(addresses))]
        start += sizes[column] * len(addresses)
    return filled, memory
