"""`kvstored.mooncake.engine` under Mooncake's name."""

from kvstored.mooncake.engine import TransferEngine, TransferNotify, TransferOpcode

__all__ = ["TransferEngine", "TransferNotify", "TransferOpcode"]
