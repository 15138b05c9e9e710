"""Background work in short slices, one thread of ours at a time.

The program waits for the interpreter lock as long as one of our threads holds it. So each of
them works for a fraction of a millisecond and rests three times as long, in which the program
has the interpreter, or another one of us a slice of its own. Where the program does not want it
(its threads compute in native code, or sleep), there is no rest: to wake up again would only
take a core from what it computes.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["LEISURE", "Pace", "held_ns", "hurry"]

_SLICE_NS = 450_000
LEISURE = 3.0  # rests, as a multiple of what was worked
_LEAST_S = 0.0005
_ALONE_NS = 100_000  # offered to others and not wanted, the interpreter is ours again by then
_ASKED_EVERY = 16  # rests, of those that were needed
_PATIENCE_S = 1.0  # then it works beside the other one
_KEPT = 256  # slices that are remembered: more than a turn has


class _State:
    """The turn, whether the process is about to end, how often we rest before we ask again, and when we worked."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.hurried = False
        self.unasked = 0
        self.slices: deque[tuple[int, int]] = deque(maxlen=_KEPT)


_state = _State()


def hurry(*, on: bool = True) -> None:
    """Rest no more from now on: the program waits for the end of our work."""
    _state.hurried = on


def held_ns(start: int, end: int) -> int:
    """For how long, of the time between two instants of the program's clock, it may have waited for our work."""
    return sum(max(0, min(end, ended) - max(start, began)) for began, ended in tuple(_state.slices))


class Pace:
    """A context around background work that calls `rest()` every now and then.

    `on=False` never waits or rests; `leisure` is how long it rests, as a multiple of what it worked.
    """

    def __init__(self, *, on: bool = True, leisure: float = LEISURE) -> None:
        self._on = on
        self._leisure = leisure
        self._turn: threading.Lock | None = None
        self._since = 0

    def __enter__(self) -> Pace:  # noqa: PYI034 - typing has no Self before 3.11
        self._take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give()

    def rest(self) -> None:
        """Let the program's threads have the interpreter, if the slice is over."""
        worked = time.perf_counter_ns() - self._since
        if worked > _SLICE_NS and self._on and not _state.hurried:
            if _wanted():
                self._give()
                time.sleep(max(_LEAST_S, self._leisure * worked / 1e9))
                self._take()
            else:
                self._over()

    def _take(self) -> None:
        turn = _state.turn
        if self._on and turn.acquire(timeout=_PATIENCE_S):
            self._turn = turn
        self._since = time.perf_counter_ns()

    def _over(self) -> None:
        """Remember a slice; the next one begins."""
        began, self._since = self._since, time.perf_counter_ns()
        _state.slices.append((began, self._since))

    def _give(self) -> None:
        self._over()
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.release()


def _wanted() -> bool:
    """Whether another thread wants the interpreter: it is offered, and whoever waits for it takes it."""
    if _state.unasked:
        _state.unasked -= 1
        return True
    offered = time.perf_counter_ns()
    time.sleep(0)
    if time.perf_counter_ns() - offered < _ALONE_NS:
        return False
    _state.unasked = _ASKED_EVERY - 1
    return True


def _forked() -> None:
    """The thread that had the turn is not in the child."""
    _state.turn = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
