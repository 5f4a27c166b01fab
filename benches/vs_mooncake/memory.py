"""Memory that stands for an engine's: aligned, in huge pages where there are any, touched before anything is timed."""

from __future__ import annotations

import ctypes
import mmap

HUGE_PAGE = 2 << 20


class Memory:
    """Zeroed bytes with a fixed address."""

    def __init__(self, length: int) -> None:
        self.length = length
        self._mapping = mmap.mmap(-1, length + HUGE_PAGE)
        self._mapping.madvise(mmap.MADV_HUGEPAGE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        self.address = (base + HUGE_PAGE - 1) // HUGE_PAGE * HUGE_PAGE
        self.fill(0)

    def fill(self, byte: int) -> None:
        """Sets every byte."""
        ctypes.memset(self.address, byte, self.length)

    def holds(self, byte: int, length: int, offset: int = 0) -> bool:
        """Whether that many bytes from there on are all the same."""
        return ctypes.string_at(self.address + offset, length) == bytes([byte]) * length

    def places(self, length: int, entries: int) -> list[int]:
        """Offsets for entries of that length, which share places where there isn't enough memory for all."""
        slots = max(self.length // length, 1)
        return [index % slots * length for index in range(entries)]
