"""How our background threads share the interpreter with the program: one at a time, in slices, with rests."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections import deque
from typing import TYPE_CHECKING

import pytest

from otel_ml.core import pace
from otel_ml.core.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Iterator


class Clock:
    """A clock that only work and rests move."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.wanted = True  # the interpreter, by the program's threads
        self.offers = 0
        self.rests_ms: list[float] = []

    def work(self, milliseconds: float) -> None:
        """Work for so long."""
        self.now_ns += round(milliseconds * 1e6)

    def rest(self, seconds: float) -> None:
        """Stand in for `time.sleep`; a sleep of no length is an offer, which is taken where it is wanted."""
        if not seconds:
            self.offers += 1
            self.work(0.2 if self.wanted else 0.01)
            return
        self.rests_ms.append(round(seconds * 1e3, 3))
        self.work(seconds * 1e3)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """A clock in place of the machine's."""
    ours = Clock()
    pace.hurry(on=False)
    monkeypatch.setattr(pace._state, "unasked", 0)
    monkeypatch.setattr(pace._state, "slices", deque())
    monkeypatch.setattr(time, "sleep", ours.rest)
    monkeypatch.setattr(time, "perf_counter_ns", lambda: ours.now_ns)
    yield ours
    pace.hurry(on=False)


@pytest.mark.parametrize(
    ("leisure", "rests_ms"), [(3.0, [1.53, 5.4]), (0.0, [0.5, 0.5])], ids=["three times as long", "as little as may be"]
)
def test_a_rest_follows_a_slice(clock: Clock, leisure: float, rests_ms: list[float]) -> None:
    """Whoever worked for 0.45 ms or more rests in proportion; less work needs no rest yet."""
    with Pace(leisure=leisure) as ours:
        for milliseconds in (0.1, 0.21, 0.2, 1.8):
            clock.work(milliseconds)
            ours.rest()

    assert clock.rests_ms == rests_ms


def test_nobody_rests_for_nobody(clock: Clock) -> None:
    """Where no thread of the program's wants the interpreter, work goes on; it is asked at each slice."""
    clock.wanted = False
    with Pace() as ours:
        for _ in range(5):
            clock.work(0.5)
            ours.rest()

    assert (clock.rests_ms, clock.offers) == ([], 5)


def test_need_is_asked_for_now_and_then(clock: Clock) -> None:
    """Where one does, rests go on without asking; once it has stopped, we notice."""
    with Pace() as ours:
        for number in range(20):
            clock.wanted = number < 10
            clock.work(0.5)
            ours.rest()

    assert (len(clock.rests_ms), clock.offers) == (16, 1 + 4)


def test_how_long_we_worked_of_a_time(clock: Clock) -> None:
    """Of any time, our slices that lie in it are told, and no rest between them."""
    with Pace() as ours:
        for wanted in (False, True):  # a slice is over whether a rest follows or not
            clock.wanted = wanted
            clock.work(0.5)
            ours.rest()
        clock.work(0.1)

    slices = list(pace._state.slices)
    assert [end - start for start, end in slices] == [510_000, 700_000, 100_000]  # what was offered is in them
    (first, _), (_, done), (again, last) = slices
    assert pace.held_ns(first - 50, last + 50) == 1_310_000
    assert pace.held_ns(first + 200_000, done + 10) == 1_010_000
    assert pace.held_ns(done, again) == 0


@pytest.mark.parametrize("on", [True, False])
def test_who_is_in_a_hurry_does_not_rest(clock: Clock, on: bool) -> None:
    """At the end of the process, or where nobody waits for us, no time is spent resting."""
    pace.hurry(on=on)
    with Pace(on=on) as ours:
        clock.work(50)
        ours.rest()

    assert clock.rests_ms == []


def test_one_at_a_time() -> None:
    """Slices of several threads never overlap."""
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(5):
            with Pace() as ours:
                inside.append(1)
                for _ in range(3):
                    until = time.perf_counter_ns() + 400_000
                    while time.perf_counter_ns() < until:
                        most.append(len(inside))
                    inside.pop()
                    ours.rest()
                    inside.append(1)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}


def test_a_forked_child_waits_for_nobody() -> None:
    """The child of a process whose other thread has the turn can take it at once."""
    has, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with Pace():
            has.set()
            go_on.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    has.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of 3.12, on forks beside threads
        child = os.fork()
    if not child:
        with Pace() as ours:
            os._exit(0 if ours._turn is not None else 1)
    _, status = os.waitpid(child, 0)
    go_on.set()
    holder.join()
    assert status == 0
