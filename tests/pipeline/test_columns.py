"""Columns come to the same in C and in Python, to the bit, and what is no column is refused by both."""

from __future__ import annotations

import math
from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_ml.core.native import load
from otel_ml.pipeline import columns

COMPILED = load("otel_ml.pipeline._columns")

INSTANTS = st.lists(st.integers(0, 1 << 60), min_size=1, max_size=60)
NUMBERS = st.lists(st.floats(), min_size=1)

needs_compiled = pytest.mark.skipif(COMPILED is None, reason="nothing is compiled here")


def whole(*values: int) -> array[int]:
    """A column of nanoseconds."""
    return array("q", values)


def real(*values: float) -> array[float]:
    """A column of floats."""
    return array("d", values)


def bits(told: Any) -> Any:
    """What was said, in what tells -0.0 from 0.0 and one NaN from none."""
    if isinstance(told, float):
        return told.hex()
    return [type(told), *map(bits, told)] if isinstance(told, (array, list, tuple)) else told


def test_combined() -> None:
    """A term's instants are a cycle apart, and are added or subtracted."""
    starts, ends = whole(0, 10, 20, 30, 40), whole(5, 17, 26, 38, 49)
    assert columns.combined(starts, ends, 2, 2, ((2, False, False), (0, False, True))) == whole(20, 20)
    assert columns.combined(starts, ends, 2, 2, ((1, False, True), (1, True, False))) == whole(7, 8)
    assert columns.combined(starts, ends, 2, 2, ()) == whole(0, 0)
    assert columns.combined(starts, ends, 2, 0, ((4, False, False),)) == whole()


def test_follow() -> None:
    """Each event starts at least so long after the end of the one before; the last one's end is nobody's."""
    assert columns.follow(whole(1, 5, 99), whole(0, 2, 6), 1)
    assert not columns.follow(whole(1, 6, 99), whole(0, 2, 6), 1)
    assert columns.follow(whole(1, 6, 99), whole(0, 2, 6), 0)
    assert columns.follow(whole(), whole(), 1)


def test_in_seconds() -> None:
    """Nanoseconds are divided to the nearest float."""
    assert columns.in_seconds(whole(1, 1_500_000_000)) == real(1e-9, 1.5)


def test_floats() -> None:
    """Only what is floats throughout is a column."""
    assert columns.floats([1.0, 2.5]) == real(1.0, 2.5)
    assert [columns.floats(other) for other in ([], [1.0, None], [1.0, 2], [True])] == [None] * 4


def test_extremes() -> None:
    """The least and largest of what is finite, and how much is not."""
    assert columns.extremes(real(2.0, math.nan, -1.0, math.inf)) == (-1.0, 2.0, 2)
    assert columns.extremes(real()) == (math.inf, -math.inf, 0)


def test_added() -> None:
    """The sum of nanoseconds, and the largest."""
    assert columns.added(whole(3, -1, 2)) == (4, 3)


def test_spread() -> None:
    """Each bin's mean, least and largest, the last bin's of as many as there are; a NaN is what Python makes of it."""
    told = columns.spread(real(1.0, 3.0, 2.0, 5.0, 4.0), 2)
    assert told == (real(2.0, 3.5, 4.0), real(1.0, 2.0, 4.0), real(3.0, 5.0, 4.0))
    assert math.isnan(columns.spread(real(math.nan, 1.0), 2)[0][0])


def test_rounded() -> None:
    """Six digits, as they are printed."""
    assert columns.rounded(real(1 / 3, 1234567.0, -math.inf, 0.1)) == [0.333333, 1234570.0, -math.inf, 0.1]


def test_tally() -> None:
    """A value on a bound is below it; of equal values the first is the least, and the largest."""
    assert columns.tally(real(0.5, 3.0, 1.0, 9.0), (1, 5.0), 2.0) == ([2, 1, 1], 15.5, 0.5, 9.0)
    assert bits(columns.tally(real(-0.0, 0.0), (), 0))[-2:] == [(-0.0).hex(), (-0.0).hex()]


@needs_compiled
@given(instants=INSTANTS, data=st.data())
def test_combined_alike(instants: list[int], data: st.DataObject) -> None:
    """C and Python combine the same instants to the same."""
    cycle = data.draw(st.integers(1, len(instants)))
    count = data.draw(st.integers(0, 1 + (len(instants) - 1) // cycle))
    most = len(instants) - 1 - max(0, count - 1) * cycle
    terms = tuple(data.draw(st.lists(st.tuples(st.integers(0, most), st.booleans(), st.booleans()), max_size=6)))
    asked = (whole(*instants), whole(*instants[::-1]), cycle, count, terms)
    assert bits(COMPILED.combined(*asked)) == bits(columns._combined(*asked))


@needs_compiled
@given(ends=INSTANTS, starts=INSTANTS, gap=st.integers(-2, 2))
def test_follow_alike(ends: list[int], starts: list[int], gap: int) -> None:
    """C and Python see the same order."""
    asked = (whole(*ends), whole(*starts), gap)
    assert COMPILED.follow(*asked) is columns._follow(*asked)


@needs_compiled
@given(values=st.lists(st.integers(-(1 << 56), 1 << 56), min_size=1))
def test_instants_alike(values: list[int]) -> None:
    """C and Python add nanoseconds, and divide them to the same bit."""
    assert COMPILED.added(whole(*values)) == columns._added(whole(*values))
    assert bits(COMPILED.in_seconds(whole(*values))) == bits(columns._in_seconds(whole(*values)))


@needs_compiled
@given(values=NUMBERS, stride=st.integers(1, 9))
def test_numbers_alike(values: list[float], stride: int) -> None:
    """C and Python say the same of the same floats, infinities and NaN included."""
    column = real(*values)
    assert bits(COMPILED.floats(values)) == bits(columns._floats(values))
    assert bits(COMPILED.extremes(column)) == bits(columns._extremes(column))
    assert bits(COMPILED.spread(column, stride)) == bits(columns._spread(column, stride))
    assert bits(COMPILED.rounded(column)) == bits(columns._rounded(column))


@needs_compiled
@given(
    values=st.lists(st.floats(allow_nan=False), min_size=1),
    bounds=st.lists(st.floats(allow_nan=False)).map(sorted).map(tuple),
    start=st.floats(allow_nan=False),
)
def test_tally_alike(values: list[float], bounds: tuple[float, ...], start: float) -> None:
    """C and Python count, add and compare to the same bit."""
    asked = (real(*values), bounds, start)
    assert bits(COMPILED.tally(*asked)) == bits(columns._tally(*asked))


@needs_compiled
@pytest.mark.parametrize(
    ("function", "given", "error"),
    [
        ("combined", (whole(1), whole(2), 1, 1, ((1, False, False),)), IndexError),
        ("combined", (whole(1), whole(2), 1, 1, ((-1, False, False),)), IndexError),
        ("combined", (whole(1), whole(2), 0, 1, ()), ValueError),
        ("combined", (whole(1), whole(2), 1, 1 << 62, ((0, False, False),)), ValueError),
        ("combined", (whole(1), real(2.0), 1, 1, ()), TypeError),
        ("combined", ([1], whole(2), 1, 1, ()), TypeError),
        ("combined", (whole(1), whole(2), 1, 1, (7,)), TypeError),
        ("combined", (whole(1), whole(2), 1, 1), TypeError),
        ("follow", (whole(1), [2], 1), TypeError),
        ("added", (whole(),), ValueError),
        ("added", (real(1.0),), TypeError),
        ("in_seconds", (["1"],), TypeError),
        ("in_seconds", (array("i", [1]),), TypeError),
        ("floats", ((1.0,),), TypeError),
        ("extremes", (whole(1),), TypeError),
        ("spread", ([1.0, None], 2), TypeError),
        ("spread", (real(1.0), 0), ValueError),
        ("spread", (real(1.0),), TypeError),
        ("rounded", (b"12345678",), TypeError),
        ("tally", (real(), (), 0.0), ValueError),
        ("tally", (real(1.0), ("1",), 0.0), TypeError),
        ("tally", (real(1.0), [1.0], 0.0), TypeError),
    ],
)
def test_refused(function: str, given: tuple[Any, ...], error: type[Exception]) -> None:
    """What is not such a column is an error in C, too, and no crash."""
    with pytest.raises(error):
        getattr(COMPILED, function)(*given)
