"""Medians, spreads and ratios of what was measured, and tables of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing."""

    median: float
    lowest: float
    highest: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value; without any, of nothing but NaN."""
        if not values:
            return cls(math.nan, math.nan, math.nan, 0)
        return cls(statistics.median(values), min(values), max(values), len(values))

    def shown(self, factor: float = 1.0, digits: int = 0) -> str:
        """Median and, in brackets, the extremes, each times the factor."""
        numbers = (f"{value * factor:.{digits}f}" for value in (self.median, self.lowest, self.highest))
        return "{} ({} to {})".format(*numbers)


def ratios(values: Sequence[float], references: Sequence[float]) -> Spread:
    """Of measurements to those made beside them in the same rounds."""
    return Spread.of([value / reference for value, reference in zip(values, references, strict=True) if reference > 0])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under one another, in Markdown."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "| " + " | ".join("-" * width for width in widths) + " |"
    return "\n".join([line(header), rule, *map(line, rows)])
