"""Arithmetic on columns, one entry a step: in C where it was compiled, and the same in Python.

What the drain computes the program waits for, and most of what it computes for a fast loop is this.
"""

from __future__ import annotations

from operator import add, sub
from typing import TYPE_CHECKING, Any

from otel_ml.core.native import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Terms = tuple[tuple[int, bool, bool], ...]

__all__ = ["combined", "in_seconds", "spread"]


def _combined(starts: list[int], ends: list[int], cycle: int, count: int, terms: Terms) -> list[int]:
    if not count:
        return []
    total: Iterable[int] | None = None
    for j, of_ends, negative in terms:
        column = (ends if of_ends else starts)[j : j + (count - 1) * cycle + 1 : cycle]
        if total is None:
            total = [-v for v in column] if negative else column
        else:
            total = map(sub if negative else add, total, column)
    return list(total or [0] * count)


def _in_seconds(values_ns: list[int]) -> list[float]:
    return [v / 1e9 for v in values_ns]


def _spread(values: Sequence[float], stride: int) -> tuple[list[float], list[float], list[float]]:
    bins = [values[n : n + stride] for n in range(0, len(values), stride)]
    return [_sum(b) / len(b) for b in bins], list(map(min, bins)), list(map(max, bins))


def _sum(values: Iterable[float]) -> float:
    total = 0.0
    for value in values:  # from left to right: since 3.12 `sum()` is more precise than that
        total += value
    return total


_native: Any = load("otel_ml.pipeline._columns")

combined: Callable[[list[int], list[int], int, int, Terms], list[int]] = (
    _combined if _native is None else _native.combined
)
"""For each of `count` cycles of events, a sum of instants: of each term `(j, of_ends, negative)` the start, or the end,
of the event at `j` from the cycle's first, added or subtracted."""

in_seconds: Callable[[list[int]], list[float]] = _in_seconds if _native is None else _native.in_seconds
"""Nanoseconds as seconds."""

spread: Callable[[list[float], int], tuple[list[float], list[float], list[float]]] = (
    _spread if _native is None else _native.spread
)
"""The means, least and largest of each `stride` floats; the last ones may be fewer. `TypeError` if one is no number."""
