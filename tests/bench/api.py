"""`python -m tests.bench.api`: what each public call costs, with nothing configured and with a run recorded.

Warm, in a loop of nothing else: a block of calls of each a round, all of them in each
round, less what the loop, the bare function or the bare generator take at least. Between torch's
operations, where caches are cold, everything costs a multiple of it. A promise is judged by
the least, as timeit's documentation advises: what is more, the machine did meanwhile. The
standard library's `nullcontext()` stands beside ours.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from contextlib import nullcontext
from statistics import quantiles
from timeit import Timer
from typing import TYPE_CHECKING, Any

import otel_ml
from otel_ml import events, names
from otel_ml.testing import capture
from tests.bench import options

if TYPE_CHECKING:
    from collections.abc import Iterator

PROMISE_NS = 500
_IDLE_CALLS = 2_000  # a block
_CALLS = 64  # a block, where a run is recorded: a step keeps the spans of all of one
_SPANS = 256  # that a step keeps
_SPANS_A_SECOND = 200


def plain(x: int) -> int:
    """Nearly nothing."""
    return x


def counted(count: int) -> Iterator[int]:
    """As many."""
    yield from range(count)


SCOPE: dict[str, Any] = {
    "otel_ml": otel_ml, "events": events, "plain": plain, "counted": counted, "folder": tempfile.gettempdir(),
    "traced": otel_ml.traced(plain), "argued": otel_ml.traced(arguments=True)(plain), "timed": otel_ml.timed(plain),
    "traced_counted": otel_ml.traced(counted), "nullcontext": nullcontext,
}  # fmt: skip
EMPTY = "pass"
CONTROLS = {
    "a function": "plain(1)",
    "a generator of 3": "for _ in counted(3): pass",
    "3 items": "for _ in (1, 2, 3): pass",
}
OVER = {
    "@traced": "a function", "@traced(arguments=True)": "a function", "@timed": "a function",
    "@traced, a generator of 3": "a generator of 3", "data(), 3 items": "3 items",
}  # fmt: skip
IN_A_STEP = {
    "@traced": "traced(1)",
    "@traced(arguments=True)": "argued(1)",
    "@traced, a generator of 3": "for _ in traced_counted(3): pass",
    "@timed": "timed(1)",
    "with span()": "with otel_ml.span('part', size=1): pass",
    "with request()": "with otel_ml.request(): pass",
    "with timed()": "with otel_ml.timed('part'): pass",
    "with phase()": "with otel_ml.phase('part'): pass",
    "record()": "otel_ml.record('loss', 0.5)",
    "event()": "otel_ml.event('part')",
}
BESIDE = {
    "with step()": "with otel_ml.step(): pass",
    "with epoch()": "with otel_ml.epoch(1): pass",
    "with evaluation()": "with otel_ml.evaluation(): pass",
    "with run()": "with otel_ml.run('part'): pass",
    "with checkpoint()": "with otel_ml.checkpoint(folder): pass",
    "data(), 3 items": "for _ in otel_ml.data((1, 2, 3)): pass",
}
ALONE = {
    "events.epoch_done()": "events.epoch_done(1)",
    "profile()": "otel_ml.profile()",
    "flush()": "otel_ml.flush()",
}
REFERENCE = "with contextlib.nullcontext()"
OTEL = {
    "OpenTelemetry's start_as_current_span": "with tracer.start_as_current_span('part'): pass",
    "the same with two attributes": "with tracer.start_as_current_span('part', attributes={'a': 1, 'b': 'c'}): pass",
}
LEFT_OUT = ("@traced", "with span()")

Found = dict[str, list[float]]


def idle(rounds: int) -> Found:
    """Nanoseconds of each call, round by round, with nothing configured."""
    timers = _timers(
        {EMPTY: EMPTY, **CONTROLS, REFERENCE: "with nullcontext(): pass", **IN_A_STEP, **BESIDE, **ALONE}, SCOPE
    )
    found: Found = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            found[name].append(_block(timer, _IDLE_CALLS))
    return _less_plain(found)


def recorded(rounds: int) -> Found:
    """The same while a run is recorded into memory: of spans that are kept, and beyond what a step keeps."""
    with capture() as seen:
        scope = {**SCOPE, "tracer": seen.tracer_provider.get_tracer("bench")}
        inside, beside = _timers({EMPTY: EMPTY, **CONTROLS, **OTEL, **IN_A_STEP}, scope), _timers(BESIDE, scope)
        found: Found = {name: [] for name in (*inside, *beside, *(f"{name}, left out" for name in LEFT_OUT))}
        for _ in range(rounds):
            for name, timer in inside.items():
                with otel_ml.step():
                    found[name].append(_block(timer, _CALLS))
            for name, timer in beside.items():
                found[name].append(_block(timer, _CALLS))
            with otel_ml.step():
                inside["@traced"].timeit(_SPANS)
                for name in LEFT_OUT:
                    found[f"{name}, left out"].append(_block(inside[name], _CALLS))
            seen._spans.clear()
            seen.turn()
            time.sleep((_SPANS + 5 * _CALLS) / _SPANS_A_SECOND)  # else fast steps keep spans of some only
        left_out = seen.points(names.LEFT_OUT)
    kept = left_out == {((names.LIMIT_KIND, "span"),): rounds * _CALLS * len(LEFT_OUT)}
    if not kept:
        sys.exit(f"other calls than these were left out, so that figures are not what they say: {left_out}")
    return _less_plain(found)


def _timers(cases: dict[str, str], scope: dict[str, Any]) -> dict[str, Timer]:
    timers = {name: Timer(code, globals=scope) for name, code in cases.items()}
    for timer in timers.values():
        timer.timeit(1)
    return timers


def _block(timer: Timer, calls: int) -> float:
    return timer.timeit(calls) / calls * 1e9


def _less_plain(found: Found) -> Found:
    plainly = {name: min(found.pop(name)) for name in (EMPTY, *CONTROLS)}
    return {name: [v - plainly[OVER.get(name, EMPTY)] for v in values] for name, values in found.items()}


def _line(name: str, values: list[float], *, promise: float | None) -> str:
    low, middle, high = quantiles(values, n=4)
    over = "  over" if promise is not None and min(values) > promise else ""
    return f"  {name:<40}{''.join(f'{value / 1000:>9.2f}' for value in (min(values), low, middle, high))}{over}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.api", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=options.at_least(2), default=15)
    rounds: int = parser.parse_args().rounds
    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, {rounds} rounds; µs a call: least, quartiles\n")
    print(f"nothing configured (promised: {PROMISE_NS / 1000:g})")
    for name, values in idle(rounds * 10).items():
        print(_line(name, values, promise=None if name == REFERENCE else PROMISE_NS))
    print("\na run recorded")
    for name, values in recorded(rounds).items():
        print(_line(name, values, promise=None))


if __name__ == "__main__":
    main()
