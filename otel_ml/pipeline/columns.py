"""Arithmetic on columns, one entry a step: in C where it was compiled, and the same in Python.

What the drain computes the program waits for, and most of what it computes for a fast loop is this.
A column is an `array` of 64-bit integers (nanoseconds) or of doubles, which C reads without touching
an object a value; where a value is missing or is no float it is a list.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, bisect_right
from math import inf, isfinite
from operator import add, sub
from typing import TYPE_CHECKING, Any

from otel_ml.core.native import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Terms = tuple[tuple[int, bool, bool], ...]

__all__ = [
    "AT_ONCE",
    "add_up",
    "added",
    "combined",
    "extremes",
    "floats",
    "follow",
    "in_seconds",
    "rounded",
    "spread",
    "tally",
]


def _one_by_one(values: Iterable[float], start: float) -> float:
    for value in values:
        start += value
    return start


add_up: Callable[[Iterable[float], float], float] = _one_by_one if sys.version_info >= (3, 12) else sum
"""Floats added from left to right, as `aggregate()` of the SDK does; since 3.12 `sum()` is more precise than that."""


def _combined(starts: array[int], ends: array[int], cycle: int, count: int, terms: Terms) -> array[int]:
    if not count:
        return array("q")
    total: Iterable[int] | None = None
    for j, of_ends, negative in terms:
        column: Iterable[int] = (ends if of_ends else starts)[j : j + (count - 1) * cycle + 1 : cycle]
        if total is None:
            total = [-v for v in column] if negative else column
        else:
            total = map(sub if negative else add, total, column)
    return array("q", total or [0] * count)


def _follow(ends: array[int], starts: array[int], gap: int) -> bool:
    return min(map(sub, starts[1:], ends), default=gap) >= gap


def _added(values: array[int]) -> tuple[int, int]:
    return sum(values), max(values)


def _in_seconds(values_ns: array[int]) -> array[float]:
    return array("d", [v / 1e9 for v in values_ns])


def _floats(values: Sequence[Any]) -> array[float] | None:
    return array("d", values) if values and set(map(type, values)) == {float} else None


def _extremes(values: array[float]) -> tuple[float, float, int]:
    known: Sequence[float] = values if isfinite(sum(values)) else [v for v in values if isfinite(v)]
    return min(known, default=inf), max(known, default=-inf), len(values) - len(known)


def _spread(values: array[float], stride: int) -> tuple[array[float], array[float], array[float]]:
    bins = [values[n : n + stride] for n in range(0, len(values), stride)]
    means = [add_up(b, 0.0) / len(b) for b in bins]
    return array("d", means), array("d", map(min, bins)), array("d", map(max, bins))


def _rounded(values: array[float]) -> list[float]:
    return [float(f"{v:.6g}") for v in values]


def _tally(values: array[float], bounds: tuple[float, ...], start: float) -> tuple[list[int], float, float, float]:
    ordered = sorted(values)
    counts, done, last = [0] * (len(bounds) + 1), 0, bisect_left(bounds, ordered[-1])
    for bucket in range(bisect_left(bounds, ordered[0]), last):
        cut = bisect_right(ordered, bounds[bucket], done)
        counts[bucket] += cut - done
        done = cut
    counts[last] += len(ordered) - done
    return counts, add_up(values, start), ordered[0], ordered[bisect_left(ordered, ordered[-1])]


_native: Any = load("otel_ml.pipeline._columns")

AT_ONCE = 128 if _native is None else 4096
"""Steps of a column that are computed in about a tenth of a millisecond: the program may wait for all of it."""

combined: Callable[[array[int], array[int], int, int, Terms], array[int]] = (
    _combined if _native is None else _native.combined
)
"""For each of `count` cycles of events, a sum of instants: of each term `(j, of_ends, negative)` the start, or the end,
of the event at `j` from the cycle's first, added or subtracted."""

follow: Callable[[array[int], array[int], int], bool] = _follow if _native is None else _native.follow
"""Whether each event starts at least this long after the end of the one before."""

added: Callable[[array[int]], tuple[int, int]] = _added if _native is None else _native.added
"""Their sum, and the largest. `ValueError` where there is none."""

in_seconds: Callable[[array[int]], array[float]] = _in_seconds if _native is None else _native.in_seconds
"""Nanoseconds as seconds."""

floats: Callable[[Sequence[Any]], array[float] | None] = _floats if _native is None else _native.floats
"""A list as a column; None if it is empty or anything in it is not a float."""

extremes: Callable[[array[float]], tuple[float, float, int]] = _extremes if _native is None else _native.extremes
"""The least and the largest finite one (inf and -inf where there is none), and how many are not finite."""

spread: Callable[[array[float], int], tuple[array[float], array[float], array[float]]] = (
    _spread if _native is None else _native.spread
)
"""The means, least and largest of each `stride` values; the last ones may be fewer."""

rounded: Callable[[array[float]], list[float]] = _rounded if _native is None else _native.rounded
"""To six digits."""

tally: Callable[[array[float], tuple[float, ...], float], tuple[list[int], float, float, float]] = (
    _tally if _native is None else _native.tally
)
"""How many values are in each bucket (up to each bound and with it, and beyond the last), all added to `start` from
left to right, the least and the largest: of equal ones the first. Not for NaN, nor for no value."""
