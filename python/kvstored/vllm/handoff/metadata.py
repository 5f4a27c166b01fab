"""What the scheduler's side tells the workers in a step; plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata

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
