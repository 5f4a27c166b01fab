"""Addresses of tensors: torch tensors (known by what they can do), numpy arrays, and other buffers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kvstored.errors import InvalidInput

if TYPE_CHECKING:
    from kvstored.device import Device


def addresses_of(
    blocks: Sequence[Sequence[Any]], sizes: Sequence[int], *, writable: bool, device: Device | None = None
) -> tuple[np.ndarray, list[Any]]:
    """Return the addresses of every block's tensors, and what has to stay alive as long as they are used.

    ``sizes`` are the bytes of a block's tensors in order. Raises :class:`~kvstored.errors.InvalidInput`, naming block
    and tensor, for tensors that are not contiguous, not in host memory (or not on the device, where one is given),
    read-only though ``writable`` is asked for, or of another size or number.
    """
    addresses = np.empty((len(blocks), len(sizes)), dtype=np.uint64)
    kept: list[Any] = []
    for index, tensors in enumerate(blocks):
        if len(tensors) != len(sizes):
            raise InvalidInput(f"block {index} has {len(tensors)} tensors; the layout says {len(sizes)}")
        for place, (tensor, size) in enumerate(zip(tensors, sizes, strict=True)):
            try:
                address, nbytes, owner = _address(tensor, writable) if device is None else _on_device(tensor, device)
            except InvalidInput as error:
                raise InvalidInput(f"tensor {place} of block {index} {error}") from None
            if nbytes != size:
                raise InvalidInput(f"tensor {place} of block {index} has {nbytes} bytes; the layout says {size}")
            addresses[index, place] = address
            kept.append(owner)
    return addresses, kept


def shard_sizes(shards: Sequence[Sequence[int]], chosen: tuple[int, int] | None) -> list[int]:
    """Bytes of the tensors of the chosen shards (first and end) in order."""
    first, end = (0, len(shards)) if chosen is None else chosen
    return list(_flat(shards, first, end))


def _flat(shards: Sequence[Sequence[int]], first: int, end: int) -> Iterator[int]:
    if not 0 <= first < end <= len(shards):
        raise InvalidInput(f"shards {first} to {end} (exclusive) are not within the layout's {len(shards)}")
    for shard in shards[first:end]:
        yield from shard


def _on_device(tensor: Any, device: Device) -> tuple[int, int, Any]:
    """Where a tensor lies on a device, its bytes, and what keeps it alive."""
    where = getattr(tensor, "device", None)
    kind, index = getattr(where, "type", "cpu"), getattr(where, "index", None)
    if not hasattr(tensor, "data_ptr") or kind == "cpu" or index not in (None, device.number):
        raise InvalidInput(f"is on {where or 'the host'}, not on {device.name}")
    if not tensor.is_contiguous():
        raise InvalidInput("is not contiguous")
    return tensor.data_ptr(), tensor.nbytes, tensor


def _address(tensor: Any, writable: bool) -> tuple[int, int, Any]:
    """Where a tensor lies, its bytes, and what keeps it alive."""
    if hasattr(tensor, "data_ptr"):
        device = getattr(getattr(tensor, "device", None), "type", "cpu")
        if device != "cpu":
            raise InvalidInput(f"is on device {device}; host memory is needed")
        if not tensor.is_contiguous():
            raise InvalidInput("is not contiguous")
        return tensor.data_ptr(), tensor.nbytes, tensor
    if not isinstance(tensor, np.ndarray):
        try:
            tensor = np.frombuffer(tensor, dtype=np.uint8)
        except (TypeError, ValueError, BufferError) as error:
            raise InvalidInput(f"is no tensor, array or contiguous buffer: {error}") from None
    if not tensor.flags.c_contiguous:
        raise InvalidInput("is not contiguous")
    if writable and not tensor.flags.writeable:
        raise InvalidInput("is read-only")
    return tensor.__array_interface__["data"][0], tensor.nbytes, tensor
