"""Loads of a worker: from the store into the engine's KV cache, each with a deadline."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import numpy as np

from kvstored import DeviceEvent, KvstoredError, Task, TimedOut
from kvstored.engine_memory import EngineMemory
from kvstored.vllm.configuration import ConnectorSettings
from kvstored.vllm.geometry import BlockAddresses
from kvstored.vllm.measures import Accumulator
from kvstored.vllm.metadata import LoadObservation, LoadRun, StepMetadata
from kvstored.vllm.namespaces import NamespaceCache

_GRACE_S = 0.5
"""A task ends this much after its deadline at the latest; until then its blocks are not let go."""

logger = logging.getLogger("vllm.kvstored")


@dataclass
class _Load:
    run: LoadRun
    task: Task
    deadline: float


class Loader:
    """Starts loads and says what became of them."""

    def __init__(
        self,
        settings: ConnectorSettings,
        namespaces: NamespaceCache,
        addresses: BlockAddresses,
        memory: EngineMemory,
        statistics: Accumulator,
    ) -> None:
        self._layerwise = settings.use_layerwise
        self._namespaces = namespaces
        self._addresses = addresses
        self._piece_bytes = addresses.piece_bytes()
        self._memory = memory
        self._statistics = statistics
        self._block_bytes = sum(addresses.page_bytes)
        self._inside: list[_Load] = []
        self._outside: list[_Load] = []
        self._ended: set[str] = set()
        self._failed_blocks: set[int] = set()
        self._failed_requests: set[str] = set()
        self._observations: list[LoadObservation] = []

    def start(self, metadata: StepMetadata) -> None:
        """Begins a step's loads. Whole-block loads inside the step are waited for."""
        after, ready = self._mark(metadata)
        for run in metadata.loads:
            load = self._begin(run, after) if ready else self._not_begun(run)
            if load is not None:
                (self._outside if run.asynchronous else self._inside).append(load)
            elif run.asynchronous:
                self._ended.add(run.request_id)
        if not self._layerwise:
            self.settle()

    def wait_for_layer(self, layer: int) -> None:
        """Waits until a layer is there for every load inside the step, each until its own deadline."""
        for load in self._inside:
            try:
                load.task.wait_shard(layer, max(0.0, load.deadline - time.monotonic()))
            except TimedOut:
                load.task.cancel()

    def settle(self) -> None:
        """Waits for the end of the loads inside the step."""
        loads, self._inside = self._inside, []
        for load in loads:
            self._wait(load)
            self._account(load)

    def ended_requests(self) -> set[str]:
        """Requests whose loads outside the step have ended since the last call, well or not."""
        still = []
        for load in self._outside:
            if not load.task.check():
                still.append(load)
            elif self._account(load) or not self._memory.is_lost:
                self._ended.add(load.run.request_id)
            else:
                # its blocks may be written at any time from now on: the request keeps them until the engine ends
                logger.error("kvstored: %s stays as it is: the device doesn't end a load into it", load.run.request_id)
        self._outside = still
        ended, self._ended = self._ended, set()
        return ended

    def take_failed_blocks(self) -> set[int]:
        """Blocks found not to be loaded since the last call."""
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed

    def take_failed_requests(self) -> set[str]:
        """Requests of these blocks."""
        failed, self._failed_requests = self._failed_requests, set()
        return failed

    def take_observations(self) -> list[LoadObservation]:
        """How long loads took since the last call."""
        seen, self._observations = self._observations, []
        return seen

    def close(self, deadline: float) -> None:
        """Cancels what is under way and waits for its end."""
        for load in self._inside + self._outside:
            load.task.cancel()
            load.deadline = min(load.deadline, deadline)
        for load in self._inside + self._outside:
            self._wait(load)
        self._inside, self._outside = [], []

    def _mark(self, metadata: StepMetadata) -> tuple[DeviceEvent | None, bool]:
        """What the engine still does with the memory that is loaded into, and whether anything may be loaded at all."""
        if self._memory.is_lost:
            return None, False
        try:
            return (self._memory.mark() if metadata.loads else None), True
        except KvstoredError as error:
            logger.warning("kvstored: nothing is loaded in this step: %s", error)
            return None, False

    def _not_begun(self, run: LoadRun) -> None:
        self._fail(run, run.block_ids, "error")

    def _begin(self, run: LoadRun, after: DeviceEvent | None) -> _Load | None:
        now = time.monotonic()
        if not run.hashes:
            return self._not_begun(run)
        try:
            task = self._namespaces.get(run.variant).load(
                run.hashes,
                self._addresses.of(run.block_ids),
                shard_major=self._layerwise and not run.asynchronous,
                timeout_ms=run.timeout_ms,
                pieces=self._piece_bytes,
                device=self._memory.device,
                after=after,
            )
        except KvstoredError as error:
            logger.warning("kvstored: %d blocks of %s not loaded: %s", len(run.hashes), run.request_id, error)
            self._fail(run, run.block_ids, "error")
            self._statistics.add("unavailable", 1, "load")
            return None
        return _Load(run, task, now + run.timeout_ms / 1000)

    def _wait(self, load: _Load) -> None:
        try:
            load.task.wait(max(0.0, load.deadline - time.monotonic()))
        except TimedOut:
            load.task.cancel()
            try:
                load.task.wait(_GRACE_S)
            except TimedOut:
                # the copy threads are stuck: better a step that is late than blocks that change under the engine
                logger.error("kvstored: a cancelled load of %s hasn't ended", load.run.request_id)
                load.task.wait(60.0)

    def _account(self, load: _Load) -> bool:
        """Notes what became of a load that has ended; whether every block was loaded."""
        run, report = load.run, load.task.report()
        if report is None:
            self._fail(run, run.block_ids, "late")
            return False
        failed = report.failed.tolist()
        if failed:
            cause = (
                "missing" if len(failed) == report.missing else "late" if time.monotonic() >= load.deadline else "error"
            )
            self._fail(run, [run.block_ids[index] for index in failed], cause)
            reasons = "; ".join(report.errors) or "not in the store any more, or damaged"
            logger.warning(
                "kvstored: %d of %d blocks of %s not loaded: %s", len(failed), report.blocks, run.request_id, reasons
            )
        late = time.monotonic() >= load.deadline and bool(failed)
        self._statistics.add("load_seconds", report.seconds)
        tiers = np.bincount(report.tiers[report.tiers >= 0].astype(np.int64))
        by_tier = {tier: int(count) for tier, count in enumerate(tiers) if count}
        for tier, count in by_tier.items():
            name = self._namespaces.tier_name(tier)
            self._statistics.add("loaded_blocks", count, name)
            self._statistics.add("loaded_bytes", count * self._block_bytes, name)
        self._observations.append(LoadObservation(run.request_id, by_tier, self._block_bytes, report.seconds, late))
        return not failed

    def _fail(self, run: LoadRun, block_ids: list[int], cause: str) -> None:
        self._failed_blocks.update(block_ids)
        self._failed_requests.add(run.request_id)
        self._statistics.add("failed_blocks", len(block_ids), cause)
