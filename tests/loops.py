"""Training by hand: the events that hooks would record, with the online counter told as hooks tell it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_ml.core import recorder as r
from otel_ml.core.clock import Anchor
from otel_ml.core.context import recorders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from otel_ml.testing import FakeClock

WAIT, FORWARD, LOSS, BACKWARD, TURN, AFTER = 0.004, 0.010, 0.001, 0.020, 0.005, 0.003
STEP = WAIT + FORWARD + LOSS + BACKWARD + TURN + AFTER


def nothing() -> None:
    """Do nothing in the middle of a step."""


def train(clock: FakeClock, losses: Iterable[float], inside: Callable[[], object] = nothing, pace: float = 1) -> None:
    """One step a loss: 4 ms of waiting for 8 samples, 10 forward, 1 loss, 20 backward, 5 optimizer, 3 of the loop's.

    `pace` is what each of these is multiplied by.
    """
    recorder = recorders.mine()
    for loss in losses:
        recorder.fetching()
        start = clock()
        clock.advance(WAIT * pace)
        recorder.record(r.FETCH, start, clock(), 8, -1)
        recorder.candidate()
        start = clock()
        clock.advance(FORWARD * pace)
        recorder.record(r.FORWARD, start, clock(), 0, 8)
        inside()
        clock.advance(LOSS * pace)
        start = clock()
        clock.advance(BACKWARD * pace)
        recorder.record(r.BACKWARD, start, clock(), loss)
        start = clock()
        clock.advance(TURN * pace)
        recorder.turn(0)
        recorder.record(r.STEP, start, clock(), 0, 0.1)
        clock.advance(AFTER * pace)


def end(clock: FakeClock) -> None:
    """Find the loader's end: what closes the last step."""
    recorder = recorders.mine()
    before = recorder.fetching()
    recorder.exhausted(before)
    recorder.record(r.FETCH_END, clock(), clock())


class Still(Anchor):
    """An anchor that tells monotonic time as it is."""

    def __init__(self) -> None:
        self.offset = 0
