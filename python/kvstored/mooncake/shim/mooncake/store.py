"""`kvstored.mooncake.store` under Mooncake's name."""

from kvstored.mooncake.store import MooncakeDistributedStore, ReplicateConfig

__all__ = ["MooncakeDistributedStore", "ReplicateConfig"]
