"""What the scheduler's side tells the workers in a step; plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata

from kvstored.vllm.handoff.parameters import Source


@dataclass
class Pull:
    """Blocks to fetch for a request that waits for them."""

    source: Source
    block_ids: list[int]
    """Where they go in this engine's KV cache."""
    first_block: int
    """How many of the prompt's blocks come before the first of them."""


@dataclass
class OverlapStep:
    """Scheduler to workers, once a step. Requests are named as decode instances know them."""

    number: int = 0
    withdrawn: list[str] = field(default_factory=list)
    """Their blocks may be overwritten from this step on."""
    announced: list[str] = field(default_factory=list)
    """They will be computed."""
    extended: dict[str, list[int]] = field(default_factory=dict)
    """Further blocks of their prompts."""
    computing: dict[str, int] = field(default_factory=dict)
    """How many blocks are complete when a layer is through with this step."""
    settled: dict[str, int] = field(default_factory=dict)
    """How many blocks earlier steps have completed in all layers."""
    completed: dict[str, str] = field(default_factory=dict)
    """The names of requests of `HandoffStep.holds` that were announced, by this engine's own."""

    def __bool__(self) -> bool:
        return bool(self.withdrawn or self.announced or self.extended or self.computing or self.settled)


@dataclass
class HandoffReport(KVConnectorWorkerMetadata):
    """Workers to scheduler, once a step."""

    step: int
    """The last step that has ended on every rank."""

    def aggregate(self, other: KVConnectorWorkerMetadata) -> HandoffReport:
        """What has happened when it has on both."""
        assert isinstance(other, HandoffReport)
        return HandoffReport(min(self.step, other.step))


@dataclass
class HandoffStep(KVConnectorMetadata):
    """Scheduler to workers, once a step. Requests are this engine's own, by id."""

    holds: dict[str, list[int]] = field(default_factory=dict)
    """Finished requests and their prompts' blocks, which stay until they were fetched or the lease has ended."""
    pulls: dict[str, Pull] = field(default_factory=dict)
    """Requests that wait for their blocks."""
    cancelled: set[str] = field(default_factory=set)
    """Requests that were aborted while they waited; their blocks stay until nothing writes to them any more."""
    lost: dict[str, list[int]] = field(default_factory=dict)
    """Requests that wait for blocks which nobody will fill."""
    given_back: list[Source] = field(default_factory=list)
    """What this engine won't fetch."""
    overlap: OverlapStep = field(default_factory=lambda: OverlapStep())
    """What concerns requests that decode instances follow while they are computed."""
