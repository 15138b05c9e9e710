"""What a program's telemetry would be, as plain data: for tests, ours and users'.

`capture()` runs the whole pipeline in this process on in-memory exporters; nothing leaves
it and no global provider is set. Torch programs inside the block are hooked as under a
launcher (an optimizer must be built inside it); without a framework,
`otel_ml.core.context.recorders.mine().record(…)` makes events by hand. There is no
background thread: what was recorded is told at the end of the block, or at each
`Captured.turn()`, so what comes out does not depend on the machine's pace. An error of
ours is raised instead of swallowed.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    ExponentialHistogram,
    Gauge,
    HistogramDataPoint,
    InMemoryMetricReader,
    NumberDataPoint,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import format_span_id, format_trace_id

from otel_ml import errors, names
from otel_ml.core import clock as clocks
from otel_ml.core import runtime
from otel_ml.core.context import limits, optimizers, recorders, roots, scalars
from otel_ml.core.identity import Identity
from otel_ml.core.recorder import keep_time_by
from otel_ml.instrument.jax import JaxInstrumentor
from otel_ml.instrument.torch import TorchInstrumentor
from otel_ml.pipeline.providers import Providers
from otel_ml.pipeline.run import Run
from otel_ml.pipeline.spans import LiveStep
from otel_ml.settings import Settings
from otel_ml.watch.anomalies import Anomalies
from otel_ml.watch.diagnosis import diagnose

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk.metrics.export import Metric
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.sampling import Sampler

    from otel_ml.totals import RunTotals

_INSTRUMENTORS = (TorchInstrumentor, JaxInstrumentor)

__all__ = ["RUN_ID", "Captured", "FakeClock", "capture"]

RUN_ID = "captured"

_END_S = 30.0


class FakeClock:
    """A clock that stands still until `advance()`; given to `capture()`, every duration is exact.

    It starts at 1 s by the monotonic clock and at 1,000 s by the wall clock. What a
    framework timed itself (a compilation) keeps its real duration.
    """

    def __init__(self) -> None:
        self.time_ns = 1_000_000_000

    def __call__(self) -> int:
        """The time now, as `otel_ml.core.clock.now()` gives it."""
        return self.time_ns

    def wall(self) -> int:
        """The time now in Unix nanoseconds."""
        return self.time_ns + 999_000_000_000

    def advance(self, seconds: float) -> None:
        """Let this much time pass."""
        self.time_ns += round(seconds * 1e9)


@dataclass
class Captured:
    """A program's telemetry as lists of dicts, keys as in the local store; filled at `turn()` and at the end.

    Spans and logs of the program's own come along when they are made with
    `tracer_provider` and `logging`; `totals` are there once the block has ended, or None
    if nothing was seen.
    """

    run: Run = field(repr=False)
    tracer_provider: TracerProvider = field(repr=False)
    meter_provider: MeterProvider = field(repr=False)
    logger_provider: LoggerProvider = field(repr=False)
    spans: list[dict[str, Any]] = field(default_factory=list)
    logs: list[dict[str, Any]] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    totals: RunTotals | None = None
    _spans: InMemorySpanExporter = field(default_factory=InMemorySpanExporter, repr=False)
    _logs: InMemoryLogRecordExporter = field(default_factory=InMemoryLogRecordExporter, repr=False)
    _metrics: InMemoryMetricReader = field(default_factory=InMemoryMetricReader, repr=False)

    def turn(self) -> None:
        """Have everything recorded so far told, as the background thread would each second."""
        self.run.drain.turn(pause=False)
        self._read()

    def named(self, name: str) -> list[dict[str, Any]]:
        """The spans of this name, in the order of their starts."""
        return sorted((s for s in self.spans if s["name"] == name), key=lambda s: s["start_unix_ns"])

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log records of this event name."""
        return [log for log in self.logs if log["event_name"] == name]

    def steps(self) -> list[dict[str, Any]]:
        """The step records, one a step or a bin of them, whether they came singly or as columns."""
        rows = [log["attributes"] for log in self.events(names.EVENT_STEP)]
        for log in self.events(names.EVENT_STEPS):
            columns = {k: v for k, v in log["attributes"].items() if isinstance(v, list)}
            count = len(columns[names.STEP_NUMBER])
            rows += [{k: v[n] for k, v in columns.items() if v[n] is not None} for n in range(count)]
        return sorted(rows, key=lambda row: row[names.STEP_NUMBER])

    def points(self, metric: names.Metric | str) -> dict[tuple[tuple[str, Any], ...], Any]:
        """A metric's points by their attributes: the value, or a histogram's (count, sum)."""
        wanted = metric if isinstance(metric, str) else metric.name
        return {
            tuple(sorted(point["attributes"].items())): point["value"]
            if "value" in point
            else (point["count"], point["sum"])
            for point in self.metrics
            if point["name"] == wanted
        }

    def _read(self) -> None:
        self.spans = [_span(span) for span in self._spans.get_finished_spans()]
        self.logs = [_log(log) for log in self._logs.get_finished_logs()]
        data = self._metrics.get_metrics_data()
        self.metrics = [
            point
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in _points(metric)
        ]

    def _end(self, error: BaseException | None) -> None:
        # As at a program's end: `sys.exit()` is no failure.
        self.totals = self.run.finish(None if isinstance(error, SystemExit) else error, _END_S)
        self._read()


@contextmanager
def capture(*, sampler: Sampler | None = None, clock: FakeClock | None = None) -> Iterator[Captured]:
    """Record what the block does, as under a launcher, and give its telemetry as plain data.

    An exception of the block's passes through, once it has been told of. One block at a
    time, and not in a process that is recorded already: raises `OtelMlError` there.

    Args:
        sampler: The tracer provider's sampler; unset, everything is sampled.
        clock: What tells the time; unset, the machine's own clock.
    """
    if isinstance(trace.get_current_span(), LiveStep):
        message = "capture() inside another one, or in a process that is being recorded already"
        raise errors.OtelMlError(message)
    with _apart(clock):
        captured = _start(sampler or ALWAYS_ON)
        try:
            for instrumentor in _INSTRUMENTORS:
                instrumentor().instrument()
            try:
                yield captured
            except BaseException as error:
                captured._end(error)  # noqa: SLF001 - its own kind
                raise
            captured._end(None)  # noqa: SLF001
        finally:
            for instrumentor in _INSTRUMENTORS:
                instrumentor().uninstrument()
            captured.run.detach()
            for provider in (captured.tracer_provider, captured.meter_provider, captured.logger_provider):
                provider.shutdown()


def _start(sampler: Sampler) -> Captured:
    spans, logs, metrics = InMemorySpanExporter(), InMemoryLogRecordExporter(), InMemoryMetricReader()
    resource = Resource({names.RUN_ID: RUN_ID})
    tracer = TracerProvider(sampler, resource, shutdown_on_exit=False)
    tracer.add_span_processor(SimpleSpanProcessor(spans))
    meter = MeterProvider([metrics], resource, shutdown_on_exit=False)
    logger = LoggerProvider(resource, shutdown_on_exit=False)
    logger.add_log_record_processor(SimpleLogRecordProcessor(logs))
    chosen = Settings.from_env({})
    run = Run(
        Identity(RUN_ID, RUN_ID, 0, None, None, None, "none", RUN_ID),
        Providers(tracer, meter, logger, made=set()),
        writer=None,
        judge=_judge,
        watch=Anomalies().recompiled,
        steps_per_second=chosen.steps_per_second,
        points_per_second=chosen.points_per_second,
        points_burst=chosen.points_burst,
        started=clocks.now(),
    )
    run.start(drain=False)
    return Captured(run, tracer, meter, logger, _spans=spans, _logs=logs, _metrics=metrics)


def _judge(totals: RunTotals) -> tuple[str, str, str]:
    found = diagnose(totals)
    return found.verdict, found.evidence, found.advice


@contextmanager
def _apart(clock: FakeClock | None) -> Iterator[None]:
    """What is the process's own is the block's meanwhile: what was recorded and met, the errors, the clock."""
    strict, counts = errors.strict, errors.swallowed.counts
    frameworks, trained, limit = dict(runtime.frameworks), list(runtime.trained), recorders.limit
    now, wall = clocks.now, clocks.wall
    errors.strict, errors.swallowed.counts = True, {}
    runtime.frameworks.clear()
    runtime.trained.clear()
    _forget(Settings.from_env({}).buffer)
    if clock is not None:
        _replace(now, clock)
        keep_time_by(clock)
        clocks.wall = clock.wall
    try:
        yield
    finally:
        if clock is not None:
            _replace(clock, now)
            keep_time_by(None)
            clocks.wall = wall
        errors.strict, errors.swallowed.counts = strict, counts
        runtime.frameworks.clear()
        runtime.frameworks.update(frameworks)
        runtime.trained[:] = trained
        _forget(limit)


def _forget(limit: int) -> None:
    recorders.restart(limit)
    for known in (optimizers, roots, scalars, limits):
        known.restart()


def _replace(before: Any, after: Any) -> None:
    """Put another clock wherever one of our modules has this one by name: hooks read it as a global."""
    for name, module in list(sys.modules.items()):
        if name.startswith("otel_ml.") and vars(module).get("now") is before:
            vars(module)["now"] = after


# --- from the SDK's objects to plain data ------------------------------------------------


def _span(span: ReadableSpan) -> dict[str, Any]:
    context: Any = span.context
    return {
        "trace_id": format_trace_id(context.trace_id),
        "span_id": format_span_id(context.span_id),
        "parent_span_id": None if span.parent is None else format_span_id(span.parent.span_id),
        "name": span.name,
        "kind": span.kind.name.lower(),
        "start_unix_ns": span.start_time,
        "end_unix_ns": span.end_time,
        "status": span.status.status_code.name.lower(),
        "status_message": span.status.description,
        "attributes": _plain(span.attributes),
        "links": [
            {
                "trace_id": format_trace_id(link.context.trace_id),
                "span_id": format_span_id(link.context.span_id),
                "attributes": _plain(link.attributes),
            }
            for link in span.links
        ],
        "events": [
            {"name": event.name, "time_unix_ns": event.timestamp, "attributes": _plain(event.attributes)}
            for event in span.events
        ],
    }


def _log(log: ReadableLogRecord) -> dict[str, Any]:
    record = log.log_record
    return {
        "time_unix_ns": record.timestamp or record.observed_timestamp,
        "event_name": record.event_name or None,
        "severity_number": None if record.severity_number is None else record.severity_number.value,
        "body": record.body,
        "trace_id": format_trace_id(record.trace_id) if record.trace_id else None,
        "span_id": format_span_id(record.span_id) if record.span_id else None,
        "attributes": _plain(record.attributes),
    }


def _points(metric: Metric) -> list[dict[str, Any]]:
    data = metric.data
    if isinstance(data, Gauge):
        kind = "gauge"
    elif isinstance(data, Sum):
        kind = "counter" if data.is_monotonic else "up_down_counter"
    else:
        kind = "exponential_histogram" if isinstance(data, ExponentialHistogram) else "histogram"
    head = {"name": metric.name, "kind": kind, "unit": metric.unit or ""}
    return [{**head, "attributes": _plain(point.attributes), **_value(point)} for point in data.data_points]


def _value(point: Any) -> dict[str, Any]:
    if isinstance(point, NumberDataPoint):
        return {"value": point.value}
    summary = {"count": point.count, "sum": point.sum, "min": point.min, "max": point.max}
    if isinstance(point, HistogramDataPoint):
        buckets = {"bounds": list(point.explicit_bounds), "counts": list(point.bucket_counts)}
    else:
        buckets = {"scale": point.scale, "zero_count": point.zero_count}
        for side, part in (("positive", point.positive), ("negative", point.negative)):
            buckets[side] = {"offset": part.offset, "counts": list(part.bucket_counts)}
    return {**summary, "buckets": buckets}


def _plain(attributes: Any) -> dict[str, Any]:
    """Keys as plain text and sequences as lists, so that whole structures compare."""
    return {str(k): list(v) if isinstance(v, tuple) else v for k, v in (attributes or {}).items()}
