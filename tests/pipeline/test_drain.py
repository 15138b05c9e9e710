"""Values that a device still computes: steps are told in order, late rather than without them, and never too late."""

from __future__ import annotations

from otel_ml.core.context import optimizers, recorders
from otel_ml.core.deferred import Deferred, Values
from otel_ml.core.recorder import DEVICE_TRAIN
from otel_ml.testing import Captured, FakeClock, capture


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
