"""Calls told of together come to what the tracker says of the same events, one by one."""

from __future__ import annotations

import random
from array import array
from dataclasses import asdict
from operator import sub
from typing import Any

import pytest

from otel_ml.core import recorder as r
from otel_ml.core.recorder import WIDTH
from otel_ml.pipeline.aggregate import Aggregate
from otel_ml.pipeline.calls import calls_ahead
from otel_ml.pipeline.findings import Call, Calls
from otel_ml.pipeline.steps import Tracker
from otel_ml.totals import RunTotals
from tests.pipeline.test_steady import one_by_one


def events(seed: int) -> list[Any]:
    """Calls of three models, some long in a row, with what comes between and sizes that are not always known."""
    chance = random.Random(seed)
    flat: list[Any] = []
    clock = 1
    for _ in range(60):
        model = chance.randint(0, 2)
        size = chance.choice((4, 4 | (8 << 32), -1))
        for _ in range(chance.choice((1, 5, 40, 700))):
            start = clock + chance.randint(0, 5)
            clock = start + chance.randint(1, 50)
            size = chance.randint(1, 9) if chance.random() < 0.1 else size
            flat += (r.FORWARD_NOGRAD, start, clock, model, r.FAILED if chance.random() < 0.005 else size)
        between = chance.randint(0, 4)
        if between == 0:
            flat += (r.FETCH, clock + 1, clock + 2, 4, -1)
        elif between == 1:
            flat += (r.FORWARD, clock + 1, clock + 2, model, 4)
        elif between == 2:
            payload = {"function": "f", "reason": None, "kind": None}
            flat += (r.COMPILE, clock + 1, clock + 2, payload, None)
        clock += 3
    return flat


def together(flat: list[Any]) -> tuple[list[Any], int]:
    """The same with calls together where they can be, and how many of these there were."""
    tracker, many, at = Tracker(), 0, 0
    while at < len(flat):
        calls = calls_ahead(tracker, flat, at) if flat[at] == r.FORWARD_NOGRAD else None
        if calls is None:
            tracker.feed(*flat[at : at + WIDTH])
            at += WIDTH
            continue
        columns = zip(calls.starts, calls.ends, calls.samples, strict=True)
        tracker.out += [Call(start, end, calls.root, samples or None) for start, end, samples in columns]
        many += len(calls.starts)
        at += len(calls.starts) * WIDTH
    tracker.finish()
    return tracker.out, many


@pytest.mark.parametrize("seed", range(20))
def test_calls_together_are_the_same_calls(seed: int) -> None:
    """Whatever comes between them, each call is told of once, in order, with its model, times and samples."""
    flat = events(seed)
    found, many = together(flat)

    assert found == one_by_one(flat)
    assert many > len(found) * 0.8


def test_training_has_no_calls_ahead() -> None:
    """In a process that trains a forward without grad is part of an evaluation, and goes through the tracker."""
    tracker = Tracker()
    flat = [each for n in range(100) for each in (r.FORWARD_NOGRAD, 2 * n, 2 * n + 1, 0, 4)]
    assert calls_ahead(tracker, flat, 0) is not None
    tracker.built()
    assert calls_ahead(tracker, flat, 0) is None


def test_totals_are_the_same() -> None:
    """Counted together or one by one, calls make the same totals."""
    starts = array("q", (1_000_000 * n for n in range(1, 101)))
    ends = array("q", (start + 400_000 + 1_000 * n for n, start in enumerate(starts)))
    samples = [8 * (n % 3) for n in range(100)]
    one, several = (Aggregate(RunTotals(), 0) for _ in range(2))
    for start, end, size in zip(starts, ends, samples, strict=True):
        one.call(Call(start, end, 0, size or None))
    several.calls_of(Calls(0, starts, ends, array("q", map(sub, ends, starts)), samples))

    assert asdict(one.fill(ends[-1])) == asdict(several.fill(ends[-1]))
