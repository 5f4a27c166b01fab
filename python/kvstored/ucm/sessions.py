"""Dumps that come shard by shard: a block is stored whole when all of its shards came, and not at all otherwise."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from kvstored import (
    Busy,
    Cancelled,
    Device,
    DeviceEvent,
    DumpSession,
    KvstoredError,
    Namespace,
    Task,
    TimedOut,
    Unsupported,
)
from kvstored.ending import end
from kvstored.namespace import Durability

STAGING_LIMIT_BYTES = 256 << 20
"""Most bytes copied aside for shards whose callers don't wait for the rest of their batch."""


class DumpFailed(RuntimeError):
    """Blocks were not stored."""


@dataclass(eq=False)
class ShardPut:
    """One shard of a batch's blocks: put into the session once the rows of all blocks are there."""

    batch: Batch
    shard: int
    rows: np.ndarray
    """Addresses, a row for each block of the batch."""
    arrived: np.ndarray
    """For each block of the batch: did its row come."""
    task: Task | None = None
    kept: list[object] = field(default_factory=list)
    """Memory that must live until the task has ended."""
    staged: np.ndarray | None = None
    """For each block: was its row copied aside."""
    after: DeviceEvent | int | None = None
    """What its copies wait for on the device: the latest that came, behind those of earlier rows on the same stream."""

    def is_copied(self) -> bool:
        """Tells whether nobody reads the rows' memory any more."""
        return self.task is None or self.task.check()


@dataclass(eq=False)
class Batch:
    """Blocks that were begun together, and the store's session for them."""

    block_ids: list[bytes]
    session: DumpSession | None
    deadline_s: float
    puts: dict[int, ShardPut] = field(default_factory=dict)
    failure: Exception | None = None
    staged_bytes: int = 0

    def __post_init__(self) -> None:
        self.places = {block_id: place for place, block_id in enumerate(self.block_ids)}

    def is_whole(self, shards: int) -> bool:
        """Tells whether every shard of every block came."""
        return len(self.puts) == shards and all(put.arrived.all() for put in self.puts.values())

    def fail(self, error: Exception) -> None:
        """Gives up the blocks that aren't stored yet. Shards that still come fail at once."""
        self.failure = self.failure or error
        session, self.session = self.session, None
        if session is not None:
            session.abort()


class ShardwiseDumps:
    """The batches under way. From any thread; shards in any order, of any blocks of any batch."""

    def __init__(
        self, namespace: Namespace, *, durability: Durability, timeout_ms: int, device: Device | None = None
    ) -> None:
        self._namespace = namespace
        self._device = device
        self._shards = [tuple(shard) for shard in namespace.layout.shards]
        self._durability = durability
        self._timeout_ms = timeout_ms
        self._lock = threading.Lock()
        self._open: dict[bytes, Batch] = {}
        self._left: list[ShardPut] = []
        self._staged_bytes = 0

    def put(
        self,
        block_ids: Sequence[bytes],
        shards: Sequence[int],
        rows: Sequence[np.ndarray],
        keep: object = None,
        after: DeviceEvent | int | None = None,
    ) -> list[ShardPut]:
        """Takes one shard of each block from these addresses; their memory is in use until `wait` has returned.

        `keep` is kept alive as long. On a device, `after` is what copies wait for. Where no room can be had for the
        blocks, `wait` tells.
        """
        with self._lock:
            self._forget_finished()
            self._begin([block_id for block_id in dict.fromkeys(block_ids) if block_id not in self._open])
            touched: dict[ShardPut, None] = {}
            for block_id, shard, row in zip(block_ids, shards, rows, strict=True):
                put = self._put_of(self._open[block_id], shard)
                place = put.batch.places[block_id]
                touched[put] = None
                if not put.arrived[place]:
                    put.rows[place] = row
                    put.arrived[place] = True
            for put in touched:
                put.kept.append(keep)
                put.after = after
                if put.task is None and put.arrived.all():
                    self._start(put)
            return list(touched)

    def give_up(self, block_ids: Iterable[bytes], error: Exception) -> None:
        """Gives up the blocks' batches: a shard of theirs can't be had."""
        with self._lock:
            ids = list(block_ids)
            for block_id in ids:
                if block_id in self._open:
                    self._open[block_id].fail(error)
            fresh = [block_id for block_id in dict.fromkeys(ids) if block_id not in self._open]
            if fresh:
                self._open.update(dict.fromkeys(fresh, Batch(fresh, None, self._deadline(), failure=error)))

    def wait(self, puts: Sequence[ShardPut], timeout_s: float) -> None:
        """Waits until the memory of these shards is free for other use, and whole blocks are acknowledged.

        Raises what made blocks fail.
        """
        deadline = time.monotonic() + timeout_s
        failures: list[Exception] = []
        for put in puts:
            with self._lock:
                if put.task is None and put.batch.failure is None:
                    self._stage(put)
                task = put.task
            if task is not None:
                failures.extend(_failures(task, deadline))
        for batch in {put.batch: None for put in puts}:
            session = batch.session
            if session is not None and batch.is_whole(len(self._shards)):
                failures.extend(_failures(session.task, deadline))
            if batch.failure is not None:
                failures.insert(0, batch.failure)
        with self._lock:
            self._forget_finished()
        if failures:
            raise failures[0]

    def has_ended(self, puts: Sequence[ShardPut]) -> bool:
        """Tells whether `wait` would return at once."""
        for put in puts:
            session = put.batch.session
            if not put.is_copied() or (put.task is None and put.batch.failure is None):
                return False
            if session is not None and put.batch.is_whole(len(self._shards)) and not session.task.check():
                return False
        return True

    def close(self) -> None:
        """Gives up what isn't whole."""
        with self._lock:
            for batch in {batch: None for batch in self._open.values()}:
                if not self._is_over(batch):
                    batch.fail(Cancelled("the store was closed"))
                self._forget(batch)

    def _begin(self, block_ids: list[bytes]) -> None:
        if not block_ids:
            return
        session, failure = None, None
        try:
            session = self._namespace.begin_dump(block_ids, durability=self._durability, timeout_ms=self._timeout_ms)
        except KvstoredError as error:
            # remembered, so that the blocks' other shards fail at once instead of beginning anew without this one
            failure = error
        batch = Batch(block_ids, session, self._deadline(), failure=failure)
        self._open.update(dict.fromkeys(block_ids, batch))

    def _put_of(self, batch: Batch, shard: int) -> ShardPut:
        put = batch.puts.get(shard)
        if put is None:
            count = len(batch.block_ids)
            rows = np.zeros((count, len(self._shards[shard])), dtype=np.uint64)
            put = batch.puts[shard] = ShardPut(batch, shard, rows, np.zeros(count, dtype=bool))
        return put

    def _start(self, put: ShardPut) -> None:
        batch = put.batch
        if batch.session is None:
            return
        try:
            put.task = batch.session.put_shard(put.shard, put.rows, device=self._device, after=put.after)
            batch.deadline_s = self._deadline()
        except KvstoredError as error:
            batch.fail(error)

    def _stage(self, put: ShardPut) -> None:
        """Copies the rows that came, so that their memory is free although the batch isn't complete."""
        if self._device is not None:
            what = "shards on a device can be waited for only when those of all blocks of their batch have come"
            put.batch.fail(Unsupported(what))
            return
        sizes = self._shards[put.shard]
        if put.staged is None:
            put.staged = np.zeros(len(put.arrived), dtype=bool)
        for place in np.flatnonzero(put.arrived & ~put.staged).tolist():
            if self._staged_bytes + sum(sizes) > STAGING_LIMIT_BYTES:
                put.batch.fail(Busy("too many shards wait for the rest of their batch"))
                return
            memory = np.empty(sum(sizes), dtype=np.uint8)
            start = int(memory.ctypes.data)
            for column, size in enumerate(sizes):
                ctypes.memmove(start, int(put.rows[place, column]), size)
                put.rows[place, column] = start
                start += size
            put.kept.append(memory)
            put.staged[place] = True
            put.batch.staged_bytes += memory.nbytes
            self._staged_bytes += memory.nbytes

    def _is_over(self, batch: Batch) -> bool:
        return batch.is_whole(len(self._shards)) and (batch.session is None or batch.session.task.check())

    def _forget_finished(self) -> None:
        self._left = [put for put in self._left if not put.is_copied()]
        now = time.monotonic()
        for batch in {batch: None for batch in self._open.values()}:
            if self._is_over(batch):
                self._forget(batch)
            elif now > batch.deadline_s:
                batch.fail(TimedOut("the other shards of the blocks did not come in time"))
                self._forget(batch)

    def _forget(self, batch: Batch) -> None:
        for block_id in batch.block_ids:
            self._open.pop(block_id, None)
        self._staged_bytes -= batch.staged_bytes
        batch.staged_bytes = 0
        # memory of copies that go on after a failure is let go with their tasks
        self._left.extend(put for put in batch.puts.values() if not put.is_copied())

    def _deadline(self) -> float:
        return time.monotonic() + self._timeout_ms / 1000


def _failures(task: Task, deadline_s: float) -> list[Exception]:
    """Waits for a task's end; what went wrong."""
    try:
        report = end(task, deadline_s - time.monotonic())
    except KvstoredError as error:
        return [error]
    if report.all_done:
        return []
    errors = "; ".join(report.errors)
    return [DumpFailed(f"{len(report.failed)} of {report.blocks} blocks were not stored: {errors}")]
