"""Columns come to the same in C and in Python, to the bit, and what is no column is refused by both."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_ml.core.native import load
from otel_ml.pipeline import columns

COMPILED = load("otel_ml.pipeline._columns")

INSTANTS = st.lists(st.integers(0, 1 << 60), min_size=1, max_size=60)
NUMBERS = st.one_of(st.floats(), st.integers(-(1 << 60), 1 << 60))

needs_compiled = pytest.mark.skipif(COMPILED is None, reason="nothing is compiled here")


def bits(values: Any) -> Any:
    """Numbers as what tells -0.0 from 0.0 and one NaN from none."""
    return [bits(v) if isinstance(v, list) else float(v).hex() for v in values]


def test_combined() -> None:
    """A term's instants are a cycle apart, and are added or subtracted."""
    starts, ends = [0, 10, 20, 30, 40], [5, 17, 26, 38, 49]
    assert columns.combined(starts, ends, 2, 2, ((2, False, False), (0, False, True))) == [20, 20]
    assert columns.combined(starts, ends, 2, 2, ((1, False, True), (1, True, False))) == [7, 8]
    assert columns.combined(starts, ends, 2, 2, ()) == [0, 0]
    assert columns.combined(starts, ends, 2, 0, ((4, False, False),)) == []


def test_spread() -> None:
    """Each bin's mean, least and largest, the last bin's of as many as there are; a NaN is what Python makes of it."""
    means, least, largest = columns.spread([1.0, 3.0, 2.0, 5.0, 4], 2)
    assert (means, least, largest) == ([2.0, 3.5, 4.0], [1.0, 2.0, 4.0], [3.0, 5.0, 4.0])
    assert math.isnan(columns.spread([math.nan, 1.0], 2)[0][0])


@needs_compiled
@given(instants=INSTANTS, data=st.data())
def test_combined_alike(instants: list[int], data: st.DataObject) -> None:
    """C and Python combine the same instants to the same."""
    cycle = data.draw(st.integers(1, len(instants)))
    count = data.draw(st.integers(0, 1 + (len(instants) - 1) // cycle))
    most = len(instants) - 1 - max(0, count - 1) * cycle
    terms = tuple(data.draw(st.lists(st.tuples(st.integers(0, most), st.booleans(), st.booleans()), max_size=6)))
    asked = (instants, instants[::-1], cycle, count, terms)
    assert COMPILED.combined(*asked) == columns._combined(*asked)


@needs_compiled
@given(values=st.lists(st.integers(-(1 << 62), 1 << 62)))
def test_seconds_alike(values: list[int]) -> None:
    """C and Python divide nanoseconds to the same bit."""
    assert bits(COMPILED.in_seconds(values)) == bits(columns._in_seconds(values))


@needs_compiled
@given(values=st.lists(NUMBERS, min_size=1), stride=st.integers(1, 9))
def test_spread_alike(values: list[float], stride: int) -> None:
    """C and Python say the same of each bin, infinities and NaN included."""
    assert bits(COMPILED.spread(values, stride)) == bits(columns._spread(values, stride))


@needs_compiled
@pytest.mark.parametrize(
    ("function", "given", "error"),
    [
        ("combined", ([1], [2], 1, 1, ((1, False, False),)), IndexError),
        ("combined", ([1], [2], 1, 1, ((-1, False, False),)), IndexError),
        ("combined", ([1], [2], 0, 1, ()), ValueError),
        ("combined", ([1], [2], 1, 1 << 62, ((0, False, False),)), ValueError),
        ("combined", ([1.5], [2], 1, 1, ((0, False, False),)), TypeError),
        ("combined", ([1 << 70], [2], 1, 1, ((0, False, False),)), OverflowError),
        ("combined", ((1,), [2], 1, 1, ()), TypeError),
        ("combined", ([1], [2], 1, 1, (7,)), TypeError),
        ("in_seconds", (["1"],), TypeError),
        ("in_seconds", ([1 << 2000],), OverflowError),
        ("spread", ([1.0, None], 2), TypeError),
        ("spread", ([1.0], 0), ValueError),
        ("spread", ([1.0],), TypeError),
    ],
)
def test_refused(function: str, given: tuple[Any, ...], error: type[Exception]) -> None:
    """What is not such a column is an error in C, too, and no crash."""
    with pytest.raises(error):
        getattr(COMPILED, function)(*given)
