"""The run's totals: exact counts and sums, quantiles from a bounded sample, and wall time told apart without a gap."""

from __future__ import annotations

import itertools
import math
from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_ml.core import recorder as r
from otel_ml.pipeline.aggregate import Aggregate, Durations
from otel_ml.pipeline.findings import Call, Evaluation, Rare, Step
from otel_ml.pipeline.steady import Block
from otel_ml.totals import Distribution, LossCurve, RunTotals

SECOND = 1_000_000_000
STARTED = 5 * SECOND


def aggregate() -> Aggregate:
    """The aggregates of a run that began at 5 s."""
    return Aggregate(RunTotals(), STARTED)


def step(number: int, start: float, end: float, *, loss: float | None = None, **more: Any) -> Step:
    """A step between two seconds after the run's start, with the phases and values given."""
    made = Step(number, STARTED + int(start * SECOND), STARTED + int(end * SECOND), micro_batches=1)
    made.losses = {} if loss is None else {0: loss}
    for key, value in more.items():
        setattr(made, key, value)
    return made


def ns(**phases: float) -> dict[str, int]:
    """Phases in nanoseconds."""
    return {name: int(seconds * SECOND) for name, seconds in phases.items()}


def test_time_is_told_apart_by_what_it_was_spent_on() -> None:
    """Every second of the run is in one category, whatever was in a step or between two."""
    made = aggregate()
    made.rare(Rare(r.COMPILE, STARTED, STARTED + SECOND, {"function": "f", "reason": None}, None))
    made.step(step(0, 3, 7, phases=ns(data_wait=1, forward=1, compile=1, backward=0.5, residual=0.5)), {})
    made.rare(Rare(r.COMPILE, STARTED + 4 * SECOND, STARTED + 5 * SECOND, {"function": "f", "reason": "x"}, 0))
    made.step(step(1, 7, 9, outcome="skipped", phases=ns(forward=1, residual=1)), {})
    made.evaluation(Evaluation(STARTED + 9 * SECOND, STARTED + 12 * SECOND, 4, 2))
    saved = {"operation": "save", "error": None}
    made.rare(Rare(r.CHECKPOINT, STARTED + 12 * SECOND, STARTED + 14 * SECOND, saved, None))
    totals = made.fill(STARTED + 20 * SECOND)
    assert totals.time == {
        "productive": 2.0, "startup": 2.0, "data_wait": 1.0, "compile": 2.0, "checkpoint": 2.0, "evaluation": 3.0,
        "skipped": 2.0, "other": 6.0,
    }  # fmt: skip
    assert sum(totals.time.values()) == totals.duration_s == 20.0
    assert (totals.steps, totals.steps_skipped, totals.compiles, totals.recompiles) == (1, 1, 2, 1)
    assert (totals.evaluations, totals.checkpoints_saved, totals.checkpoints_loaded) == (1, 1, 0)
    assert totals.phases == {"data_wait": 1.0, "forward": 2.0, "compile": 1.0, "backward": 0.5, "residual": 1.5}


def test_a_run_that_only_starts_is_start_up() -> None:
    """Before the first step or call, all time is start-up, but for what is known to be something else."""
    made = aggregate()
    loaded = {"operation": "load", "error": None}
    made.rare(Rare(r.CHECKPOINT, STARTED, STARTED + SECOND, loaded, None))
    known = {name: seconds for name, seconds in made.fill(STARTED + 3 * SECOND).time.items() if seconds}
    assert known == {"startup": 2.0, "checkpoint": 1.0}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("step", "skipped", "failed", "evaluation", "call", "checkpoint", "nothing", "look")),
            st.integers(0, 10 * SECOND),
        ),
        max_size=30,
    )
)
def test_the_categories_always_sum_to_the_run(parts: list[tuple[str, int]]) -> None:
    """Whatever happened, and whenever somebody looked, no category shrinks and together they are the wall time."""
    made = aggregate()
    at = STARTED
    number = itertools.count()
    before: dict[str, float] = {}
    for kind, length in parts:
        start, at = at, at + length
        if kind in ("step", "skipped", "failed"):
            outcome = "ok" if kind == "step" else kind
            phases = {"data_wait": length // 3, "checkpoint": length // 5}
            phases["residual"] = length - sum(phases.values())
            made.step(Step(next(number), start, at, outcome, phases=phases), {})
        elif kind == "evaluation":
            made.evaluation(Evaluation(start, at, 1, 0))
        elif kind == "call":
            made.call(Call(start, at, 0, 8))
        elif kind == "checkpoint":
            made.rare(Rare(r.CHECKPOINT, start, at, {"operation": "save", "error": None}, None))
        elif kind == "look":
            now = made.categories(at)
            assert math.isclose(sum(now.values()), (at - STARTED) / 1e9, abs_tol=1e-6)
            grew = {name: now[name] >= seconds for name, seconds in before.items()}
            assert all(grew.values()), grew
            before = now
    assert math.isclose(sum(made.categories(at).values()), (at - STARTED) / 1e9, abs_tol=1e-6)


def test_a_loss_curve_knows_its_first_last_and_best() -> None:
    """First and best are of finite values, the last is the last, and what is not finite is counted."""
    made = aggregate()
    for number, loss in enumerate([math.inf, 4.0, 1.0, 3.0, 1.0, math.nan]):
        made.step(step(number, number, number + 1, loss=loss, grad_norm=math.nan if number == 2 else 0.5), {})
    curve = made.totals.losses[""]
    assert (curve.first, curve.best, curve.best_step, math.isnan(curve.last or 0)) == (4.0, 1.0, 2, True)
    assert made.totals.nonfinite == {"loss": 2, "grad_norm": 1}


def test_optimizers_have_a_curve_each() -> None:
    """Where there are several optimizers, each loss goes under its label."""
    made = aggregate()
    for number in range(2):
        both = step(number, number, number + 1)
        both.losses = {0: 2.0 - number, 1: 5.0 + number}
        made.step(both, {0: "Adam", 1: "Adam#2"})
    assert made.totals.losses == {"Adam": LossCurve(2.0, 1.0, 1.0, 1), "Adam#2": LossCurve(5.0, 6.0, 5.0, 0)}


def test_samples_are_of_the_steps_that_know_them() -> None:
    """The time in which samples were counted is that of the steps whose samples are known."""
    made = aggregate()
    for number, samples in enumerate((8, None, 8)):
        made.step(step(number, number, number + 1, samples=samples, tokens=5 if number else None), {})
    totals = made.fill(STARTED + 3 * SECOND)
    assert (totals.samples, totals.samples_time_s, totals.tokens, totals.tokens_time_s) == (16, 2.0, 10, 2.0)


@pytest.mark.parametrize("losses", [[3.0, 1.0, 2.0, 1.0], [3.0, math.nan, 2.0, math.inf]], ids=["finite", "not"])
def test_a_block_counts_as_its_steps_do(losses: list[float]) -> None:
    """A block of steady steps leaves the same totals as its steps one by one."""
    starts = array("q", (STARTED + n * SECOND for n in range(5)))
    shares = {"data_wait": 4, "forward": 2, "residual": 4}
    phases = {name: array("q", (SECOND // share,)) * 4 for name, share in shares.items()}
    rest: dict[str, Any] = {
        "tokens": [64] * 4,
        "scalars": {},
        "framework": "torch",
        "micro_batches": 2,
        "_events": (),
        "_cycle": 0,
        "_turners": frozenset(),
    }
    block = Block(
        first=7, starts=starts, durations=array("q", (SECOND,)) * 4, phases=phases, losses={0: [*losses]},
        learning_rates={}, grad_norms=[0.5, math.inf, 0.5, 0.5], samples=[8] * 4, **rest,
    )  # fmt: skip
    as_block, one_by_one = aggregate(), aggregate()
    as_block.block(block, {})
    for n, loss in enumerate(losses):
        made = step(7 + n, n, n + 1, loss=loss, phases={k: v[n] for k, v in phases.items()}, samples=8, tokens=64)
        made.micro_batches, made.grad_norm = 2, [0.5, math.inf, 0.5, 0.5][n]
        one_by_one.step(made, {})
    end = STARTED + 6 * SECOND
    found, expected = as_block.fill(end).to_dict(), one_by_one.fill(end).to_dict()
    for totals in (found, expected):
        del totals["memory_peak_by"]
    assert repr(found) == repr(expected)  # nan differs from itself


def test_calls_have_their_own_times() -> None:
    """An inference's time, its samples and how many there were are in the totals."""
    made = aggregate()
    for n in range(4):
        made.call(Call(STARTED + n * SECOND, STARTED + n * SECOND + (n + 1) * SECOND // 10, 0, None if n == 3 else 8))
    totals = made.fill(STARTED + 4 * SECOND)
    assert totals.inference == Distribution(4, 1.0, 0.2, 0.4, 0.4)
    assert totals.inference_samples == 24


@given(st.lists(st.lists(st.integers(0, SECOND), min_size=1, max_size=30), max_size=10))
def test_durations_in_lists_are_durations_one_by_one(lists: list[list[int]]) -> None:
    """However they come, count, sum, maximum and quantiles are those of all values."""
    singly, together = Durations(), Durations()
    for values in lists:
        together.extend(array("q", values))
        for value in values:
            singly.add(value)
    every = sorted(value for values in lists for value in values)
    found = together.distribution()
    assert found == singly.distribution()
    if every:
        middle, tail = (every[math.ceil(share * len(every)) - 1] / 1e9 for share in (0.5, 0.95))
        assert found == Distribution(len(every), sum(every) / 1e9, middle, tail, every[-1] / 1e9)
    else:
        assert found == Distribution()


def test_a_million_durations_take_the_room_of_65_536() -> None:
    """Beyond 65,536 values, evenly spaced ones are kept: the same whether they came singly or in lists."""
    count, most = 1_000_000, 65_536
    values = array("q", ((n * 7919) % 1_000_003 for n in range(count)))
    singly, together = Durations(), Durations()
    for value in values:
        singly.add(value)
    for first in range(0, count, 999):
        together.extend(values[first : first + 999])
    assert len(singly._kept) < most
    assert (singly._kept, singly.distribution()) == (together._kept, together.distribution())
    found = singly.distribution()
    assert (found.count, found.total_s, found.max_s) == (count, sum(values) / 1e9, max(values) / 1e9)
    assert found.p50_s == pytest.approx(0.0005, rel=0.02)
    brief = singly.distribution(briefly=True)
    assert (brief.count, brief.total_s, brief.max_s) == (count, sum(values) / 1e9, max(values) / 1e9)
    assert brief.p50_s == pytest.approx(0.0005, rel=0.05)
