"""The run's aggregates while it runs: what the summary, `ml.run.time` and the finished event are made of."""

from __future__ import annotations

import math
import resource
import sys
from array import array
from typing import TYPE_CHECKING

from otel_ml.pipeline.columns import added, extremes, floats
from otel_ml.totals import Distribution, LossCurve, RunTotals, ScalarCurve

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_ml.pipeline.findings import Call, Calls, Evaluation, Passed, Rare, Step
    from otel_ml.pipeline.steady import Block

__all__ = ["Aggregate", "memory_peak"]

_KEPT = 65_536
_LOOKED_AT = 4_096  # of those, at most, for quantiles while the program runs: to sort them all takes milliseconds
# What a step's time is counted as, by phase; everything else in a step is productive.
_CATEGORIES = {"data_wait": "data_wait", "compile": "compile", "checkpoint": "checkpoint"}


def memory_peak() -> int:
    """The process's peak resident memory in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Durations:
    """Count, sum and maximum exactly; quantiles from at most 65,536 evenly spaced values."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0
        self.largest = 0
        self._kept = array("q")
        self._stride = 1

    def add(self, value_ns: int) -> None:
        """Take one duration."""
        if self.count % self._stride == 0:
            self._kept.append(value_ns)
            if len(self._kept) >= _KEPT:
                self._kept = self._kept[::2]
                self._stride *= 2
        self.count += 1
        self.total += value_ns
        self.largest = max(self.largest, value_ns)

    def extend(self, values_ns: array[int]) -> None:
        """Take several durations."""
        first = -self.count % self._stride
        self._kept.extend(values_ns[first :: self._stride])
        self.count += len(values_ns)
        total, largest = added(values_ns)
        self.total += total
        self.largest = max(self.largest, largest)
        while len(self._kept) >= _KEPT:
            self._kept = self._kept[::2]
            self._stride *= 2

    def distribution(self, *, briefly: bool = False) -> Distribution:
        """The durations in seconds; `briefly`, the quantiles from at most 4,096 evenly spaced values."""
        if not self.count:
            return Distribution()
        ordered = sorted(self._kept[:: -(-len(self._kept) // _LOOKED_AT)] if briefly else self._kept)

        def quantile(share: float) -> float:
            return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] / 1e9

        return Distribution(self.count, self.total / 1e9, quantile(0.5), quantile(0.95), self.largest / 1e9)


class Aggregate:
    """Adds up what the trackers found."""

    def __init__(self, totals: RunTotals, started: int) -> None:
        self.totals = totals
        self.started = started
        self.first: int | None = None
        self.accounted = started  # up to where the wall time has been told apart
        self.time = dict.fromkeys(
            ("productive", "startup", "data_wait", "compile", "checkpoint", "evaluation", "skipped", "other"), 0
        )
        self.steps = Durations()
        self.calls = Durations()
        self.phases: dict[str, int] = {}
        self.counted = {"samples": 0, "tokens": 0}  # nanoseconds of the steps whose samples, tokens are known

    def _spent(self, start: int, end: int) -> None:
        if self.first is None:
            self.first = start
            self.time["startup"] = 0
            self.time["startup"] = max(0, start - self.started - sum(self.time.values()))
        self.accounted = max(self.accounted, end)

    def step(self, step: Step, label: dict[int, str]) -> None:
        """Count a step."""
        totals = self.totals
        self._spent(step.start, step.end)
        if step.outcome == "ok":
            totals.steps += 1
        elif step.outcome == "skipped":
            totals.steps_skipped += 1
        else:
            totals.steps_failed += 1
        apart = 0
        for phase, spent in step.phases.items():
            self.phases[phase] = self.phases.get(phase, 0) + spent
            if phase in _CATEGORIES:
                self.time[_CATEGORIES[phase]] += spent
                apart += spent
        self.time["skipped" if step.outcome == "skipped" else "productive"] += step.duration - apart
        self.steps.add(step.duration)
        totals.micro_batches += step.micro_batches
        if step.samples is not None:
            totals.samples = (totals.samples or 0) + step.samples
            self.counted["samples"] += step.duration
        if step.tokens is not None:
            totals.tokens = (totals.tokens or 0) + step.tokens
            self.counted["tokens"] += step.duration
        for optimizer, loss in step.losses.items():
            self._loss(label.get(optimizer, ""), loss, step.number)
        for name, value in step.scalars.items():
            self.scalar(name, (value,))
        self._nonfinite("grad_norm", (step.grad_norm,))

    def block(self, block: Block, label: dict[int, str]) -> None:
        """Count a block of steps, all of outcome ok."""
        totals = self.totals
        self._spent(block.starts[0], block.starts[-1])
        count = len(block)
        totals.steps += count
        whole = block.starts[-1] - block.starts[0]
        for phase, spent in block.phases.items():
            total, _ = added(spent)
            self.phases[phase] = self.phases.get(phase, 0) + total
            if phase in _CATEGORIES:
                self.time[_CATEGORIES[phase]] += total
                whole -= total
        self.time["productive"] += whole
        self.steps.extend(block.durations)
        totals.micro_batches += count * block.micro_batches
        taken = block.starts[-1] - block.starts[0]
        if block.samples is not None:
            totals.samples = (totals.samples or 0) + sum(block.samples)
            self.counted["samples"] += taken
        if block.tokens is not None:
            totals.tokens = (totals.tokens or 0) + sum(block.tokens)
            self.counted["tokens"] += taken
        for optimizer, column in block.losses.items():
            key = label.get(optimizer, "")
            losses = column if type(column) is array else floats([loss for loss in column if loss is not None])
            lowest, _, bad = (0.0, 0.0, 1) if losses is None else extremes(losses)
            if losses is not None and not bad:
                self._loss(key, losses[0], block.first)
                curve = totals.losses[key]
                if curve.best is None or lowest < curve.best:
                    self._loss(key, lowest, block.first + column.index(lowest))
                curve.last = losses[-1]
            else:
                for number, loss in enumerate(column, block.first):
                    if loss is not None:
                        self._loss(key, loss, number)
        for name, values in block.scalars.items():
            self.scalar(name, values)
        self._nonfinite("grad_norm", block.grad_norms or ())

    def scalar(self, name: str, values: Iterable[float | None]) -> None:
        """Count values of this name."""
        known = [v for v in values if v is not None]
        self._nonfinite(name, known)
        sound = [v for v in known if math.isfinite(v)]
        curve = self.totals.scalars.setdefault(name, ScalarCurve())
        curve.count += len(known)
        if known:
            curve.last = known[-1]
        if sound:
            curve.low = min(sound) if curve.low is None else min(curve.low, *sound)
            curve.high = max(sound) if curve.high is None else max(curve.high, *sound)

    def _nonfinite(self, name: str, values: Iterable[float | None]) -> None:
        bad = sum(v is not None and not math.isfinite(v) for v in values)
        if bad:
            self.totals.nonfinite[name] = self.totals.nonfinite.get(name, 0) + bad

    def _loss(self, key: str, loss: float, number: int) -> None:
        curve = self.totals.losses.setdefault(key, LossCurve())
        if not math.isfinite(loss):
            self.totals.nonfinite["loss"] = self.totals.nonfinite.get("loss", 0) + 1
            curve.last = loss
            return
        if curve.first is None:
            curve.first = loss
        curve.last = loss
        if curve.best is None or loss < curve.best:
            curve.best, curve.best_step = loss, number

    def named(self, label: str) -> None:
        """The only optimizer so far is alone no longer: what was told of its loss goes under its label."""
        losses = self.totals.losses
        self.totals.losses = {label if key == "" else key: curve for key, curve in losses.items()}

    def evaluation(self, evaluation: Evaluation) -> None:
        """Count an evaluation."""
        self._spent(evaluation.start, evaluation.end)
        self.totals.evaluations += 1
        self.time["evaluation"] += max(0, evaluation.end - evaluation.start - evaluation.compiling)

    def passed(self, passed: Passed) -> None:
        """The program has begun with what it is for, whatever that is."""
        self._spent(passed.start, passed.end)

    def call(self, call: Call) -> None:
        """Count an inference."""
        self._spent(call.start, call.end)
        self.calls.add(call.end - call.start)
        self.totals.inference_failed += call.failed
        self.time["productive"] += max(0, call.end - call.start - call.compiling)
        if call.samples is not None:
            self.totals.inference_samples = (self.totals.inference_samples or 0) + call.samples

    def calls_of(self, calls: Calls) -> None:
        """Count several inferences."""
        self._spent(calls.starts[0], calls.ends[-1])
        self.calls.extend(calls.durations)
        self.time["productive"] += added(calls.durations)[0]
        samples = sum(calls.samples)
        if samples:
            self.totals.inference_samples = (self.totals.inference_samples or 0) + samples

    def rare(self, rare: Rare) -> None:
        """Count a compile or checkpoint; its time only when no step holds it."""
        payload = rare.payload
        if "function" in payload:
            hit = payload.get("cache") == "hit"
            self.totals.cache_hits += hit
            self.totals.cache_misses += payload.get("cache") == "miss"
            self.totals.compiles += not hit
            self.totals.recompiles += payload["reason"] is not None
            category = "compile"
        else:
            saved, done = payload["operation"] == "save", payload.get("error") is None
            self.totals.checkpoints_saved += saved and done and "pending" not in payload
            self.totals.checkpoints_loaded += not saved and done
            category = "checkpoint"
        if rare.step is None and "background" not in payload:
            self.time[category] += rare.end - rare.start

    def categories(self, upto: int | None = None) -> dict[str, float]:
        """Seconds by category; `upto` an instant, else as far as they are told apart. They sum to the wall time."""
        end = self.accounted if upto is None else max(upto, self.accounted)
        if self.first is None:
            self.time["startup"] = max(0, end - self.started - sum(v for k, v in self.time.items() if k != "startup"))
        known = sum(v for k, v in self.time.items() if k != "other")
        self.time["other"] = max(self.time["other"], end - self.started - known, 0)
        return {k: v / 1e9 for k, v in self.time.items()}

    def fill(self, now_ns: int, *, briefly: bool = False) -> RunTotals:
        """The totals as they stand at `now_ns`.

        Sorts what is kept of the durations, or `briefly` a part of it; the wall time is then told apart as far as
        it is known.
        """
        totals = self.totals
        totals.duration_s = (now_ns - self.started) / 1e9
        totals.step_time = self.steps.distribution(briefly=briefly)
        totals.inference = self.calls.distribution(briefly=briefly)
        totals.samples_time_s = None if totals.samples is None else self.counted["samples"] / 1e9
        totals.tokens_time_s = None if totals.tokens is None else self.counted["tokens"] / 1e9
        totals.phases = {k: v / 1e9 for k, v in self.phases.items()}
        totals.time = self.categories(None if briefly else now_ns)
        totals.memory_peak_by = memory_peak()
        return totals
