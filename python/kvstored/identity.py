"""What makes KV bytes meaningful, and how a block is made up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import chain

from kvstored.errors import InvalidInput

_MOST = 2**32 - 1


@dataclass(frozen=True)
class Identity:
    """Everything that makes KV bytes meaningful. Workers share blocks exactly when all of it is equal.

    Texts have at most 1,024 bytes; a rank is below its size. Raises :class:`~kvstored.errors.InvalidInput`, naming the
    field, for numbers below 0 or above 2^32 - 1; lengths and ranks are checked where a namespace is opened.
    """

    tenant: str = ""
    model: str = ""
    weights_digest: str = ""
    lora: str = ""
    dtype: str = ""
    layout_version: int = 0
    block_tokens: int = 0
    tensor_parallel_size: int = 1
    tensor_parallel_rank: int = 0
    pipeline_parallel_size: int = 1
    pipeline_parallel_rank: int = 0
    cache_salt: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, str):
                if not isinstance(value, str):
                    raise InvalidInput(f"identity field {field.name} is not a string: {value!r}")
            elif not isinstance(value, int) or not 0 <= value <= _MOST:
                raise InvalidInput(f"identity field {field.name} is no number from 0 to {_MOST}: {value!r}")


@dataclass(frozen=True)
class Layout:
    """The shards of a block and the tensors of each shard; fixed per namespace.

    ``shards`` has the bytes of each tensor of each shard, in the order in which addresses and tensors are given. Raises
    :class:`~kvstored.errors.InvalidInput` for sizes that are no numbers from 1 to 2^32 - 1; other limits (480 shards,
    4,096 tensors of a shard, 1 GiB of a block) are checked where a namespace is opened.
    """

    shards: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        shards = tuple(tuple(int(size) for size in shard) for shard in self.shards)
        object.__setattr__(self, "shards", shards)
        for index, shard in enumerate(shards):
            for tensor, size in enumerate(shard):
                if not 1 <= size <= _MOST:
                    raise InvalidInput(f"tensor {tensor} of shard {index} has {size} bytes; 1 to {_MOST} are accepted")

    @staticmethod
    def uniform(shards: int, tensors: int, tensor_bytes: int) -> Layout:
        """Make a layout of ``shards`` equal shards of ``tensors`` tensors of ``tensor_bytes`` bytes each."""
        return Layout(((tensor_bytes,) * tensors,) * shards)

    @property
    def payload_bytes(self) -> int:
        """Bytes of all tensors of a block."""
        return sum(chain.from_iterable(self.shards))

    def tensor_bytes(self, shards: Iterable[int] | None = None) -> list[int]:
        """Bytes of each tensor of those shards (by index; all of them by default), flattened in order."""
        chosen = self.shards if shards is None else [self.shards[index] for index in shards]
        return list(chain.from_iterable(chosen))
