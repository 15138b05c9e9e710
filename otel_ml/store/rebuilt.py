"""The totals of a process that never said goodbye, told from its rows."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from otel_ml import names
from otel_ml.store.opening import select
from otel_ml.store.records import count_events, has_span, last_event, points_of
from otel_ml.totals import Distribution, LossCurve, RunTotals

if TYPE_CHECKING:
    import sqlite3

    from otel_ml.store.records import PointRow
    from otel_ml.store.runs import Process

__all__ = ["rebuilt"]


@dataclass
class _Steps:
    """What a process's step records say; several steps stand behind each entry of a thinned one."""

    outcomes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    durations: list[tuple[float, float, int]] = field(default_factory=list)  # mean, longest, steps
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # by attribute
    counted: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # seconds of steps that have it
    losses: dict[str, LossCurve] = field(default_factory=dict)
    memory_peak_by: int | None = None
    thinned: bool = False

    @property
    def count(self) -> int:
        return sum(self.outcomes.values())

    def add(self, record: dict[str, Any], weight: int) -> None:
        """Take one entry, whose times are the mean and whose samples are the sum of `weight` steps."""
        self.thinned |= weight > 1
        outcome = record.get(names.OUTCOME) or "ok"
        self.outcomes[outcome] += 1  # a bin that holds one that is not ok does not say how many
        self.outcomes["ok"] += weight - 1
        alone = record.get(names.STEP_LOSS_BEFORE)
        if alone is not None:
            self.losses = {alone if key == "" else key: curve for key, curve in self.losses.items()}
        for key, value in record.items():
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                continue
            optimizer = key.removeprefix(f"{names.STEP_LOSS}.")
            if key == names.LOSS.name or (optimizer != key and not key.endswith((".min", ".max"))):
                self._loss("" if key == names.LOSS.name else optimizer, key, record, weight)
            elif key == names.STEP_DURATION_S:
                self.durations.append((value, record.get(f"{key}.max") or value, weight))
            elif key == names.MEMORY_PEAK.name:
                self.memory_peak_by = max(self.memory_peak_by or 0, int(value))
            elif key in _SUMMED:
                self.sums[key] += value
                self.counted[key] += (record.get(names.STEP_DURATION_S) or 0.0) * weight
            elif key.startswith(f"{names.STEP_PHASE}."):
                self.sums[key] += value * weight

    def _loss(self, optimizer: str, key: str, record: dict[str, Any], weight: int) -> None:
        value = record[key]
        if not math.isfinite(value):
            return
        curve = self.losses.setdefault(optimizer, LossCurve(first=value))
        curve.last = value
        lowest = record.get(f"{key}.min", value)
        if curve.best is None or (lowest is not None and lowest < curve.best):
            curve.best = lowest
            curve.best_step = record.get(names.STEP_NUMBER) if weight == 1 else None

    def time(self) -> Distribution:
        """How long the steps took; quantiles only where every step has its own record."""
        if not self.durations:
            return Distribution()
        total = sum(value * weight for value, _, weight in self.durations)
        longest = max(longest for _, longest, _ in self.durations)
        count = sum(weight for _, _, weight in self.durations)
        if self.thinned:
            return Distribution(count=count, total_s=total, max_s=longest)
        values = sorted(value for value, _, _ in self.durations)
        return Distribution(count, total, _rank_of(values, 0.5), _rank_of(values, 0.95), longest)

    def phases(self) -> dict[str, float]:
        """Seconds by phase."""
        prefix = f"{names.STEP_PHASE}."
        return {
            key[len(prefix) :]: value
            for key, value in self.sums.items()
            if key.startswith(prefix) and not key.endswith((".min", ".max"))
        }


_SUMMED = frozenset({str(names.STEP_SAMPLES), str(names.STEP_TOKENS), str(names.STEP_MICRO_BATCHES)})


def _rank_of(ordered: list[float], share: float) -> float:
    """The value that `share` of the values do not exceed."""
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def _step_records(connection: sqlite3.Connection) -> _Steps:
    """Every step record of a process, whether it stands alone or in the columns of a batch."""
    steps = _Steps()
    where, values = "WHERE event_name IN (?, ?) ORDER BY id", (names.EVENT_STEP, names.EVENT_STEPS)
    for row in select(connection, "logs", where=where, values=values):
        attributes = row["attributes"]
        columns = {key: value for key, value in attributes.items() if isinstance(value, list)}
        if row["event_name"] == names.EVENT_STEP:
            steps.add(attributes, 1)
            continue
        for index in range(max(map(len, columns.values()), default=0)):
            entry = {key: column[index] for key, column in columns.items() if index < len(column)}
            steps.add(entry, int(attributes.get(names.STEP_STRIDE, 1)))
    return steps


class _Series:
    """The last point of each of a process's series, summed and looked up by metric."""

    def __init__(self, points: list[PointRow]) -> None:
        self._points: dict[str, list[PointRow]] = defaultdict(list)
        for point in points:
            self._points[point.name].append(point)

    def of(self, metric: names.Metric) -> list[PointRow]:
        return self._points.get(metric.name, [])

    def total(self, metric: names.Metric) -> float | None:
        """A counter's sum, or a histogram's, over its attributes; None where it was never recorded."""
        values = [v for point in self.of(metric) for v in (point.value, point.sum) if v is not None]
        return sum(values) if values else None

    def count(self, metric: names.Metric) -> int:
        """How many values a histogram has seen."""
        return sum(point.count or 0 for point in self.of(metric))

    def by(self, metric: names.Metric, attribute: str) -> dict[str, float]:
        """A counter's value, or a histogram's sum, by one attribute."""
        found: dict[str, float] = defaultdict(float)
        for point in self.of(metric):
            found[str(point.attributes.get(attribute, ""))] += point.value or point.sum or 0
        return dict(found)

    def spread(self, metric: names.Metric) -> Distribution:
        """A histogram's count, total and maximum; its buckets do not tell exact quantiles."""
        points = [point for point in self.of(metric) if point.count]
        highest = max((point.max for point in points if point.max is not None), default=None)
        return Distribution(sum(p.count or 0 for p in points), sum(p.sum or 0.0 for p in points), max_s=highest)


def rebuilt(connection: sqlite3.Connection, process: Process) -> RunTotals:
    """A process's totals from its rows, and from the totals that it noted while it served.

    Step records are on disk a second after the step and totals so far a second after the request, points every
    ten: whichever knows of more steps, or requests, tells them, their times and what they were made of. Categories
    of time are as of the newer of totals and points.
    """
    noted = RunTotals.from_dict(process.totals or {"drain_cpu_s": None})
    steps, series = _step_records(connection), _Series(points_of(connection, process, latest=True))
    counted = {key: int(value) for key, value in series.by(names.STEPS, names.OUTCOME).items()}
    fresh = steps.count >= sum(counted.values())
    made = steps.count if fresh else sum(counted.values())
    skipped, failed = (max(counted.get(key, 0), steps.outcomes.get(key, 0)) for key in ("skipped", "failed"))
    step_time, phases = steps.time(), steps.phases()
    if not fresh:
        step_time, phases = series.spread(names.STEP_DURATION), series.by(names.PHASE_DURATION, names.PHASE)

    def summed(attribute: str, metric: names.Metric) -> int | None:
        found = steps.sums.get(attribute) if fresh else series.total(metric)
        return None if found is None else round(found)

    def counted_s(attribute: str) -> float | None:
        return steps.counted.get(attribute) if fresh else None

    def whole(metric: names.Metric) -> int:
        return int(series.total(metric) or 0)

    peaks = [int(point.value) for point in series.of(names.MEMORY_PEAK) if point.value is not None]
    peaks += [] if steps.memory_peak_by is None else [steps.memory_peak_by]
    peaks += [] if noted.memory_peak_by is None else [noted.memory_peak_by]
    cpu = [told for told in (noted.drain_cpu_s, series.total(names.DRAIN_DURATION)) if told is not None]
    diagnosis = last_event(connection, names.EVENT_DIAGNOSIS)
    exception = last_event(connection, names.EVENT_EXCEPTION)
    samples = series.spread(names.INFERENCE_BATCH_SIZE)
    inference, inference_samples = series.spread(names.INFERENCE_DURATION), None
    inference_failed = int(series.by(names.INFERENCE_REQUESTS, names.OUTCOME).get("failed", 0))
    if noted.inference.count >= inference.count:
        inference, inference_samples = noted.inference, noted.inference_samples
        inference_failed = noted.inference_failed
    elif samples.count:
        inference_samples = int(samples.total_s)
    spent = max(noted.time, series.by(names.RUN_TIME, names.TIME_CATEGORY), key=lambda time: sum(time.values()))
    if not made and not inference.count and not diagnosis and has_span(connection, names.SPAN_INFERENCE):
        diagnosis = _UNCOUNTED
    end = time.time_ns() if process.state == "running" else process.last_unix_ns
    return RunTotals(
        run_id=process.run_id,
        run_name=process.run_name,
        attempt=process.attempt,
        rank=process.rank,
        world_size=process.world_size,
        host=process.host,
        pid=process.pid,
        framework=noted.framework or _framework(process, series),
        started_unix_ns=process.started_unix_ns,
        ended_unix_ns=process.ended_unix_ns,
        outcome="killed" if process.state == "lost" else process.state,
        exit_code=process.exit_code,
        error=_error(exception),
        duration_s=max(0.0, (end - process.started_unix_ns) / 1e9),
        steps=made - skipped - failed,
        steps_skipped=skipped,
        steps_failed=failed,
        samples=summed(names.STEP_SAMPLES, names.SAMPLES),
        samples_time_s=counted_s(names.STEP_SAMPLES),
        tokens=summed(names.STEP_TOKENS, names.TOKENS),
        tokens_time_s=counted_s(names.STEP_TOKENS),
        micro_batches=summed(names.STEP_MICRO_BATCHES, names.MICRO_BATCHES) or 0,
        losses=steps.losses,
        step_time=step_time,
        phases=phases,
        time=spent,
        evaluations=max(noted.evaluations, series.count(names.EVALUATION_DURATION)),
        inference=inference,
        inference_samples=inference_samples,
        inference_failed=inference_failed,
        compiles=max(noted.compiles, series.count(names.COMPILE_DURATION)),
        recompiles=max(whole(names.RECOMPILES), count_events(connection, names.EVENT_RECOMPILED)),
        checkpoints_saved=count_events(connection, names.EVENT_CHECKPOINT_SAVED),
        checkpoints_loaded=count_events(connection, names.EVENT_CHECKPOINT_LOADED),
        nonfinite={key: int(value) for key, value in series.by(names.NONFINITE, names.SCALAR_NAME).items()},
        memory_peak_by=max(peaks, default=None),
        records=max(noted.records, whole(names.RECORD_COUNT)),
        records_dropped=max(noted.records_dropped, whole(names.RECORD_DROPPED)),
        errors=max(noted.errors, whole(names.ERROR_COUNT)),
        drain_cpu_s=max(cpu, default=None),
        thinned=steps.thinned,
        verdict=diagnosis.get(names.DIAGNOSIS_VERDICT),
        evidence=diagnosis.get(names.DIAGNOSIS_EVIDENCE),
        advice=diagnosis.get(names.DIAGNOSIS_ADVICE),
    )


_UNCOUNTED = {
    str(names.DIAGNOSIS_VERDICT): "serving",
    str(names.DIAGNOSIS_EVIDENCE): "Requests were seen; the process ended before it could tell how many.",
    str(names.DIAGNOSIS_ADVICE): "`otel-ml export` writes the spans of those that were kept.",
}


def _framework(process: Process, series: _Series) -> str:
    points = series.of(names.STEP_DURATION) + series.of(names.COMPILE_DURATION)
    told = [process.resource.get(names.FRAMEWORK_NAME), *(p.attributes.get(names.FRAMEWORK_NAME) for p in points)]
    return next((str(name) for name in told if name), "")


def _error(exception: dict[str, Any]) -> str | None:
    if names.EXCEPTION_TYPE not in exception:
        return None
    message = exception.get(names.EXCEPTION_MESSAGE)
    return f"{exception[names.EXCEPTION_TYPE]}: {message}" if message else str(exception[names.EXCEPTION_TYPE])
