"""The namespaces of an engine's ranks, opened as variants of the model come up."""

from __future__ import annotations

import collections

import numpy as np

from kvstored import Identity, KvstoredError, Layout, Namespace, TooLarge, Unavailable
from kvstored.vllm.hosting import StoreAccess
from kvstored.vllm.identity import with_rank, with_variant
from kvstored.vllm.metadata import Variant

_MOST_VARIANTS = 4096


class NamespaceCache:
    """Namespaces of one rank by variant; the least recently used are forgotten."""

    def __init__(self, access: StoreAccess, identity: Identity, layout: Layout) -> None:
        self._access = access
        self._identity = identity
        self.layout = layout
        self._open: collections.OrderedDict[Variant, Namespace] = collections.OrderedDict()
        self._generation = -1

    def get(self, variant: Variant) -> Namespace:
        """The namespace of a variant.

        Raises:
            Unavailable: while the store is away.
            KvstoredError: as opening fails.
        """
        store = self._access.get()
        if store is None:
            raise Unavailable("the store is away")
        if self._generation != self._access.generation:
            self._open.clear()
            self._generation = self._access.generation
        namespace = self._open.get(variant)
        if namespace is None:
            namespace = store.open_namespace(with_variant(self._identity, variant), self.layout)
            self._open[variant] = namespace
            if len(self._open) > _MOST_VARIANTS:
                self._open.popitem(last=False)
        else:
            self._open.move_to_end(variant)
        return namespace

    def tier_name(self, tier: int) -> str:
        """A tier's name by its index."""
        return self._access.tier_name(tier)

    def known(self) -> dict[bytes, Variant]:
        """Digests of the namespaces that are open, and their variants."""
        return {namespace.digest: variant for variant, namespace in self._open.items()}


class RankNamespaces:
    """The namespaces of every rank that stores a part of each block; a hit counts only if all have it."""

    def __init__(self, access: StoreAccess, base: Identity, layouts: list[Layout], tensor_ranks: list[int]) -> None:
        """Takes the layout of each pipeline rank and the tensor-parallel ranks under whose name KV is stored."""
        self._access = access
        self.ranks = [
            NamespaceCache(access, with_rank(base, stage, rank), layout)
            for stage, layout in enumerate(layouts)
            for rank in tensor_ranks
        ]
        self.block_bytes = max(sum(sum(shard) for shard in layout.shards) for layout in layouts)

    def open_plain(self) -> None:
        """Opens the namespaces of requests without adapter and salt, if the store is there.

        Raises:
            KvstoredError: where they can't ever be opened, as for blocks larger than the store's memory.
        """
        try:
            for rank in self.ranks:
                rank.get(Variant())
        except TooLarge as error:
            raise TooLarge(f"cache_buffer_capacity is too small: {error}") from error
        except KvstoredError as error:
            if not error.retryable:
                raise

    def locate(self, variant: Variant, hashes: list[bytes]) -> np.ndarray:
        """The tier (by index) of each block of the prefix that every rank has; the slowest rank's counts.

        Raises:
            KvstoredError: as the store does.
        """
        tiers: np.ndarray | None = None
        for rank in self.ranks:
            if self._access.get() is None:
                return np.zeros(0, dtype=np.uint8)
            wanted = hashes if tiers is None else hashes[: len(tiers)]
            found = rank.get(variant).locate_prefix(wanted)
            tiers = found if tiers is None else np.maximum(tiers[: len(found)], found)
            if not len(tiers):
                break
        self._access.succeeded()
        return tiers if tiers is not None else np.zeros(0, dtype=np.uint8)

    @property
    def tier_names(self) -> list[str]:
        """Names of the store's tiers."""
        return self._access.tier_names

    def failed(self, error: KvstoredError) -> None:
        """Told of a lookup that wasn't answered."""
        self._access.failed(error)
