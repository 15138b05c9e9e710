"""Monotonic time becomes Unix time, whatever happens to the wall clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_ml.core import clock
from otel_ml.core.clock import Anchor
from otel_ml.testing import FakeClock

SECOND = 1_000_000_000


class Stepped(FakeClock):
    """A clock whose wall time can be set."""

    def __init__(self) -> None:
        super().__init__()
        self.step_ns = 0

    def wall(self) -> int:
        return super().wall() + self.step_ns


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> Stepped:
    """The clock that everything here reads."""
    fake = Stepped()
    monkeypatch.setattr(clock, "now", fake)
    monkeypatch.setattr(clock, "wall", fake.wall)
    return fake


def test_an_instant_is_told_as_the_wall_clock_had_it(stepped: Stepped) -> None:
    """Instants before and after the anchor are as far from it in Unix time as they were by the monotonic clock."""
    anchor = Anchor()
    unix = stepped.wall()
    assert [anchor.unix(stepped() + away) - unix for away in (-SECOND, 0, SECOND)] == [-SECOND, 0, SECOND]


@pytest.mark.parametrize(
    ("step_ns", "followed"), [(0, 0), (900_000, 0), (1_100_000, 1_100_000), (-3600 * SECOND, -3600 * SECOND)]
)
def test_a_stepped_wall_clock_is_followed(stepped: Stepped, step_ns: int, followed: int) -> None:
    """Renewing follows a wall clock that moved by over 1 ms, forwards or back, and leaves a smaller difference."""
    anchor = Anchor()
    before = anchor.unix(0)
    stepped.advance(60)
    stepped.step_ns = step_ns
    assert anchor.renew() is (followed != 0)
    assert anchor.unix(0) - before == followed


@given(st.integers(), st.integers())
def test_no_duration_is_negative(first: int, then: int) -> None:
    """Two instants by one anchor are apart in Unix time as they are by the monotonic clock."""
    anchor = Anchor()
    assert anchor.unix(then) - anchor.unix(first) == then - first


def test_the_machines_clock_is_told_right() -> None:
    """By the machine's own clocks, what is now is told as an instant between two looks at the wall clock."""
    anchor = Anchor()
    drift = 50_000_000  # of a wall clock that is being corrected meanwhile
    before = clock.wall()
    unix = anchor.unix(clock.now())
    assert before - drift <= unix <= clock.wall() + drift
