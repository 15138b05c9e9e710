"""Steps are told in order: those of a fast loop by the turn, and late rather than without a value still computed."""

from __future__ import annotations

from otel_ml.core.context import optimizers, recorders
from otel_ml.core.deferred import Deferred, Values
from otel_ml.core.recorder import DEVICE_TRAIN
from otel_ml.testing import Captured, FakeClock, capture
from tests.faults.processes import once
from tests.loops import end
from tests.loops import train as train_by_hand


class Coming(Deferred):
    """A loss that is there when the test says so."""

    def __init__(self, loss: float) -> None:
        self.loss = loss
        self.there = False

    def ready(self) -> bool:
        return self.there

    def read(self) -> Values:
        return Values(4, {"loss": self.loss} if self.there else {})


def train(clock: FakeClock, losses: list[Coming]) -> None:
    """A step a loss, 10 ms each."""
    recorder = recorders.mine()
    number = optimizers.number(train, "train")
    for loss in losses:
        start = clock()
        clock.advance(0.01)
        recorder.turn(number)
        recorder.defers = True
        recorder.record(DEVICE_TRAIN, start, clock(), number, loss)
        clock.advance(0.001)


def told(seen: Captured) -> list[tuple[int, float | None]]:
    return [(row["ml.step.number"], row.get("ml.training.loss")) for row in seen.steps()]


def test_steps_wait_for_their_values() -> None:
    """A step whose loss is not ready is told in a later turn, and so is every step after it."""
    clock = FakeClock()
    losses = [Coming(float(n)) for n in range(4)]
    with capture(clock=clock) as seen:
        train(clock, losses)
        losses[0].there = losses[2].there = True
        seen.turn()
        assert told(seen) == []  # the first is open until the second is told of
        losses[1].there = True
        seen.turn()
        assert told(seen) == [(0, 0.0), (1, 1.0)]
        losses[3].there = True

    assert told(seen) == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]


def test_steps_do_not_wait_for_ever() -> None:
    """A value that takes more than five seconds is absent."""
    clock = FakeClock()
    losses = [Coming(float(n)) for n in range(3)]
    losses[1].there = losses[2].there = True
    with capture(clock=clock) as seen:
        train(clock, losses)
        seen.turn()
        assert told(seen) == []
        clock.advance(6)
        seen.turn()
        assert told(seen) == [(0, None), (1, 1.0)]


def test_the_end_waits_for_a_moment_only() -> None:
    """At the end what is not ready is told without its value."""
    clock = FakeClock()
    with capture(clock=clock) as seen:
        train(clock, [Coming(1.0), Coming(2.0)])

    assert told(seen) == [(0, None), (1, None)]


class Ticking(FakeClock):
    """A clock that no two looks find at the same time, as with a real one: where one event ends none begins."""

    def __call__(self) -> int:
        self.advance(1e-9)
        return super().__call__()


def turned(seen: Captured) -> int:
    """Steps told of after a turn such as the drain's thread takes."""
    seen.run.drain.turn()
    return seen.run.totals.steps


def test_a_fast_loop_goes_on_where_it_was() -> None:
    """Between two turns of a fast loop its last few steps wait for those that come, and at the end none is missing."""
    clock = Ticking()
    losses = [n / 7 for n in range(1000)]
    with capture(clock=clock) as seen:
        train_by_hand(clock, losses[:300], pace=0.01)
        first = turned(seen)
        train_by_hand(clock, losses[300:600], pace=0.01)
        second = turned(seen)
        alone = turned(seen)  # nothing came: what waited is told
        train_by_hand(clock, losses[600:], pace=0.01)
        turned(seen)
        end(clock)

    assert (first, second, alone) == (298, 598, 599)  # the last one is open, the one before it waits
    assert [(row["ml.step.number"], row["ml.training.loss"]) for row in seen.steps()] == list(enumerate(losses))
    durations = {round(row["ml.step.duration"] * 1e6) for row in seen.steps()}
    assert durations == {430}


def test_what_waits_is_a_few_milliseconds() -> None:
    """Steps that took more than 60 ms wait for nothing, and a flush leaves none behind."""
    clock = Ticking()
    with capture(clock=clock) as seen:
        train_by_hand(clock, [1.0] * 25, pace=0.5)
        assert turned(seen) == 23  # the one that waits took 21.5 ms
        assert turned(seen) == 24
        train_by_hand(clock, [1.0] * 25)
        assert turned(seen) == 49
        train_by_hand(clock, [1.0] * 300, pace=0.01)
        seen.turn()
        assert seen.run.totals.steps == 349
        end(clock)


def test_a_run_begins_before_its_time() -> None:
    """What is to be told first does not wait for the thread's next turn to be due."""
    clock = FakeClock()
    with capture(clock=clock) as seen:
        drain = seen.run.drain
        drain._tick_s, drain._prepared = 3600.0, True
        drain.start()
        train_by_hand(clock, [1.0] * 5)
        once(lambda: drain.active, "the run's begin")
        drain.stop()
        drain.join(30)
        assert drain._thread is not None
        assert not drain._thread.is_alive()
        end(clock)

    assert [row["ml.step.number"] for row in seen.steps()] == list(range(5))
