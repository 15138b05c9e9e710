"""What leaves is bounded, whatever comes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_ml.pipeline.budget import Budget, stride_for

SECOND = 1_000_000_000


@given(
    rate=st.integers(1, 200),
    burst=st.integers(1, 3000),
    asks=st.lists(st.tuples(st.integers(0, 5 * SECOND), st.integers(1, 500)), max_size=40),
)
def test_never_more_than_the_rate_and_one_burst(rate: int, burst: int, asks: list[tuple[int, int]]) -> None:
    """At any time no more has been taken than the burst and the rate since the start; what is available can be had."""
    budget = Budget(rate, burst, at_ns=7)
    at, taken = 7, 0
    for later, count in asks:
        at += later
        available = budget.available(at)
        had = budget.take(count, at)
        assert had is (count <= available)
        taken += count if had else 0
        assert taken <= burst + rate * (at - 7) / SECOND + 1e-6


@pytest.mark.parametrize(
    ("idle_s", "available"), [(0, 0), (0.5, 64), (1, 128), (100, 2000)], ids=["at once", "half", "one", "long"]
)
def test_what_was_spent_comes_back_at_the_rate(idle_s: float, available: int) -> None:
    """A spent budget fills up again at the rate, to one burst and no further."""
    budget = Budget(128, 2000, at_ns=0)
    assert budget.take(2000, 0)
    assert budget.available(int(idle_s * SECOND)) == available


def test_a_clock_that_goes_back_gives_nothing() -> None:
    """An instant before the last one is no time that passed, and neither is the way back to it."""
    budget = Budget(10, 10, at_ns=5 * SECOND)
    budget.take(10, 5 * SECOND)
    assert [budget.available(at * SECOND) for at in (1, 5, 6)] == [0, 0, 10]


@given(rate=st.floats(1e-3, 1e6), allowed=st.floats(1e-2, 1e3))
def test_a_stride_is_the_smallest_power_of_two_that_does(rate: float, allowed: float) -> None:
    """Strides are powers of two, so that those of all ranks nest, and no larger than needed."""
    stride = stride_for(rate, allowed)
    assert stride.bit_count() == 1
    assert rate / stride <= allowed
    assert stride == 1 or rate / (stride // 2) > allowed


def test_a_budget_of_nothing_has_a_stride() -> None:
    """However little is allowed, the stride ends somewhere."""
    assert stride_for(1e9, 0.0) == 1 << 30
