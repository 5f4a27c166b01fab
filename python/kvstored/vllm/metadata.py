"""What the scheduler's and the workers' sides of the connector tell one another, step by step.

vLLM carries these between its processes; nothing here holds anything but plain data.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata


@dataclass(frozen=True)
class Variant:
    """What sets blocks of one model apart beyond the model: adapter, salt, and the weights' state."""

    lora: str = ""
    """Name and digest of the LoRA adapter; empty for none."""
    cache_salt: str = ""
    """The request's salt; empty for none."""
    weights_epoch: str = ""
    """Changes whenever the engine asks to forget what was computed with earlier weights."""


@dataclass
class BlockRun:
    """Consecutive blocks of one request."""

    request_id: str
    variant: Variant
    hashes: list[bytes]
    """The engine's block hashes, in order."""
    block_ids: list[int]
    """Where the blocks lie in the engine's KV cache; as many as hashes."""


@dataclass
class LoadRun(BlockRun):
    """Blocks to fill from the store."""

    asynchronous: bool = False
    """Whether the request waits outside the step for it."""
    timeout_ms: int = 5000
    """When the blocks count as not loaded, from the worker's start of the load."""


@dataclass
class DumpRun(BlockRun):
    """Blocks whose KV is complete after this step, to be stored."""

    parent: bytes | None = None
    """Hash of the block before the first; None at the start of a prompt."""
    computed_before: bool = False
    """Whether the KV was complete before this step's forward pass."""


@dataclass
class StepMetadata(KVConnectorMetadata):
    """Scheduler to workers, once a step."""

    step: int = 0
    loads: list[LoadRun] = field(default_factory=list)
    dumps: list[DumpRun] = field(default_factory=list)
    preempted: set[str] = field(default_factory=set)
    """Requests whose blocks may be overwritten from this step on."""
    retained: set[str] = field(default_factory=set)
    """Finished requests whose blocks stay allocated until their dumps have ended."""


@dataclass
class LoadObservation:
    """How long a load took on one rank, for the governor."""

    request_id: str
    blocks_by_tier: dict[int, int]
    bytes_per_block: int
    seconds: float
    late: bool = False


@dataclass
class WorkerReport(KVConnectorWorkerMetadata):
    """Workers to scheduler, once a step; one of all ranks after aggregation."""

    step: int
    """The last step whose loads have all been settled on every rank."""
    dumps_done_through: int
    """Every dump of this step and the steps before has ended on every rank."""
    failed_requests: set[str] = field(default_factory=set)
    """Requests of which some block wasn't loaded."""
    observations: list[LoadObservation] = field(default_factory=list)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> WorkerReport:
        """Combines the reports of two ranks: something has happened when it has on both."""
        assert isinstance(other, WorkerReport)
        return WorkerReport(
            step=min(self.step, other.step),
            dumps_done_through=min(self.dumps_done_through, other.dumps_done_through),
            failed_requests=self.failed_requests | other.failed_requests,
            observations=self.observations + other.observations,
        )
