"""UCM's store interface as recorded from its release 0.8: the methods a store has, and their parameters."""

from __future__ import annotations

METHODS: dict[str, tuple[str, ...]] = {
    "cc_store": (),
    "lookup": ("block_ids",),
    "lookup_on_prefix": ("block_ids",),
    "lookup_on_reverse": ("block_ids",),
    "prefetch": ("block_ids",),
    "load": ("block_ids", "shard_index", "dst_tensor"),
    "dump": ("block_ids", "shard_index", "src_tensor"),
    "load_data": ("block_ids", "shard_index", "dst_addr"),
    "dump_data": ("block_ids", "shard_index", "src_addr", "prerequisite_handle"),
    "wait": ("task",),
    "check": ("task",),
}
