"""Store events as vLLM's KV events, with what is known of the blocks' tokens."""

from __future__ import annotations

import itertools
import logging
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from vllm.distributed.kv_events import (
    MEDIUM_CPU,
    MEDIUM_STORAGE,
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KVCacheEvent,
)
from vllm.v1.core.kv_cache_utils import (
    BlockHash,
    generate_block_hash_extra_keys,
    maybe_convert_block_hash,
    to_event_extra_keys,
)

from kvstored.vllm.residency import Residency

OWNERSHIP = "kvstored"
"""Tells our tiers from other connectors' of the same medium."""

_MEMORY_TIERS = ("Cache", "Staging")
_EVENT_BLOCKS = 256
_KNOWN_BLOCKS = 32_768
_RESIDENT_BLOCKS = 262_144

logger = logging.getLogger("vllm.kvstored")


class StoreEvents(Protocol):
    """A batch of the store's events, as columns of equal length."""

    next: int
    lost: bool
    namespaces: Sequence[bytes]
    kinds: Sequence[int]
    tiers: Sequence[int]
    namespace_indices: Sequence[int]
    hashes: Sequence[bytes]


class _Known(NamedTuple):
    """What a request told of a block."""

    parent: bytes | None
    tokens: array[int]
    lora_id: int | None
    lora_name: str | None
    extra_keys: tuple[Any, ...] | None


class EventTranslator:
    """Turns store events into KV events. Any thread may call; nothing raises.

    Token ids and parents are known for the blocks of requests that this engine has seen lately. Others, which other
    engines stored, are published as vLLM's offloading does it: with their hash, without tokens, of block size 0.
    """

    def __init__(
        self,
        ranks: int,
        block_tokens: int,
        *,
        tier_names: Sequence[str] = (),
        group_index: int = 0,
        kv_cache_spec_kind: str | None = None,
        kv_cache_spec_sliding_window: int | None = None,
        known_blocks: int = _KNOWN_BLOCKS,
        resident_blocks: int = _RESIDENT_BLOCKS,
    ) -> None:
        """Starts knowing nothing.

        Args:
            ranks: how many namespaces (ranks) hold a part of each block.
            block_tokens: tokens per block.
            tier_names: the store's tiers, by index; see also `use_tiers`.
            group_index: the blocks' KV cache group.
            kv_cache_spec_kind: its kind, as vLLM names it.
            kv_cache_spec_sliding_window: its window in tokens, if it has one.
            known_blocks: of how many blocks to keep the tokens.
            resident_blocks: of how many blocks to keep where they are stored.
        """
        self._ranks = ranks
        self._resident_blocks = resident_blocks
        self._residency = self._nothing_resident(tier_names)
        self._block_tokens = block_tokens
        self._group: dict[str, Any] = {"group_idx": group_index, "ownership": OWNERSHIP}
        self._kind: dict[str, Any] = {
            "kv_cache_spec_kind": kv_cache_spec_kind,
            "kv_cache_spec_sliding_window": kv_cache_spec_sliding_window,
        }
        self._limit = known_blocks
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._lock = threading.Lock()
        self._complained: set[str] = set()

    def remember(
        self, request: Any, hashes: Sequence[bytes], first_block: int = 0, parent: bytes | None = None
    ) -> None:
        """Keeps the tokens of a request's blocks, in case that they are stored.

        `hashes` are those of the blocks from `first_block` on; `parent` is the hash before them, if any. Blocks whose
        tokens the request doesn't have yet are left out.
        """
        try:
            with self._lock:
                self._remember(request, hashes, first_block, parent)
        except Exception as error:
            self._complain("tokens of a request can't be kept for KV events", error)

    def translate(self, batch: StoreEvents, ranks: Mapping[bytes, int]) -> list[KVCacheEvent]:
        """KV events for a batch; `ranks` tells which namespaces are this engine's, and of which rank."""
        try:
            with self._lock:
                lost = self._clear() if batch.lost else []
                rank_of = [ranks.get(bytes(namespace), -1) for namespace in batch.namespaces]
                rows = zip(batch.kinds, batch.tiers, batch.namespace_indices, batch.hashes, strict=True)
                stored, removed = self._residency.apply(
                    (int(kind), int(tier), rank_of[namespace], bytes(block_hash))
                    for kind, tier, namespace, block_hash in rows
                )
                return [*lost, *self._removed(removed), *self._stored(stored)]
        except Exception as error:
            self._complain("store events can't be published", error)
            return []

    def clear(self) -> list[KVCacheEvent]:
        """Forgets what is stored where, as after lost events; returns the KV events that tell so."""
        try:
            with self._lock:
                return self._clear()
        except Exception as error:
            self._complain("store events can't be published", error)
            return []

    def use_tiers(self, tier_names: Sequence[str]) -> list[KVCacheEvent]:
        """Another store, which has these tiers: forgets what is stored where; returns the KV events that tell so."""
        events = self.clear()
        with self._lock:
            self._residency = self._nothing_resident(tier_names)
        return events

    def _nothing_resident(self, tier_names: Sequence[str]) -> Residency:
        media = [MEDIUM_CPU if name in _MEMORY_TIERS else MEDIUM_STORAGE for name in tier_names]
        return Residency(media, self._ranks, self._resident_blocks)

    def _remember(self, request: Any, hashes: Sequence[bytes], first_block: int, parent: bytes | None) -> None:
        size = self._block_tokens
        lora = request.lora_request
        lora_id, lora_name = (lora.adapter_id, lora.name) if lora is not None else (None, None)
        plain = lora is None and not (request.mm_features or request.cache_salt or request.prompt_embeds is not None)
        feature = 0
        count = min(len(hashes), request.num_tokens // size - first_block, self._limit)
        for index, block_hash in enumerate(hashes[: max(count, 0)]):
            if block_hash in self._known:
                self._known.move_to_end(block_hash)
            else:
                start = (first_block + index) * size
                extra = None
                if not plain:
                    extra, feature = generate_block_hash_extra_keys(request, start, start + size, feature)
                tokens = array("i", request.all_token_ids[start : start + size])
                self._known[block_hash] = _Known(parent, tokens, lora_id, lora_name, extra)
            parent = block_hash
        while len(self._known) > self._limit:
            self._known.popitem(last=False)

    def _clear(self) -> list[KVCacheEvent]:
        """Takes back what was published. Everything, the engine's own blocks too, only where that isn't known."""
        forgot = self._residency.forgot
        present = self._residency.clear()
        return [AllBlocksCleared()] if forgot else list(self._removed(present))

    def _removed(self, removed: Mapping[str, list[bytes]]) -> Iterator[KVCacheEvent]:
        for medium, hashes in removed.items():
            for start in range(0, len(hashes), _EVENT_BLOCKS):
                external = [maybe_convert_block_hash(BlockHash(h)) for h in hashes[start : start + _EVENT_BLOCKS]]
                yield BlockRemoved(block_hashes=external, medium=medium, **self._group)

    def _stored(self, stored: Mapping[str, list[bytes]]) -> Iterator[KVCacheEvent]:
        for medium, hashes in stored.items():
            known = {h: entry for h in hashes if (entry := self._known.get(h)) is not None}
            for run in _runs(known):
                yield self._run_stored(run, known, medium)
            for block_hash in hashes:
                if block_hash not in known:
                    yield self._unknown_stored(block_hash, medium)

    def _run_stored(self, run: Sequence[bytes], known: Mapping[bytes, _Known], medium: str) -> BlockStored:
        first = known[run[0]]
        extra_keys = [known[h].extra_keys for h in run]
        return BlockStored(
            block_hashes=[maybe_convert_block_hash(BlockHash(h)) for h in run],
            parent_block_hash=None if first.parent is None else maybe_convert_block_hash(BlockHash(first.parent)),
            token_ids=list(itertools.chain.from_iterable(known[h].tokens for h in run)),
            block_size=self._block_tokens,
            lora_id=first.lora_id,
            medium=medium,
            lora_name=first.lora_name,
            extra_keys=to_event_extra_keys(extra_keys) if any(extra_keys) else None,
            **self._group,
            **self._kind,
        )

    def _unknown_stored(self, block_hash: bytes, medium: str) -> BlockStored:
        return BlockStored(
            block_hashes=[maybe_convert_block_hash(BlockHash(block_hash))],
            parent_block_hash=None,
            token_ids=[],
            block_size=0,
            lora_id=None,
            medium=medium,
            lora_name=None,
            **self._group,
        )

    def _complain(self, what: str, error: Exception) -> None:
        if what not in self._complained:
            self._complained.add(what)
            logger.warning("kvstored: %s: %s", what, error, exc_info=error)


def _runs(known: Mapping[bytes, _Known]) -> Iterable[list[bytes]]:
    """Chains of blocks, each the next one's parent; a block comes after its parent's chain."""
    children: dict[bytes, list[bytes]] = {}
    waiting: list[bytes] = []
    for block_hash, entry in known.items():
        if entry.parent is not None and entry.parent in known:
            children.setdefault(entry.parent, []).append(block_hash)
        else:
            waiting.append(block_hash)
    waiting.reverse()
    while waiting:
        run = [waiting.pop()]
        while following := children.pop(run[-1], None):
            waiting.extend(following[1:])
            if len(run) == _EVENT_BLOCKS:
                waiting.append(following[0])
                break
            run.append(following[0])
        yield run
