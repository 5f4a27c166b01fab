"""Namespaces: where blocks of one identity and layout are looked up, loaded and dumped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kvstored import _native
from kvstored.identity import Identity, Layout
from kvstored.tensors import addresses_of, shard_sizes

if TYPE_CHECKING:
    from kvstored._native import DeviceEvent, Task
    from kvstored.device import Device

Hashes = Sequence[bytes] | np.ndarray
"""Block hashes: ``bytes`` of 16 to 32 each, or a C-contiguous ``uint8`` array of blocks and bytes."""

Durability = Literal["memory", "tier", "durable"]
"""When a block counts as dumped: in memory (lost with the engine's process), in the first tier below it (survives the
process), or flushed to the medium (survives a power loss)."""


class Namespace:
    """Blocks of one identity and layout. Made by :meth:`kvstored.Store.open_namespace`; any thread may use it.

    Hashes of one call are a run of one prompt in prefix order. All calls but loads and dumps wait for the answer, at
    most the store's ``timeout_ms``; they raise :class:`~kvstored.errors.KvstoredError`, for a daemon that is away
    :class:`~kvstored.errors.Unavailable`. Loads and dumps raise before anything moves
    (:class:`~kvstored.errors.InvalidInput`, :class:`~kvstored.errors.Busy`); later failures are in the task's report.

    Addresses are a C-contiguous ``uint64`` array: for each block, each shard, each tensor. The caller promises that
    each is that of as many bytes as the layout says, and that until the task has ended these bytes stay valid, that
    nobody writes those being dumped, and that nobody reads or writes those being loaded. A tensor may lie in several
    pieces that follow one another in the block: ``pieces`` are the bytes of a block's pieces in order, and there is an
    address for each. With a ``device``, addresses are on it, and copies begin ``after`` an event: of
    :meth:`kvstored.Device.record`, or of the engine by its handle, which the caller keeps until the task has ended.
    """

    def __init__(self, native: _native.Namespace, identity: Identity, layout: Layout) -> None:
        self._native = native
        self.identity = identity
        self.layout = layout
        self.digest: bytes = native.digest

    def lookup(self, hashes: Hashes) -> np.ndarray:
        """Which blocks some tier has, as booleans. A hit may still turn out to be missing at the load."""
        return self._native.lookup(hashes)

    def lookup_on_prefix(self, hashes: Hashes) -> int:
        """How many blocks at the start are there without a gap."""
        return self._native.lookup_on_prefix(hashes)

    def locate_prefix(self, hashes: Hashes) -> np.ndarray:
        """For each block at the start that is there without a gap: the fastest tier that has it, by index.

        The index is that in the store's ``tier_names``; the length is what :meth:`lookup_on_prefix` says.
        """
        return self._native.locate_prefix(hashes)

    def prefetch(self, hashes: Hashes) -> None:
        """Begin to bring blocks into the first tier ahead of use."""
        self._native.prefetch(hashes)

    def evict(self, hashes: Hashes, tier: str | None = None) -> int:
        """Drop blocks from one tier (by its name), or from all. Returns the number of places they were dropped from."""
        return self._native.evict(hashes, tier)

    def purge(self) -> int:
        """Drop every block of the namespace from all tiers, for all processes that share them and also after a restart.

        Returns how many were there; blocks dumped afterwards are kept as usual.
        """
        return self._native.purge()

    def load(
        self,
        hashes: Hashes,
        addresses: np.ndarray,
        *,
        shards: tuple[int, int] | None = None,
        shard_major: bool = False,
        timeout_ms: int | None = None,
        pieces: Sequence[int] | None = None,
        device: Device | None = None,
        after: DeviceEvent | int | None = None,
    ) -> Task:
        """Begin to fill memory from the store.

        ``shards`` are the first and the end (exclusive) of a part of each block; ``shard_major`` brings the first
        shards of all blocks before the next, see :meth:`Task.wait_shard`. What isn't found is in the report, not an
        error.
        """
        native = None if device is None else device._native
        return self._native.load(hashes, addresses, shards, shard_major, timeout_ms, None, pieces, native, after)

    def dump(
        self,
        hashes: Hashes,
        addresses: np.ndarray,
        *,
        parent: bytes | None = None,
        durability: Durability = "memory",
        timeout_ms: int | None = None,
        pieces: Sequence[int] | None = None,
        device: Device | None = None,
        after: DeviceEvent | int | None = None,
    ) -> Task:
        """Begin to store whole blocks from memory. ``parent`` is the hash of the block before the run, if known."""
        native = None if device is None else device._native
        return self._native.dump(hashes, addresses, parent, durability, timeout_ms, None, pieces, native, after)

    def load_tensors(
        self,
        hashes: Hashes,
        tensors: Sequence[Sequence[Any]],
        *,
        shards: tuple[int, int] | None = None,
        shard_major: bool = False,
        timeout_ms: int | None = None,
        device: Device | None = None,
        after: DeviceEvent | int | None = None,
    ) -> Task:
        """Begin to fill tensors from the store: :meth:`load`, with memory that is checked and kept alive.

        ``tensors`` has a sequence per block: shards in order, tensors in order, flattened. Each is a torch tensor in
        host memory, or on the device where one is given, a numpy array or a writable buffer, contiguous and as large as
        the layout says.
        """
        sizes = shard_sizes(self.layout.shards, shards)
        addresses, kept = addresses_of(tensors, sizes, writable=True, device=device)
        native = None if device is None else device._native
        return self._native.load(hashes, addresses, shards, shard_major, timeout_ms, kept, None, native, after)

    def dump_tensors(
        self,
        hashes: Hashes,
        tensors: Sequence[Sequence[Any]],
        *,
        parent: bytes | None = None,
        durability: Durability = "memory",
        timeout_ms: int | None = None,
        device: Device | None = None,
        after: DeviceEvent | int | None = None,
    ) -> Task:
        """Begin to store whole blocks from tensors: :meth:`dump`, with memory that is checked and kept alive.

        ``tensors`` is as for :meth:`load_tensors`; read-only ones will do.
        """
        sizes = shard_sizes(self.layout.shards, None)
        addresses, kept = addresses_of(tensors, sizes, writable=False, device=device)
        native = None if device is None else device._native
        return self._native.dump(hashes, addresses, parent, durability, timeout_ms, kept, None, native, after)

    def begin_dump(
        self,
        hashes: Hashes,
        *,
        parent: bytes | None = None,
        durability: Durability = "memory",
        timeout_ms: int | None = None,
    ) -> DumpSession:
        """Reserve room for blocks whose shards will be put one after the other, in any order.

        Waits for room at most ``timeout_ms``; blocks without room end as failed. Raises
        :class:`~kvstored.errors.Busy` when too many dumps are under way.
        """
        native = self._native.begin_dump(hashes, parent, durability, timeout_ms)
        return DumpSession(native, self.layout)


class DumpSession:
    """A layerwise dump: room first, shards as the engine computes them.

    Blocks become visible when all of their shards have come. Dropped before, the dump gives up the others, as
    :meth:`abort` does. ``task`` is the dump as a whole: it ends when every block is acknowledged or has failed.
    """

    def __init__(self, native: _native.DumpSession, layout: Layout) -> None:
        self._native = native
        self._layout = layout
        self.task: Task = native.task

    def put_shard(
        self,
        shard: int,
        addresses: np.ndarray,
        *,
        pieces: Sequence[int] | None = None,
        device: Device | None = None,
        after: DeviceEvent | int | None = None,
    ) -> Task:
        """Begin to copy one shard of all blocks.

        ``addresses`` has blocks times tensors (or their pieces) of that shard; the memory must stay as it is until the
        returned task has ended. The session holds that task too, so nobody else has to.
        """
        native = None if device is None else device._native
        return self._native.put_shard(shard, addresses, None, pieces, native, after)

    def put_shard_tensors(
        self,
        shard: int,
        tensors: Sequence[Sequence[Any]],
        *,
        device: Device | None = None,
        after: DeviceEvent | int | None = None,
    ) -> Task:
        """Begin to copy one shard of all blocks: :meth:`put_shard`, with memory that is checked and kept alive."""
        sizes = shard_sizes(self._layout.shards, (shard, shard + 1))
        addresses, kept = addresses_of(tensors, sizes, writable=False, device=device)
        native = None if device is None else device._native
        return self._native.put_shard(shard, addresses, kept, None, native, after)

    def abort(self) -> None:
        """Give up every block that isn't whole yet."""
        self._native.abort()
