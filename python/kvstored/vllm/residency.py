"""Which blocks are stored where, as far as the store's events told: turns events into changes per medium."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

STORED, REMOVED = 0, 1
"""Kinds of store events."""


class Residency:
    """The tiers and ranks that hold each block. Bounded: the blocks not heard of for longest are forgotten.

    A block is in a medium when every rank's part of it is in one of the medium's tiers.
    """

    def __init__(self, media: Sequence[str], ranks: int, limit: int) -> None:
        """`media`: each tier's medium. `ranks`: how many namespaces hold a part of each block."""
        self.ranks = ranks
        self.forgot = False
        """Whether blocks had to be forgotten since the last clear."""
        self._limit = limit
        self._tier_media = list(media)
        self._shifts: dict[str, list[int]] = {}
        for tier, medium in enumerate(media):
            self._shifts.setdefault(medium, []).append(tier * ranks)
        self._everyone = (1 << ranks) - 1
        self._held: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def apply(
        self, events: Iterable[tuple[int, int, int, bytes]]
    ) -> tuple[dict[str, list[bytes]], dict[str, list[bytes]]]:
        """Takes events (kind, tier, rank, hash), in order, and tells what was stored and removed in the end, by medium.

        What comes and goes within the events doesn't show, nor what was known before.
        """
        before: dict[bytes, set[str]] = {}
        removed: dict[str, list[bytes]] = {}
        held = self._held
        for kind, tier, rank, block_hash in events:
            if not (0 <= tier < len(self._tier_media) and 0 <= rank < self.ranks):
                continue
            known = held.get(block_hash)
            if known is None:
                if kind == REMOVED:
                    if self.forgot and block_hash not in before:
                        # It may have been reported stored before it was forgotten.
                        self._note(removed, self._tier_media[tier], block_hash)
                    continue
                known = 0
            if block_hash not in before:
                before[block_hash] = self._media(known)
            bit = 1 << (tier * self.ranks + rank)
            now = known | bit if kind == STORED else known & ~bit
            if now:
                held[block_hash] = now
                held.move_to_end(block_hash)
            else:
                held.pop(block_hash, None)
        stored: dict[str, list[bytes]] = {}
        for block_hash, media in before.items():
            after = self._media(held.get(block_hash, 0))
            for medium in after - media:
                self._note(stored, medium, block_hash)
            for medium in media - after:
                self._note(removed, medium, block_hash)
        while len(held) > self._limit:
            held.popitem(last=False)
            self.forgot = True
        return stored, {medium: list(dict.fromkeys(hashes)) for medium, hashes in removed.items()}

    def clear(self) -> dict[str, list[bytes]]:
        """Forgets everything; tells what was stored, by medium."""
        present: dict[str, list[bytes]] = {}
        for block_hash, known in self._held.items():
            for medium in self._media(known):
                self._note(present, medium, block_hash)
        self._held.clear()
        self.forgot = False
        return present

    def _media(self, held: int) -> set[str]:
        if not held:
            return set()
        media = set()
        for medium, shifts in self._shifts.items():
            ranks = 0
            for shift in shifts:
                ranks |= held >> shift
            if ranks & self._everyone == self._everyone:
                media.add(medium)
        return media

    @staticmethod
    def _note(by_medium: dict[str, list[bytes]], medium: str, block_hash: bytes) -> None:
        by_medium.setdefault(medium, []).append(block_hash)
