"""One verdict on where a run's time went, with the figures it stands on and what to try next.

Exists so that the summary, the report and the `ml.diagnosis` event say the same thing. A
pure function of a process's totals: called once at the end of a process by the drain's
side, and again by whoever reads a run back; it imports nothing heavy and keeps nothing.

The rules, in order; the first that holds is the verdict:

    no step, but requests             serving
    no step                           no training step seen
    fewer than MIN_STEPS              too short to judge
    one other thing took HALF_THE_RUN compile-heavy, checkpoint-heavy, evaluation-heavy, startup-heavy
    data wait or residual took a
    SLOWING_SHARE of step time        input-bound, residual-heavy (the larger of the two)
    computing took COMPUTE_SHARE      compute-bound
    the slowest step alone hides it   one slow step
    else                              no bottleneck found

Totals are sums over all steps, and the first step pays for warming up. So a share of step
time counts only if it still holds after everything that the slowest step took beyond the
median is taken out of it: then the verdict is the same whichever phase that step spent it in.
All times are by the host's clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from otel_ml.totals import RunTotals

__all__ = ["Diagnosis", "diagnose", "percent", "seconds"]

MIN_STEPS = 5
"""Fewer steps than this say nothing: the first ones warm up."""

HALF_THE_RUN = 0.5
"""Share of the run's wall time from which something other than training is the verdict: it outweighs all the rest."""

STARTUP_MIN_RUN_S = 60.0
"""A shorter run is a trial: that starting took half of it is no finding."""

SLOWING_SHARE = 0.20
"""Share of step time from which data wait or residual is the verdict: without it, steps would be 1.25 times as fast."""

COMPUTE_SHARE = 0.80
"""Share of step time in forward, backward and optimizer from which the work itself is the limit."""

DOMINATING_SHARE = 0.5
"""Share of all step time that the slowest step took beyond the median, from which no other share can be judged."""

SERVING_SMALL_BATCH = 2.0
"""Fewer samples a request than this leave room for batching."""

COMPUTE_PHASES = ("forward", "backward", "optimizer", "wait")
"""Where the work itself is done; with JAX the host waits for it, as far as it waits at all."""


@dataclass(frozen=True)
class Diagnosis:
    """What limited a run (`verdict`), the figures that show it, and one concrete next step."""

    verdict: str
    evidence: str
    advice: str


def diagnose(totals: RunTotals) -> Diagnosis:
    """Judge one process's totals; see the module's docstring for the rules."""
    if not totals.steps + totals.steps_skipped + totals.steps_failed:
        return _serving(totals) if totals.inference.count else _nothing_seen(totals)
    if totals.step_time.count < MIN_STEPS or totals.step_time.total_s <= 0:
        return _too_short(totals)
    return _heavy(totals) or _by_phase(totals)


def seconds(value: float) -> str:
    """A duration as people write it: 412 µs, 18.2 ms, 12.4 s, 3m12s, 2h05m, 3d04h."""
    if value == 0:
        return "0 s"
    for unit, scale in (("µs", 1e6), ("ms", 1e3), ("s", 1.0)):
        scaled = value * scale
        if float(f"{scaled:.3g}") < (60 if unit == "s" else 1000):
            return f"{_three_digits(scaled)} {unit}"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    whole = round(value / 60)
    if whole < 24 * 60:
        return f"{whole // 60}h{whole % 60:02}m"
    whole = round(value / 3600)
    return f"{whole // 24}d{whole % 24:02}h"


def percent(share: float) -> str:
    """A share as people write it: 73%, 7.3%, and <0.1% or >99.9% rather than a false 0% or 100%."""
    value = share * 100
    if 0 < value < 0.1:
        return "<0.1%"
    if 99.9 < value < 100:
        return ">99.9%"
    if value < 10 or 99.5 <= value < 100:
        return f"{value:.1f}%".replace(".0%", "%")
    return f"{value:.0f}%"


def _three_digits(value: float) -> str:
    if value < 9.995:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def _serving(totals: RunTotals) -> Diagnosis:
    inference = totals.inference
    requests = f"{inference.count:,} {'request' if inference.count == 1 else 'requests'}"
    failed = f" ({totals.inference_failed:,} failed)" if totals.inference_failed else ""
    figures = [f"{requests}{failed} and no training step"]
    if inference.p50_s is not None and inference.p95_s is not None:
        figures.append(f"half took at most {seconds(inference.p50_s)}, 95% at most {seconds(inference.p95_s)}")
    if totals.duration_s > 0:
        figures.append(f"the model was busy {percent(min(inference.total_s / totals.duration_s, 1.0))} of the time")
    advice = "Compare p95 with what your callers may wait; a larger batch trades latency for throughput."
    if totals.inference_samples is not None:
        batch = totals.inference_samples / max(1, inference.count - totals.inference_failed)
        figures.append(f"{batch:.3g} {'sample' if batch == 1 else 'samples'} a request")
        if batch < SERVING_SMALL_BATCH:
            advice = "Collect requests that arrive together into one batch: one forward pass then serves several."
    return Diagnosis("serving", "; ".join(figures) + ".", advice)


def _nothing_seen(totals: RunTotals) -> Diagnosis:
    return Diagnosis(
        "no training step seen",
        f"No optimizer stepped and no backward pass came round in {seconds(totals.duration_s)}.",
        "If the program trains in a way that is not seen (torch.func, a custom engine), run `otel-ml doctor`.",
    )


def _too_short(totals: RunTotals) -> Diagnosis:
    count = totals.step_time.count
    took = f" in {seconds(totals.step_time.total_s)}" if totals.step_time.total_s > 0 else ""
    return Diagnosis(
        "too short to judge",
        f"{count:,} {'step' if count == 1 else 'steps'}{took}, and the first ones warm up.",
        f"Let it run for at least {MIN_STEPS} steps, better a few hundred.",
    )


# What a share of the run's wall time is called, and what to do about it; in the order of `ml.time.category`.
_HEAVY = {
    "startup": (
        "startup-heavy",
        "Look at what runs before the first step: imports, downloads, tokenising or indexing the data set; cache it.",
    ),
    "compile": (
        "compile-heavy",
        "Keep the compiler's cache between runs (TORCHINDUCTOR_CACHE_DIR), or compile less.",
    ),
    "checkpoint": (
        "checkpoint-heavy",
        "Save less often, or save asynchronously (torch.distributed.checkpoint.async_save).",
    ),
    "evaluation": (
        "evaluation-heavy",
        "Evaluate less often, on a sample of the set, or with a larger batch under torch.inference_mode().",
    ),
}


def _heavy(totals: RunTotals) -> Diagnosis | None:
    if totals.duration_s <= 0:
        return None
    for category, (verdict, advice) in _HEAVY.items():
        took = totals.time.get(category, 0.0)
        share = took / totals.duration_s
        if share < HALF_THE_RUN or (category == "startup" and totals.duration_s < STARTUP_MIN_RUN_S):
            continue
        evidence = f"{category} took {seconds(took)} of the run's {seconds(totals.duration_s)} ({percent(share)})"
        if category == "compile" and totals.recompiles:
            again = f"{totals.recompiles:,} of {totals.compiles:,} compilations were recompilations"
            shapes = "Stop the recompilations: pad inputs to fixed shapes"
            shapes += "." if totals.framework == "jax" else ", or torch.compile(..., dynamic=True)."
            return Diagnosis(verdict, f"{evidence}; {again}.", shapes)
        if category == "compile" and totals.framework == "jax":
            jax_s = advice.replace("TORCHINDUCTOR_CACHE_DIR", "JAX_COMPILATION_CACHE_DIR")
            return Diagnosis(verdict, f"{evidence}.", jax_s)
        return Diagnosis(verdict, f"{evidence}.", advice)
    return None


def _by_phase(totals: RunTotals) -> Diagnosis:
    data_wait = totals.phases.get("data_wait", 0.0)
    residual = totals.phases.get("residual", 0.0)
    compute = sum(totals.phases.get(phase, 0.0) for phase in COMPUTE_PHASES)
    if _holds(totals, data_wait, SLOWING_SHARE) and (
        data_wait >= residual or not _holds(totals, residual, SLOWING_SHARE)
    ):
        return Diagnosis(
            "input-bound",
            f"Waiting for the next batch is {_of_a_step(totals, data_wait)}.",
            "Raise the DataLoader's num_workers (with persistent_workers=True) until data wait stops falling; "
            "with an accelerator, pin_memory=True as well."
            if totals.framework != "jax"
            else "Load batches ahead of the step: more workers or threads in the loader, and a prefetch to the device.",
        )
    if _holds(totals, residual, SLOWING_SHARE):
        return Diagnosis(
            "residual-heavy",
            f"Time inside the step that no phase explains is {_of_a_step(totals, residual)}.",
            "Look at what the loop does between the phases (logging, metrics, plain Python; .item() and .cpu(), which "
            "also wait for an accelerator's queued work) and do it every N steps.",
        )
    if _holds(totals, compute, COMPUTE_SHARE):
        return _compute_bound(totals, compute)
    return _slow_step(totals) or _no_bottleneck(totals, data_wait, residual, compute)


def _compute_bound(totals: RunTotals, compute: float) -> Diagnosis:
    largest = max(COMPUTE_PHASES, key=lambda phase: totals.phases.get(phase, 0.0))
    if largest == "wait":
        return Diagnosis(
            "compute-bound",
            f"Waiting for what the device computes is {_of_a_step(totals, compute)}.",
            "Try a lower precision (bfloat16), then look at the slowest operations with jax.profiler.",
        )
    return Diagnosis(
        "compute-bound",
        f"Forward, backward and optimizer are {_of_a_step(totals, compute)}; "
        f"the most is {largest}, {percent(totals.phases[largest] / totals.step_time.total_s)}.",
        "Try the optimizer with fused=True, or accumulate more micro-batches a step."
        if largest == "optimizer"
        else "Try torch.compile(model), then mixed precision (torch.autocast).",
    )


def _slow_step(totals: RunTotals) -> Diagnosis | None:
    slowest, median, whole = totals.step_time.max_s, totals.step_time.p50_s, totals.step_time.total_s
    if slowest is None or median is None or (slowest - median) / whole < DOMINATING_SHARE:
        return None
    return Diagnosis(
        "one slow step",
        f"One step took {seconds(slowest)} where half took at most {seconds(median)}: "
        f"{percent(slowest / whole)} of all step time.",
        "If it is the first (warm-up, workers starting), train longer and look again; else open that step's trace.",
    )


def _no_bottleneck(totals: RunTotals, data_wait: float, residual: float, compute: float) -> Diagnosis:
    whole = totals.step_time.total_s
    parts = [f"{percent(compute / whole)} computing", f"{percent(data_wait / whole)} waiting for data"]
    parts.append(f"{percent(residual / whole)} unexplained")
    host = totals.phases.get("host", 0.0)
    if host > 0:
        parts.append(f"{percent(host / whole)} on the host up to a dispatch's end")
    named = sum(totals.phases.values()) - compute - data_wait - residual - host
    if named > 0:
        parts.append(f"{percent(named / whole)} in other phases")
    return Diagnosis(
        "no bottleneck found",
        f"Of the step time: {', '.join(parts)}.",
        f"Nothing stands out; to go faster, profile a few steps with {_profiler(totals)}.",
    )


def _profiler(totals: RunTotals) -> str:
    return "jax.profiler" if totals.framework == "jax" else "torch.profiler"


def _excess(totals: RunTotals) -> float:
    """What the slowest step took beyond the median: an upper bound of what warming up cost it."""
    slowest, median = totals.step_time.max_s, totals.step_time.p50_s
    return 0.0 if slowest is None or median is None else max(slowest - median, 0.0)


def _holds(totals: RunTotals, phase_s: float, share: float) -> bool:
    """Whether a phase has its share of step time even with the slowest step's excess taken out of it."""
    excess = _excess(totals)
    whole = totals.step_time.total_s - excess
    return whole > 0 and phase_s / totals.step_time.total_s >= share and (phase_s - excess) / whole >= share


def _of_a_step(totals: RunTotals, phase_s: float) -> str:
    count, whole = totals.step_time.count, totals.step_time.total_s
    return f"{percent(phase_s / whole)} of step time ({seconds(phase_s / count)} of {seconds(whole / count)} a step)"
