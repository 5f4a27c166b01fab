"""A worker's side: moves blocks between the store and the engine's KV cache."""

from __future__ import annotations

import time

from kvstored.engine_memory import EngineMemory
from kvstored.vllm.configuration import ConnectorSettings
from kvstored.vllm.dumping import Dumper
from kvstored.vllm.geometry import BlockAddresses
from kvstored.vllm.loading import Loader
from kvstored.vllm.measures import Accumulator
from kvstored.vllm.metadata import StepMetadata, WorkerReport
from kvstored.vllm.namespaces import NamespaceCache


class WorkerSide:
    """Lives in each process that computes. Every method is called from the worker's thread."""

    def __init__(
        self,
        settings: ConnectorSettings,
        namespaces: NamespaceCache,
        addresses: BlockAddresses,
        memory: EngineMemory,
        statistics: Accumulator,
        *,
        dumps: bool,
    ) -> None:
        """Takes what belongs to this rank; `dumps` is off where another rank stores the same KV."""
        self._settings = settings
        self._addresses = addresses
        self._loader = Loader(settings, namespaces, addresses, memory, statistics)
        self._dumper = Dumper(settings, namespaces, addresses, memory, statistics, enabled=dumps)
        self._step = 0
        self._retained: set[str] = set()

    def prepare(self, metadata: StepMetadata) -> None:
        """Before a step touches the KV cache: blocks of preempted requests are about to be overwritten."""
        if metadata.preempted:
            self._dumper.end_dumps_of(metadata.preempted)

    def start_loads(self, metadata: StepMetadata) -> None:
        """Begins this step's loads; waits for those inside the step unless they come layer by layer."""
        self._loader.start(metadata)

    def wait_for_layer(self, layer_name: str) -> None:
        """Waits until a layer's part of the loads inside this step is there, or its deadline has passed."""
        layer = self._addresses.index.get(layer_name)
        if layer is not None:
            self._loader.wait_for_layer(layer)

    def save_layer(self, metadata: StepMetadata, layer_name: str) -> None:
        """A layer's KV of this step has been computed."""
        layer = self._addresses.index.get(layer_name)
        if self._settings.use_layerwise and layer is not None:
            self._dumper.put_layer(metadata, layer)

    def end_step(self, metadata: StepMetadata) -> None:
        """After the forward pass: settles the loads inside the step and begins the dumps."""
        self._step = metadata.step
        self._retained |= metadata.retained
        self._loader.settle()
        self._dumper.end_step(metadata)

    def finished(self) -> tuple[set[str], set[str]]:
        """Requests whose blocks may be freed, and requests whose loads outside the step have ended."""
        self._dumper.collect()
        free = {request for request in self._retained if not self._dumper.has_dumps_of(request)}
        self._retained -= free
        return free, self._loader.ended_requests()

    def take_failed_blocks(self) -> set[int]:
        """Blocks that were to be loaded and weren't."""
        return self._loader.take_failed_blocks()

    def report(self) -> WorkerReport:
        """What the scheduler's side learns of this step."""
        return WorkerReport(
            step=self._step,
            dumps_done_through=self._dumper.done_through(self._step),
            failed_requests=self._loader.take_failed_requests(),
            observations=self._loader.take_observations(),
        )

    def close(self, timeout_s: float) -> None:
        """Ends everything under way: nobody touches the KV cache afterwards."""
        deadline = time.monotonic() + timeout_s
        self._loader.close(deadline)
        self._dumper.close(deadline)
