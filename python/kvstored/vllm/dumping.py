"""Dumps of a worker: from the engine's KV cache into the store, beside the computation."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from kvstored import Busy, DeviceEvent, DumpSession, KvstoredError, Task, TimedOut
from kvstored.engine_memory import EngineMemory
from kvstored.vllm.configuration import ConnectorSettings
from kvstored.vllm.geometry import BlockAddresses
from kvstored.vllm.measures import Accumulator
from kvstored.vllm.metadata import DumpRun, StepMetadata
from kvstored.vllm.namespaces import NamespaceCache

_MOST_PENDING = 256
"""Dumps under way at a time; more are skipped: the store can't keep up, and the engine must not wait for it."""
_RESERVE_TIMEOUT_MS = 50
_QUIET_S = 5.0
_END_S = 60.0

_Mark = Callable[[], DeviceEvent | None]
"""Marks what a dump has to wait for on the device: once for all dumps that begin together."""

logger = logging.getLogger("vllm.kvstored")


@dataclass
class _Dump:
    run: DumpRun
    step: int
    tasks: list[Task]
    """All that read the engine's memory; the first tells what became of the blocks."""


@dataclass
class _Layerwise:
    run: DumpRun
    session: DumpSession
    tasks: list[Task] = field(default_factory=list)
    layers: set[int] = field(default_factory=set)
    broken: bool = False


class Dumper:
    """Starts dumps and knows whose blocks they still read."""

    def __init__(
        self,
        settings: ConnectorSettings,
        namespaces: NamespaceCache,
        addresses: BlockAddresses,
        memory: EngineMemory,
        statistics: Accumulator,
        *,
        enabled: bool,
    ) -> None:
        self._settings = settings
        self._namespaces = namespaces
        self._addresses = addresses
        self._memory = memory
        self._statistics = statistics
        self._enabled = enabled
        self._block_bytes = sum(addresses.page_bytes)
        self._pending: list[_Dump] = []
        self._layerwise: list[_Layerwise] | None = None
        self._quiet_until = 0.0

    def put_layer(self, metadata: StepMetadata, layer: int) -> None:
        """A layer of this step's blocks is complete: begins to copy it while the next is computed."""
        if self._layerwise is None:
            self._layerwise = self._begin_layerwise(metadata)
        mark = functools.cache(self._memory.mark)
        for dump in self._layerwise:
            self._put(dump, layer, mark)

    def end_step(self, metadata: StepMetadata) -> None:
        """The forward pass is over: begins what wasn't begun layer by layer."""
        mark = functools.cache(self._memory.mark)
        begun, self._layerwise = self._layerwise, None
        whole = metadata.dumps if begun is None else [run for run in metadata.dumps if run.computed_before]
        for dump in begun or ():
            for layer in range(len(self._addresses.layer_names)):
                if layer not in dump.layers:
                    self._put(dump, layer, mark)
            self._pending.append(_Dump(dump.run, metadata.step, [dump.session.task, *dump.tasks]))
        for run in whole:
            self._dump(run, metadata.step, mark)
        self.collect()

    def collect(self) -> None:
        """Accounts for dumps that have ended."""
        still = []
        for dump in self._pending:
            if all(task.check() for task in dump.tasks):
                self._account(dump)
            else:
                still.append(dump)
        self._pending = still

    def has_dumps_of(self, request_id: str) -> bool:
        """Whether a dump still reads blocks of a request."""
        return any(dump.run.request_id == request_id for dump in self._pending)

    def end_dumps_of(self, request_ids: set[str]) -> None:
        """Waits for dumps of requests whose blocks are about to be overwritten; gives them up at their deadline."""
        ending = [dump for dump in self._pending if dump.run.request_id in request_ids]
        self._end(ending, time.monotonic() + self._settings.dump_deadline_ms / 1000)

    def done_through(self, step: int) -> int:
        """The last step up to which every dump has ended."""
        return min((dump.step for dump in self._pending), default=step + 1) - 1

    def close(self, deadline: float) -> None:
        """Waits for all dumps until the deadline, then gives up the rest."""
        for dump in self._layerwise or ():
            dump.session.abort()
            self._pending.append(_Dump(dump.run, 0, [dump.session.task, *dump.tasks]))
        self._layerwise = None
        self._end(self._pending, deadline)
        self.collect()

    def _begin_layerwise(self, metadata: StepMetadata) -> list[_Layerwise]:
        begun = []
        for run in metadata.dumps:
            if run.computed_before or not self._welcome(run):
                continue
            try:
                session = self._namespaces.get(run.variant).begin_dump(
                    run.hashes,
                    parent=run.parent,
                    durability=self._settings.durability,
                    timeout_ms=_RESERVE_TIMEOUT_MS,
                )
            except KvstoredError as error:
                self._refused(run, error)
                continue
            begun.append(_Layerwise(run, session))
        return begun

    def _put(self, dump: _Layerwise, layer: int, mark: _Mark) -> None:
        dump.layers.add(layer)
        if dump.broken:
            return
        try:
            addresses = self._addresses.of_layer(dump.run.block_ids, layer)
            pieces = self._addresses.piece_bytes(layer)
            task = dump.session.put_shard(layer, addresses, pieces=pieces, device=self._memory.device, after=mark())
            dump.tasks.append(task)
        except KvstoredError as error:
            dump.broken = True
            dump.session.abort()
            self._refused(dump.run, error)

    def _dump(self, run: DumpRun, step: int, mark: _Mark) -> None:
        if not self._welcome(run):
            return
        try:
            task = self._namespaces.get(run.variant).dump(
                run.hashes,
                self._addresses.of(run.block_ids),
                parent=run.parent,
                durability=self._settings.durability,
                timeout_ms=self._settings.dump_deadline_ms,
                pieces=self._addresses.piece_bytes(),
                device=self._memory.device,
                after=mark(),
            )
        except KvstoredError as error:
            self._refused(run, error)
        else:
            self._pending.append(_Dump(run, step, [task]))

    def _welcome(self, run: DumpRun) -> bool:
        """Whether to begin another dump now."""
        if not self._enabled:
            return False
        if len(self._pending) >= _MOST_PENDING:
            self._statistics.add("skipped_blocks", len(run.hashes), "busy")
            return False
        if time.monotonic() < self._quiet_until:
            self._statistics.add("skipped_blocks", len(run.hashes), "error")
            return False
        return True

    def _refused(self, run: DumpRun, error: KvstoredError) -> None:
        busy = isinstance(error, Busy)
        self._statistics.add("skipped_blocks", len(run.hashes), "busy" if busy else "error")
        if not busy:
            self._quiet_until = time.monotonic() + _QUIET_S
            logger.warning("kvstored: %d blocks not dumped: %s; no dumps for %.0f s", len(run.hashes), error, _QUIET_S)

    def _account(self, dump: _Dump) -> None:
        report = dump.tasks[0].report()
        if report is None:
            return
        failed = len(report.failed)
        self._statistics.add("dump_seconds", report.seconds)
        self._statistics.add("dumped_blocks", report.blocks - failed)
        self._statistics.add("dumped_bytes", (report.blocks - failed) * self._block_bytes)
        if failed:
            late = report.seconds >= self._settings.dump_deadline_ms / 1000
            self._statistics.add("skipped_blocks", failed, "late" if late else "error")
            logger.warning(
                "kvstored: %d of %d blocks not dumped: %s", failed, report.blocks, "; ".join(report.errors) or "unknown"
            )

    def _end(self, dumps: list[_Dump], deadline: float) -> None:
        for dump in dumps:
            for task in dump.tasks:
                try:
                    task.wait(max(0.0, deadline - time.monotonic()))
                except TimedOut:
                    task.cancel()
        for dump in dumps:
            for task in dump.tasks:
                try:
                    task.wait(_END_S)
                except TimedOut:
                    logger.error("kvstored: a cancelled dump of %s hasn't ended", dump.run.request_id)
