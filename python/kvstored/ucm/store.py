"""A store for UCM (unified cache management), in place of its own pipeline store."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvstored import DeviceEvent, Identity, InvalidInput, KvstoredError, Layout, Namespace, Unsupported, default_socket
from kvstored import Task as StoreTask
from kvstored.complaints import Complaints
from kvstored.ending import end
from kvstored.opening import durability_of, open_store
from kvstored.ucm.addresses import address_rows, fill_ghosts, tensor_rows
from kvstored.ucm.geometry import LayoutNote, layout_of
from kvstored.ucm.interface import StoreNotFoundError, Task, UcmKVStoreBaseV1
from kvstored.ucm.memory import DEVICE_KEYS, open_memory
from kvstored.ucm.sessions import ShardPut, ShardwiseDumps

logger = logging.getLogger("kvstored.ucm")

# what UCM's connector works out at run time, and what has no meaning here
_NOT_THE_ENGINES = frozenset(
    [
        "tensor_size",
        "tensor_size_list",
        "shard_size",
        "block_size",
        "device_id",
        "unique_id",
        "tensor_layout",
        "local_rank_size",
        "gpu_kv_buffer_addrs",
        "gpu_kv_buffer_sizes",
        "cpu_affinity_cores",
        "posix_gc_enable",
        "share_buffer_enable",
        "timeout_ms",
        "cache_stream_number",
        "waiting_queue_depth",
        "running_queue_depth",
    ]
)
_OURS = frozenset(("tenant", "model", "weights_digest", "cache_salt", "durability", *DEVICE_KEYS))


@dataclass(eq=False)
class Transfer(Task):
    """A transfer under way: tasks of the store for loads and for dumps of whole blocks, shards of batches else."""

    blocks: int
    loads: list[StoreTask] = field(default_factory=list)
    dumps: list[StoreTask] = field(default_factory=list)
    shards: list[ShardPut] = field(default_factory=list)
    kept: list[object] = field(default_factory=list)


class UcmPipelineStore(UcmKVStoreBaseV1):
    """UCM's store interface on a kvstored store.

    Named in UCM's file by `ucm_connector_module_path: kvstored.ucm`, with the keys of UCM's pipeline store and those of
    `kvstored.opening.StoreOptions`; `tenant`, `model`, `weights_digest` and `cache_salt` go into the identity. Without
    a `socket`, the processes of one UCM engine on a node share one store (`listen: off` keeps each to itself).

    Lookups never raise: what fails is a miss. Transfers raise where UCM wants to know, in `wait` at the latest.
    """

    def __init__(self, config: dict[str, object]) -> None:
        """Opens the store. Raises InvalidInput on a wrong configuration, Unsupported for buffers on no known device."""
        super().__init__(config)
        self._complaints = Complaints(logger)
        self._timeout_ms = _number(config, "timeout_ms", 30_000)
        self._durability = durability_of(config)
        self._identity = _identity(config)
        self._buffers, self._memory = open_memory(config)
        self._note = LayoutNote(str(config.get("unique_id", "")))
        self._lock = threading.Lock()
        self._namespace: Namespace | None = None
        self._dumps: ShardwiseDumps | None = None
        layout = layout_of(config)
        self._lease = open_store(_store_options(config, self._timeout_ms))
        if layout is None:
            return
        self._open(layout)
        try:
            self._note.write(layout)
        except (OSError, KvstoredError) as error:
            self._complaints.report("layout", "the scheduler can't be told the layout: its lookups will miss", error)

    def close(self) -> None:
        """Gives up what isn't whole, and the store."""
        with self._lock:
            dumps, self._dumps, self._namespace = self._dumps, None, None
        if dumps is not None:
            dumps.close()
        self._lease.release()

    def cc_store(self) -> int:
        """There is no C++ object to give UCM's sparse attention, which wants one. Raises Unsupported."""
        raise Unsupported("kvstored has no C++ store object to hand out")

    def lookup(self, block_ids: Sequence[bytes]) -> np.ndarray:
        """Which blocks are stored, whole."""
        try:
            namespace = self._known_namespace()
            if namespace is not None and len(block_ids):
                return namespace.lookup(list(block_ids))
        except Exception as error:
            self._complaints.report("lookup", "a lookup failed; taken as misses", error)
        return np.zeros(len(block_ids), dtype=bool)

    def lookup_on_prefix(self, block_ids: Sequence[bytes]) -> int:
        """Index of the last block of the longest stored prefix; -1: none."""
        try:
            namespace = self._known_namespace()
            if namespace is not None and len(block_ids):
                return namespace.lookup_on_prefix(list(block_ids)) - 1
        except Exception as error:
            self._complaints.report("lookup", "a lookup failed; taken as misses", error)
        return -1

    def lookup_on_reverse(self, block_ids: Sequence[bytes]) -> int:
        """Index of the last stored block; -1: none."""
        present = np.flatnonzero(self.lookup(block_ids))
        return int(present[-1]) if present.size else -1

    def prefetch(self, block_ids: Sequence[bytes]) -> None:
        """Brings blocks into the first tier ahead of use."""
        try:
            namespace = self._known_namespace()
            if namespace is not None and len(block_ids):
                namespace.prefetch(list(block_ids))
        except Exception as error:
            self._complaints.report("prefetch", "a prefetch failed", error)

    def load(self, block_ids: Sequence[bytes], shard_index: Sequence[int], dst_tensor: Sequence[Sequence[Any]]) -> Task:
        """Begins to load one shard of each block into tensors."""
        return self._load(block_ids, shard_index, self._addresses_of(shard_index, dst_tensor), list(dst_tensor))

    def dump(self, block_ids: Sequence[bytes], shard_index: Sequence[int], src_tensor: Sequence[Sequence[Any]]) -> Task:
        """Begins to store one shard of each block from tensors. A block is there when all of its shards came."""
        return self._dump(block_ids, shard_index, self._addresses_of(shard_index, src_tensor), list(src_tensor))

    def load_data(self, block_ids: Sequence[bytes], shard_index: Sequence[int], dst_addr: Any) -> Task:
        """Begins to load one shard of each block to addresses, a row for each block."""
        return self._load(block_ids, shard_index, dst_addr)

    def dump_data(
        self, block_ids: Sequence[bytes], shard_index: Sequence[int], src_addr: Any, prerequisite_handle: int = 0
    ) -> Task:
        """Begins to store one shard of each block from addresses. A block is there when all of its shards came.

        On a device, copies begin after the event with that handle, which lives until `wait` has returned; without one,
        after what the calling thread has given its stream.
        """
        if prerequisite_handle and self._memory.device is None:
            error = Unsupported("an event is to be waited for, but the engine's buffers lie in host memory")
            self._give_up(block_ids, error)
            raise error
        return self._dump(block_ids, shard_index, src_addr, after=prerequisite_handle or None)

    def wait(self, task: Transfer) -> None:
        """Waits until the transfer's memory is free for use.

        Raises StoreNotFoundError when blocks to be loaded are missing, another error when something else went wrong.
        """
        seconds = self._timeout_ms / 1000 + 1.0
        failures = [failure for part in task.loads + task.dumps if (failure := _failure(part, seconds)) is not None]
        if task.shards and self._dumps is not None:
            self._dumps.wait(task.shards, seconds)
        task.kept.clear()
        if failures:
            raise failures[0]

    def check(self, task: Transfer) -> bool:
        """Tells whether the transfer has ended; `wait` tells how."""
        if not all(part.check() for part in task.loads + task.dumps):
            return False
        return self._dumps is None or self._dumps.has_ended(task.shards)

    def _load(self, block_ids: Sequence[bytes], shards: Sequence[int], addresses: Any, kept: object = None) -> Transfer:
        namespace = self._own_namespace()
        transfer = Transfer(len(block_ids), kept=[kept])
        after = self._memory.mark()
        for shard, places, rows in self._by_shard(namespace.layout, block_ids, shards, addresses, transfer.kept):
            ids = [block_ids[place] for place in places]
            task = namespace.load(
                ids,
                rows,
                shards=(shard, shard + 1),
                timeout_ms=self._timeout_ms,
                device=self._memory.device,
                after=after,
            )
            transfer.loads.append(task)
        return transfer

    def _dump(
        self,
        block_ids: Sequence[bytes],
        shards: Sequence[int],
        addresses: Any,
        kept: object = None,
        after: DeviceEvent | int | None = None,
    ) -> Transfer:
        namespace = self._own_namespace()
        transfer = Transfer(len(block_ids), kept=[kept])
        try:
            after = after or self._memory.mark()
            parts = list(self._by_shard(namespace.layout, block_ids, shards, addresses, transfer.kept))
        except KvstoredError as error:
            self._give_up(block_ids, error)
            raise
        for shard, places, rows in parts:
            ids = [bytes(block_ids[place]) for place in places]
            if len(namespace.layout.shards) == 1:
                task = namespace.dump(
                    ids,
                    rows,
                    durability=self._durability,
                    timeout_ms=self._timeout_ms,
                    device=self._memory.device,
                    after=after,
                )
                transfer.dumps.append(task)
            elif self._dumps is not None:
                transfer.shards += self._dumps.put(ids, [shard] * len(ids), list(rows), transfer.kept, after)
        return transfer

    def _give_up(self, block_ids: Sequence[bytes], error: Exception) -> None:
        if self._dumps is not None and len(self._own_namespace().layout.shards) > 1:
            self._dumps.give_up([bytes(block_id) for block_id in block_ids], error)

    def _by_shard(
        self, layout: Layout, block_ids: Sequence[bytes], shards: Sequence[int], addresses: Any, kept: list[object]
    ) -> list[tuple[int, list[int], np.ndarray]]:
        """For each shard: the places of its blocks in the call, and their checked addresses."""
        if len(block_ids) == 0:
            return []
        if len(shards) != len(block_ids):
            raise InvalidInput(f"{len(shards)} shard indices are given for {len(block_ids)} blocks")
        table = address_rows(addresses, len(block_ids))
        parts = []
        indices = np.asarray(shards, dtype=np.int64)
        for shard in np.unique(indices).tolist():
            if not 0 <= shard < len(layout.shards):
                raise InvalidInput(f"shard index {shard} is outside the {len(layout.shards)} shards of a block")
            sizes = layout.shards[shard]
            if table.shape[1] != len(sizes):
                raise InvalidInput(f"{table.shape[1]} addresses are given for a shard of {len(sizes)} tensors")
            places = np.flatnonzero(indices == shard)
            rows, ghosts = table[places], None
            real = rows.any(axis=0)
            self._buffers.check(
                rows[:, real] if real.any() else rows, [s for s, r in zip(sizes, real, strict=True) if r]
            )
            if self._memory.device is not None and not real.all():
                raise Unsupported("a layer lacks tensors that others have, which is not supported on a device")
            rows, ghosts = fill_ghosts(rows, sizes)
            kept.append(ghosts)
            parts.append((shard, places.tolist(), rows))
        return parts

    def _addresses_of(self, shards: Sequence[int], tensors: Sequence[Sequence[Any]]) -> np.ndarray:
        layout = self._own_namespace().layout
        rows = []
        for shard, row in zip(shards, tensors, strict=True):
            if not 0 <= shard < len(layout.shards):
                raise InvalidInput(f"shard index {shard} is outside the {len(layout.shards)} shards of a block")
            rows.append(tensor_rows([row], layout.shards[shard])[0])
        return np.array(rows, dtype=np.uint64)

    def _own_namespace(self) -> Namespace:
        namespace = self._namespace
        if namespace is None or self._dumps is None:
            raise InvalidInput("this store only looks up: its configuration has no tensor_size_list, or it is closed")
        return namespace

    def _known_namespace(self) -> Namespace | None:
        """The namespace; in the scheduler, whose configuration has no sizes, the one that the workers told of."""
        if self._dumps is None:
            with self._lock:
                layout = self._note.read_if_new()
                if layout is not None:
                    self._namespace = self._lease.store.open_namespace(self._identity, layout)
        return self._namespace

    def _open(self, layout: Layout) -> None:
        self._namespace = self._lease.store.open_namespace(self._identity, layout)
        self._dumps = ShardwiseDumps(
            self._namespace, durability=self._durability, timeout_ms=self._timeout_ms, device=self._memory.device
        )


KvstoredStore = UcmPipelineStore


def _failure(task: StoreTask, seconds: float) -> Exception | None:
    try:
        report = end(task, seconds)
    except KvstoredError as error:
        return error
    if report.all_done:
        return None
    text = f"{len(report.failed)} of {report.blocks} blocks were not transferred: {'; '.join(report.errors)}"
    return StoreNotFoundError(text) if report.missing == len(report.failed) else RuntimeError(text)


def _identity(config: Mapping[str, object]) -> Identity:
    """UCM's block ids tell model, dtype, rank and parallel shape apart; the layout comes in with the namespace."""
    return Identity(
        tenant=str(config.get("tenant", "")),
        model=str(config.get("model", "")),
        weights_digest=str(config.get("weights_digest", "")),
        dtype=f"ucm {config.get('tensor_layout', '')}".strip(),
        layout_version=1,
        cache_salt=str(config.get("cache_salt", "")),
    )


def _store_options(config: Mapping[str, object], timeout_ms: int) -> dict[str, object]:
    options = {key: value for key, value in config.items() if key not in _NOT_THE_ENGINES | _OURS}
    backends = options.get("storage_backends")
    if isinstance(backends, (list, tuple)):
        options["storage_backends"] = ":".join(map(str, backends))
    options["timeout_ms"] = timeout_ms
    options["streams"] = _number(config, "cache_stream_number", 2)
    listen = options.pop("listen", None) or "auto"
    if options.get("socket") is None and listen != "off":
        if listen == "auto":
            # what scheduler and workers of one engine on one node have in common, and no other engine has
            shared = repr([config.get("unique_id"), options.get("storage_backends"), options.get("store_pipeline")])
            digest = hashlib.blake2b(shared.encode(), digest_size=8).hexdigest()
            listen = os.path.join(os.path.dirname(default_socket()), f"ucm-{digest}.sock")
        options["listen"] = listen
    return options


def _number(config: Mapping[str, object], key: str, default: int) -> int:
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise InvalidInput(f"{key} is {value!r}; a whole number above 0 is expected")
    return value
