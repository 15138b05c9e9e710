"""The one background thread: recorders → trackers → telemetry, in short slices; then it has the store written.

It wakes 0.8 s after its last turn, or sooner when recorders fill fast: then it rests less, too. Until
there is a run it looks ten times a second: one begins as soon as there is something to tell, while its
program still warms up.
A forked child has no drain; its recorders are cleared and its hooks record into the void until
it is configured on its own.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from otel_ml.core import runtime
from otel_ml.core.clock import now
from otel_ml.core.context import recorders
from otel_ml.core.deferred import Deferred
from otel_ml.core.pace import LEISURE, Pace
from otel_ml.core.recorder import APART, BUILD, FORWARD_NOGRAD, WIDTH
from otel_ml.core.threads import Unseen
from otel_ml.errors import guard, swallow
from otel_ml.pipeline.calls import calls_ahead
from otel_ml.pipeline.findings import Call, Rare, Step
from otel_ml.pipeline.steady import Steady
from otel_ml.pipeline.steps import Tracker

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_ml.core.recorder import Recorder
    from otel_ml.pipeline.telemetry import Telemetry

__all__ = ["Drain"]

_TICK_S = 0.8  # with a turn, and what the store writes then, under a second: the most that a SIGKILL may cost
_KEEP_S = 0.15  # at least, between two of those
_TELL_NS = 2_500_000_000  # between looks at memory, the run's own metrics, and sums for whoever reads metrics
_SOONEST_S = 0.02
_COMING_S = 0.1  # between looks whether the program imports a framework, and then whether it does something with it
_BRIEF_NS = 60_000_000  # how long the last few steps of a loop took, at most, that may wait for the next turn
_EARLY = 512  # findings kept before there is a run to tell them of
_CALLS = 32  # of inference that are told of together
_CHECK = 16  # events between looks at the clock
_LATE_NS = 5_000_000_000  # how long a value may be computed before its step is told without it
_LAST_S = 0.5  # for the same at the end
_POLL_S = 0.002
_FULL_SHARE = 0.25  # of a recorder, at which the tick becomes shorter


class Drain:
    """Owns the thread; `turn()` and `stop()` are safe from any other."""

    def __init__(
        self,
        telemetry: Telemetry,
        *,
        prepare: Callable[[], None],
        started: Callable[[], None],
        tell: Callable[[dict[str, Any]], None],
        keep: Callable[[], None],
    ) -> None:
        self.telemetry = telemetry
        self._tell_store = tell  # of the totals so far
        self._keep = keep  # has the store write what it was told
        self._requests = 0  # that those spoke of
        self._totals_ns = 0
        self._kept_s = 0.0
        self._told_ns = 0
        self.cpu_s = 0.0
        self.active = False  # something worth telling has been seen
        self.annotated = False  # the program said something of itself: that is worth it
        self.at_end: Callable[[], None] = _nothing  # on the drain's thread: Python 3.12 starts none at exit
        self._prepare = prepare  # while the program imports its framework, so that no step waits for it
        self._prepared = False
        self._started = started
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stop = False
        self._thread: threading.Thread | None = None
        self._early: list[Any] = []  # compilations and checkpoints before the first step or call
        self._built = False
        self._ending = False
        self._tick_s = _TICK_S

    def start(self) -> None:
        """Start the thread, once."""
        if self._thread is None:
            self._thread = Unseen(target=self._run, name="otel-ml-drain", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._stop:
            self._wake.wait(self._tick_s if self.active else _COMING_S)
            self._wake.clear()
            if self._stop:
                break
            if not self._prepared and runtime.coming():
                self._prepared = True
                with guard("the drain"):
                    self._prepare()
            with guard("the drain"):
                self.turn()
            if time.monotonic() - self._kept_s > (_KEEP_S if self.active else _TICK_S):
                with guard("the store"):
                    self._keep()
                self._kept_s = time.monotonic()
        self.at_end()

    def turn(self, *, pause: bool = True) -> None:
        """Take and tell everything recorded so far."""
        with self._lock, Pace(on=pause, leisure=LEISURE if self._tick_s == _TICK_S else 0.0) as pace:
            self.telemetry.rest = pace.rest
            fullest = 0.0
            for recorder in list(recorders.all):
                fullest = max(fullest, len(recorder.buffer) / recorder.limit)
                over = not recorder.alive  # asked first: what a thread records before it ends is then taken
                self._drain(recorder, pace, whole=over or not pause)
                if over and recorder.tracker is not None and not recorder.held:
                    recorder.tracker.finish()
                    self._tell(recorder)
                    recorder.tracker = None
            for _ in recorders.retired():
                pass
            if self._thread in (None, threading.current_thread()):
                self.cpu_s = time.thread_time()
            if self.annotated:
                self._begin()
            if self.active:
                at = now()
                self.telemetry.records.flush(at, pace.rest)
                self.telemetry.points.flush(at, pace.rest)
                self.telemetry.spans.tick(at)
                self.telemetry.anchor.renew()
                pace.rest()
                if not pause or at - self._told_ns > _TELL_NS:
                    self._told_ns = at
                    self.telemetry.tick(upto=None, cpu_s=self.cpu_s, state="running")
                    self.telemetry.instruments.flush()
                self._tell_totals(at, pause=pause)
        self._pace(fullest)

    def _tell_totals(self, at: int, *, pause: bool) -> None:
        """Of requests there are no records, as there are of steps: have the store note what they came to so far."""
        aggregate = self.telemetry.aggregate
        early = pause and at - self._totals_ns < (_TICK_S - self._tick_s) * 1e9  # the next turn will be in time
        if aggregate.calls.count != self._requests and not early:
            self._requests, self._totals_ns = aggregate.calls.count, at
            self._tell_store(aggregate.fill(at, briefly=True).to_dict())

    def _pace(self, fullest: float) -> None:
        if fullest > _FULL_SHARE:
            self._tick_s = max(_SOONEST_S, self._tick_s / 2)
        elif fullest < _FULL_SHARE / 4:
            self._tick_s = min(_TICK_S, self._tick_s * 2)

    def _drain(self, recorder: Recorder, pace: Pace, *, whole: bool) -> None:
        """Take and tell what a thread recorded; not `whole`, a loop's last few steps are told next time."""
        chunk = self._ready(recorder, pace)
        if recorder.apart and chunk:
            chunk = self._apart(chunk)
        if recorder.tracker is not None:  # what is held was recorded before, and what comes before this is known
            recorder.tracker.differentiates = runtime.differentiates
        if not chunk:
            return
        tracker = recorder.tracker
        if tracker is None:
            tracker = recorder.tracker = Tracker()
            tracker.differentiates = runtime.differentiates
            if self._built:
                tracker.built()
            recorder.steady = Steady()
        feed, fed = tracker.feed, recorder.steady.fed
        at = self._blocks(recorder, chunk, 0, pace, whole=whole) if recorder.steady.goes_on(tracker) else 0
        while at < len(chunk):
            code = chunk[at]
            if code == BUILD and not self._built:
                self._built = True
                for other in recorders.all:
                    if other.tracker is not None:
                        other.tracker.built()
            calls = calls_ahead(tracker, chunk, at) if code == FORWARD_NOGRAD else None
            if calls is not None:
                tracker.out.append(calls)
                at += len(calls.starts) * WIDTH
            else:
                try:  # one event that we cannot take costs no other
                    feed(code, chunk[at + 1], chunk[at + 2], chunk[at + 3], chunk[at + 4])
                    fed()
                except Exception:  # noqa: BLE001 - counted, and raised where we are tested
                    swallow("taking an event")
                at += WIDTH
            if tracker.out and not (isinstance(tracker.out[-1], Call) and len(tracker.out) < _CALLS):
                stepped = isinstance(tracker.out[-1], Step)
                alone = len(tracker.out) == 1
                self._tell(recorder)
                pace.rest()
                if stepped and runtime.profiler is None and recorder.steady.came_round(tracker, alone=alone):
                    at = self._blocks(recorder, chunk, at, pace, whole=whole)
            elif at % (_CHECK * WIDTH) == 0:
                pace.rest()
        if tracker.out:
            self._tell(recorder)

    def _apart(self, chunk: list[Any]) -> list[Any]:
        """Tell of what no tracker hears of; the rest of the chunk."""
        self._begin()
        rest: list[Any] = []
        since = 0
        for at in [n * WIDTH for n, code in enumerate(chunk[::WIDTH]) if code in APART]:
            rest += chunk[since:at]
            since = at + WIDTH
            try:
                self.telemetry.apart(*chunk[at:since])
            except Exception:  # noqa: BLE001 - as of a finding
                swallow("telling of what the program said")
        return rest + chunk[since:]

    def _begin(self) -> None:
        if not self.active:
            self.active = True
            self._started()

    def _ready(self, recorder: Recorder, pace: Pace) -> list[Any]:
        """What there is to tell: up to the first value that a device still computes, unless that takes too long."""
        chunk = recorder.take()
        if not recorder.defers:
            return chunk
        chunk, recorder.held = recorder.held + chunk[:], []
        for at in [n * WIDTH for n, b in enumerate(chunk[4::WIDTH]) if isinstance(b, Deferred)]:
            value = chunk[at + 4]
            if not value.ready() and now() - chunk[at + 2] < _LATE_NS and not self._ending:
                recorder.held = chunk[at:]
                return chunk[:at]
            chunk[at + 4] = value.read()
            pace.rest()
        return chunk

    def _await(self) -> None:
        """At the end: let the devices finish what the last steps' values need, for a moment."""
        until = time.monotonic() + _LAST_S
        for recorder in recorders.all:
            waiting = [v for v in (*recorder.held[4::WIDTH], *recorder.buffer[4::WIDTH]) if isinstance(v, Deferred)]
            while time.monotonic() < until and not all(value.ready() for value in waiting):
                time.sleep(_POLL_S)

    def _blocks(self, recorder: Recorder, chunk: list[Any], at: int, pace: Pace, *, whole: bool) -> int:
        """Tell of the steady steps that come next, in blocks; where the next event begins."""
        steady, tracker = recorder.steady, recorder.tracker
        told = 0
        while True:
            block = steady.advance(tracker, chunk, at)
            if block is None:
                again = told and not whole and type(chunk) is type(recorder.buffer)
                if again and chunk[1 - WIDTH] - chunk[at + 1 - WIDTH] < _BRIEF_NS and steady.pause(chunk, at):
                    with suppress(MemoryError):  # then they are told one by one
                        recorder.take_again(chunk, at)
                return at
            told += len(block)
            at += len(block) * steady.taken()
            pace.rest()
            self.telemetry.block(block, recorder)
            pace.rest()

    def _tell(self, recorder: Recorder) -> None:
        out: list[Any] = recorder.tracker.out
        recorder.tracker.out = []
        if not self.active and any(helps() for helps in runtime.helpers):
            return
        if not self.active:
            if all(isinstance(found, Rare) for found in out):  # a process that only compiles or saves is no run
                self._early += out[: _EARLY - len(self._early)]
                return
            out, self._early = self._early + out, []
        alike = len(out) > 1 and all(isinstance(found, Call) for found in out)
        for found in [out] if alike else out:
            self._begin()
            if recorders.main is None and isinstance(found, Step):
                recorders.main = recorder
            try:
                self.telemetry.take(found, recorder)
            except Exception:  # noqa: BLE001 - one that we cannot tell of costs no other
                swallow("telling of a finding")

    def stop(self) -> None:
        """Have the thread do `at_end` and end."""
        self._stop = True
        self._wake.set()

    def join(self, timeout_s: float) -> None:
        """Wait until the thread, told to stop, has ended."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def last(self, *, failed: bool) -> None:
        """Take what is left and close what is open."""
        with self._lock, guard("the last drain"), Pace(on=False) as pace:
            self.telemetry.rest = pace.rest
            self._await()
            self._ending = True
            if self.annotated:
                self._begin()
            for recorder in list(recorders.all):
                self._drain(recorder, pace, whole=True)
                if recorder.tracker is not None:
                    recorder.tracker.finish(failed=failed and recorder is (recorders.main or recorder))
                    self._tell(recorder)
            self.cpu_s = time.thread_time()


def _nothing() -> None:
    pass
