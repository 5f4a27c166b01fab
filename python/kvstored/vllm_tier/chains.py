"""Which chunk comes before which, for the prefix-aware order of eviction."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import ReqContext

_GROUP_BYTES = 4


@dataclass
class Chain:
    """The chunks of one request, each with the one before it in its KV cache group. Grows with the request."""

    parents: dict[bytes, bytes | None] = field(default_factory=dict)
    last: dict[bytes, bytes] = field(default_factory=dict)
    seen: int = 0

    @classmethod
    def of(cls, context: ReqContext) -> Chain:
        """The chain kept with the request, brought up to date."""
        chain = context.get_state(cls)
        if chain is None:
            chain = cls()
            context.set_state(chain)
        positions = getattr(context, "_offload_key_positions", {})
        for key in islice(positions, chain.seen, None):
            group = key[-_GROUP_BYTES:]
            chain.parents[key] = chain.last.get(group)
            chain.last[group] = key
        chain.seen = len(positions)
        return chain

    def parent(self, key: bytes) -> bytes | None:
        """The chunk before this one; None for the first and for chunks that are not the request's own."""
        return self.parents.get(key)
