"""The verdict: every rule at its edge, what one slow first step may not change, and how figures read."""

from __future__ import annotations

from typing import Any

import pytest

from otel_ml.totals import Distribution, RunTotals
from otel_ml.watch import diagnosis
from otel_ml.watch.diagnosis import Diagnosis, diagnose, percent, seconds

COUNT = 100


def trained(phases: dict[str, float], **more: Any) -> RunTotals:
    """Totals of 100 even steps of 1 s in which each phase took its share."""
    step_time = Distribution(COUNT, float(COUNT), 1.0, 1.0, 1.0)
    values: dict[str, Any] = {"steps": COUNT, "step_time": step_time, "duration_s": 150.0}
    return RunTotals(**{**values, "phases": {name: share * COUNT for name, share in phases.items()}, **more})


def uneven(step_time: Distribution, **phases: float) -> RunTotals:
    """Totals of steps that spread as said, with the seconds that each phase took in all of them."""
    return RunTotals(steps=step_time.count, step_time=step_time, duration_s=150.0, phases=phases)


def test_a_data_wait_of_a_fifth_is_input_bound() -> None:
    """From SLOWING_SHARE on, waiting for data is the verdict, with its share and the seconds a step."""
    assert diagnose(trained({"data_wait": 0.20, "forward": 0.80})) == Diagnosis(
        "input-bound",
        "Waiting for the next batch is 20% of step time (200 ms of 1.00 s a step).",
        "Raise the DataLoader's num_workers (with persistent_workers=True) until data wait stops falling; "
        "with an accelerator, pin_memory=True as well.",
    )
    assert diagnose(trained({"data_wait": 0.199, "forward": 0.80})).verdict == "compute-bound"


def test_an_unexplained_fifth_is_residual_heavy() -> None:
    """From SLOWING_SHARE on, time that no phase explains is the verdict and says what it may be."""
    assert diagnose(trained({"residual": 0.20, "backward": 0.80})) == Diagnosis(
        "residual-heavy",
        "Time inside the step that no phase explains is 20% of step time (200 ms of 1.00 s a step).",
        "Look at what the loop does between the phases (logging, metrics, plain Python; .item() and .cpu(), which "
        "also wait for an accelerator's queued work) and do it every N steps.",
    )
    assert diagnose(trained({"residual": 0.199, "backward": 0.80})).verdict == "compute-bound"


@pytest.mark.parametrize(
    ("data_wait", "residual", "verdict"),
    [(0.3, 0.25, "input-bound"), (0.25, 0.3, "residual-heavy"), (0.3, 0.3, "input-bound")],
)
def test_of_two_that_slow_the_larger_is_the_verdict(data_wait: float, residual: float, verdict: str) -> None:
    """There is one verdict: the larger share's, and at a draw the loader's."""
    assert diagnose(trained({"data_wait": data_wait, "residual": residual, "forward": 0.4})).verdict == verdict


def test_four_fifths_of_computing_are_compute_bound() -> None:
    """From COMPUTE_SHARE on, forward, backward and optimizer together are the verdict."""
    phases = {"forward": 0.25, "backward": 0.45, "optimizer": 0.10, "data_wait": 0.1, "residual": 0.1}
    assert diagnose(trained(phases)) == Diagnosis(
        "compute-bound",
        "Forward, backward and optimizer are 80% of step time (800 ms of 1.00 s a step); the most is backward, 45%.",
        "Try torch.compile(model), then mixed precision (torch.autocast).",
    )


def test_the_advice_follows_the_phase_that_computes_most() -> None:
    """A run that computes mostly in the optimizer is told about the optimizer."""
    found = diagnose(trained({"optimizer": 0.9, "forward": 0.1}))
    assert (found.verdict, found.advice) == (
        "compute-bound",
        "Try the optimizer with fused=True, or accumulate more micro-batches a step.",
    )


def test_below_every_threshold_no_bottleneck_is_found() -> None:
    """Where no share is large enough, the shares are said and nothing is claimed."""
    phases = {"forward": 0.40, "backward": 0.39, "data_wait": 0.08, "residual": 0.07, "checkpoint": 0.06}
    assert diagnose(trained(phases)) == Diagnosis(
        "no bottleneck found",
        "Of the step time: 79% computing, 8% waiting for data, 7% unexplained, 6% in other phases.",
        "Nothing stands out; to go faster, profile a few steps with torch.profiler.",
    )


def test_fewer_than_five_steps_are_too_short_to_judge() -> None:
    """Below MIN_STEPS no share is judged, however clear it looks; at it, it is."""
    few = uneven(Distribution(4, 4.0, 1.0, 1.0, 1.0), data_wait=3.6)
    enough = uneven(Distribution(5, 5.0, 1.0, 1.0, 1.0), data_wait=4.5)
    assert diagnose(few) == Diagnosis(
        "too short to judge",
        "4 steps in 4.00 s, and the first ones warm up.",
        "Let it run for at least 5 steps, better a few hundred.",
    )
    assert diagnose(enough).verdict == "input-bound"


def test_a_single_step_and_steps_without_a_time_are_too_short() -> None:
    """A step that failed before it took time is counted, not judged."""
    one = RunTotals(steps=1, step_time=Distribution(1, 0.0004))
    failed = RunTotals(steps_failed=1)
    assert [diagnose(t).evidence for t in (one, failed)] == [
        "1 step in 400 µs, and the first ones warm up.",
        "0 steps, and the first ones warm up.",
    ]


def test_a_slow_first_step_does_not_make_a_run_input_bound() -> None:
    """Workers that take 30 s to start are warm-up: the verdict is that one step was slow."""
    totals = uneven(Distribution(100, 40.0, 0.1, 0.12, 30.0), data_wait=31.0, forward=9.0)
    assert diagnose(totals) == Diagnosis(
        "one slow step",
        "One step took 30.0 s where half took at most 100 ms: 75% of all step time.",
        "If it is the first (warm-up, workers starting), train longer and look again; else open that step's trace.",
    )


def test_a_slow_first_step_does_not_hide_what_holds_without_it() -> None:
    """A share that stands however the slow step is counted stays the verdict."""
    totals = uneven(Distribution(100, 40.0, 0.25, 0.25, 10.25), data_wait=16.0, forward=24.0)
    assert diagnose(totals).verdict == "input-bound"  # (16 - 10) / (40 - 10) = SLOWING_SHARE
    totals.phases = {"data_wait": 15.9, "forward": 24.1}
    assert diagnose(totals).verdict == "no bottleneck found"


def test_a_slow_step_is_the_verdict_from_half_of_all_step_time() -> None:
    """At DOMINATING_SHARE the slowest step alone is the finding; below it, nothing is found."""
    at_it = uneven(Distribution(100, 100.0, 0.5, 0.5, 50.5), data_wait=50.0, forward=50.0)
    below = uneven(Distribution(100, 100.0, 0.5, 0.5, 50.4), data_wait=50.0, forward=50.0)
    assert [diagnose(t).verdict for t in (at_it, below)] == ["one slow step", "no bottleneck found"]


@pytest.mark.parametrize("category", ["compile", "checkpoint", "evaluation", "startup"])
def test_half_the_run_spent_elsewhere_is_the_verdict(category: str) -> None:
    """From HALF_THE_RUN on, what outweighs all training is said first; below it, the steps are judged."""
    at_it = trained({"forward": 1.0}, time={category: 75.0, "productive": 75.0})
    below = trained({"forward": 1.0}, time={category: 74.9, "productive": 75.1})
    assert (diagnose(at_it).verdict, diagnose(at_it).evidence, diagnose(below).verdict) == (
        f"{category}-heavy",
        f"{category} took 1m15s of the run's 2m30s (50%).",
        "compute-bound",
    )


def test_a_short_trial_is_not_startup_heavy() -> None:
    """Under STARTUP_MIN_RUN_S, most of a run is imports, and that is no finding."""
    short = trained({"forward": 1.0}, duration_s=59.9, time={"startup": 50.0})
    longer = trained({"forward": 1.0}, duration_s=60.0, time={"startup": 50.0})
    assert [diagnose(t).verdict for t in (short, longer)] == ["compute-bound", "startup-heavy"]


@pytest.mark.parametrize(
    ("framework", "variable"), [("torch", "TORCHINDUCTOR_CACHE_DIR"), ("jax", "JAX_COMPILATION_CACHE_DIR")]
)
def test_the_cache_to_keep_is_the_framework_s_own(framework: str, variable: str) -> None:
    """A run that compiles for half its time is told of the cache that its own framework has."""
    found = diagnose(trained({"forward": 1.0}, time={"compile": 90.0}, framework=framework))
    assert found.advice == f"Keep the compiler's cache between runs ({variable}), or compile less."


def test_recompilations_are_named_as_the_reason() -> None:
    """A run that compiles for half its time because shapes change is told to fix the shapes."""
    found = diagnose(trained({"forward": 1.0}, time={"compile": 90.0}, compiles=31, recompiles=30))
    assert found == Diagnosis(
        "compile-heavy",
        "compile took 1m30s of the run's 2m30s (60%); 30 of 31 compilations were recompilations.",
        "Stop the recompilations: pad inputs to fixed shapes, or torch.compile(..., dynamic=True).",
    )


def test_requests_without_a_step_are_serving() -> None:
    """A process that never trains is judged by its requests."""
    latency = Distribution(1000, 5.0, 0.004, 0.009, 0.2)
    one_each = RunTotals(duration_s=20.0, inference=latency, inference_samples=1000)
    batched = RunTotals(duration_s=20.0, inference=latency, inference_samples=2000)
    unknown = RunTotals(duration_s=20.0, inference=latency)
    figures = (
        "1,000 requests and no training step; half took at most 4.00 ms, 95% at most 9.00 ms; "
        "the model was busy 25% of the time"
    )
    wait = "Compare p95 with what your callers may wait; a larger batch trades latency for throughput."
    batch = "Collect requests that arrive together into one batch: one forward pass then serves several."
    assert [diagnose(t) for t in (one_each, batched, unknown)] == [
        Diagnosis("serving", f"{figures}; 1 sample a request.", batch),
        Diagnosis("serving", f"{figures}; 2 samples a request.", wait),
        Diagnosis("serving", f"{figures}.", wait),
    ]


def test_nothing_seen_is_said_and_not_guessed() -> None:
    """Functional training shows no step, and the verdict is just that."""
    assert diagnose(RunTotals(duration_s=12.0)) == Diagnosis(
        "no training step seen",
        "No optimizer stepped and no backward pass came round in 12.0 s.",
        "If the program trains in a way that is not seen (torch.func, a custom engine), run `otel-ml doctor`.",
    )


def test_thresholds_are_those_written_down() -> None:
    """A threshold that moves moves every verdict: it is changed here as well, on purpose."""
    numbers = {k: v for k, v in vars(diagnosis).items() if k.isupper() and type(v) in (int, float)}
    assert numbers == {
        "MIN_STEPS": 5,
        "HALF_THE_RUN": 0.5,
        "STARTUP_MIN_RUN_S": 60.0,
        "SLOWING_SHARE": 0.2,
        "COMPUTE_SHARE": 0.8,
        "DOMINATING_SHARE": 0.5,
        "SERVING_SMALL_BATCH": 2.0,
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 s"), (8.5e-7, "0.85 µs"), (4.12e-4, "412 µs"), (9.996e-4, "1.00 ms"), (0.0182, "18.2 ms"),
        (0.9994, "999 ms"), (0.99951, "1.00 s"), (12.44, "12.4 s"), (59.94, "59.9 s"), (59.96, "1m00s"),
        (192.3, "3m12s"), (3599.4, "59m59s"), (3599.6, "1h00m"), (7500, "2h05m"), (86_399, "1d00h"), (273_600, "3d04h"),
    ],
)  # fmt: skip
def test_durations_read_as_people_write_them(value: float, text: str) -> None:
    """Three digits and a unit, and no unit ever overflows (never 1000 ms or 60.0 s)."""
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0%"), (0.0004, "<0.1%"), (0.002, "0.2%"), (0.073, "7.3%"), (0.0999, "10%"), (0.734, "73%"),
        (0.9961, "99.6%"), (0.99996, ">99.9%"), (1, "100%"), (1.2, "120%"),
    ],
)  # fmt: skip
def test_shares_are_never_rounded_to_none_or_all(share: float, text: str) -> None:
    """0% and 100% are said only where they are exact."""
    assert percent(share) == text
