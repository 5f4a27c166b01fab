"""What the scheduler's side remembers of a request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvstored.vllm.metadata import Variant


@dataclass
class Match:
    """What a lookup found, kept while the scheduler asks again and again for a request that waits for room."""

    first: int
    blocks: int
    found_at: float


@dataclass
class RequestState:
    """What the scheduler's side remembers of a request."""

    request: Any
    variant: Variant
    block_ids: list[int] = field(default_factory=list)
    dumped_blocks: int = 0
    """Blocks from the start that need no dump any more: loaded, found, or given to the workers to dump."""
    computed_tokens: int = 0
    """Tokens whose KV is there after the last scheduled step."""
    computed_before: int = 0
    """Tokens whose KV was there before the last scheduled step."""
    last_dump_step: int = -1
    match: Match | None = None
    hit_tiers: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.uint8))
    """Tier of each block of the last match."""
    loading: bool = False
    """Whether the engine holds the blocks until a load between steps has ended."""
    may_load: bool = True
    """Off after a failed load: what failed once is computed."""
