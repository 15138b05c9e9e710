"""Instruments of `names.METRICS`: made once, fed at flushes, complete whenever a reader collects."""

from __future__ import annotations

import math
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk import metrics
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    InMemoryMetricReader,
    MetricExportResult,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View

from otel_ml import errors, names
from otel_ml.pipeline import bulk
from otel_ml.pipeline.instruments import FLUSH_AT, Instruments

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.metrics.export import MetricReader, MetricsData

FORWARD = {names.PHASE: "forward"}
BACKWARD = {names.PHASE: "backward"}


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(errors, "strict", True)
    assert bulk.install()
    yield
    bulk.uninstall()


def provide(*readers: MetricReader, views: tuple[View, ...] = ()) -> metrics.MeterProvider:
    """Make a provider as a user would."""
    return metrics.MeterProvider(readers, views=views, shutdown_on_exit=False)


def instruments_of(provider: metrics.MeterProvider, size: int | None = None) -> Instruments:
    """Make instruments from a provider's meter of our scope."""
    return Instruments(provider.get_meter(names.SCOPE), lambda: size)


def streams(data: MetricsData | None) -> list[tuple[str, str, list[tuple[dict[str, Any], Any]]]]:
    """Name, unit, and each point's attributes with its value or (count, sum), by name."""
    return sorted(
        (metric.name, metric.unit or "", [(dict(p.attributes or {}), _figure(p)) for p in metric.data.data_points])
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
    )


def _figure(point: Any) -> Any:
    return point.value if hasattr(point, "value") else (point.count, point.sum)


def test_what_is_pending_is_collected_without_anyone_flushing() -> None:
    """A reader that collects between two ticks gets every value handed in before."""
    reader = InMemoryMetricReader()
    instruments = instruments_of(provide(reader), size=4096)
    instruments.observe(names.PHASE_DURATION, [0.25, 0.5], FORWARD)
    instruments.observe(names.PHASE_DURATION, [0.125], BACKWARD)
    instruments.observe(names.PHASE_DURATION, [1.0], FORWARD)
    instruments.add(names.STEPS, 1, {names.OUTCOME: "ok"})
    instruments.add(names.STEPS, 2, {names.OUTCOME: "ok"})
    instruments.set(names.LOSS, 3.0, {})
    instruments.set(names.LOSS, 2.5)
    assert streams(reader.get_metrics_data()) == [
        ("ml.training.loss", "{loss}", [({}, 2.5)]),
        ("ml.training.phase.duration", "s", [(FORWARD, (3, 1.75)), (BACKWARD, (1, 0.125))]),
        ("ml.training.steps", "{step}", [({"ml.outcome": "ok"}, 3)]),
        ("otel_ml.store.size", "By", [({}, 4096)]),
    ]


def test_without_a_store_its_size_is_absent() -> None:
    """What we could not measure is not a point, but the collection still flushes."""
    reader = InMemoryMetricReader()
    instruments = instruments_of(provide(reader))
    instruments.add(names.SAMPLES, 32)
    assert streams(reader.get_metrics_data()) == [("ml.training.samples", "{sample}", [({}, 32)])]


def test_every_metric_has_its_unit_description_and_buckets() -> None:
    """Whatever `names.METRICS` says of a metric arrives at the exporter."""
    reader = InMemoryMetricReader()
    instruments = instruments_of(provide(reader), size=1)
    for metric in names.METRICS.values():
        if metric.kind == "histogram":
            instruments.observe(metric, [1.0])
        elif metric.kind == "gauge":
            if metric is not names.STORE_SIZE:
                instruments.set(metric, 1.0)
        else:
            instruments.add(metric, 1)
    data: Any = reader.get_metrics_data()
    found = {
        metric.name: (metric.unit, metric.description, getattr(metric.data.data_points[0], "explicit_bounds", None))
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
    }
    assert found == {metric.name: (metric.unit, metric.doc, metric.buckets) for metric in names.METRICS.values()}


def test_no_instrument_is_made_twice_or_before_its_first_use(caplog: pytest.LogCaptureFixture) -> None:
    """Each instrument is created once, when its metric first comes, and none while a reader collects."""
    created: list[tuple[str, int]] = []

    class Watched(metrics.Meter):
        def _register_instrument(self, name: str, *rest: Any, **named: Any) -> Any:
            created.append((name, threading.get_ident()))
            return super()._register_instrument(name, *rest, **named)

    reader = InMemoryMetricReader()
    meter = provide(reader).get_meter(names.SCOPE)
    meter.__class__ = Watched
    instruments = Instruments(meter, lambda: None)
    for _ in range(3):
        instruments.observe(names.STEP_DURATION, [0.5])
        instruments.add(names.TOKENS, 10)
        instruments.set(names.LEARNING_RATE, 0.1)
        collecting = threading.Thread(target=reader.collect)
        collecting.start()
        collecting.join()
    here = threading.get_ident()
    assert created == [
        (metric.name, here) for metric in (names.STORE_SIZE, names.STEP_DURATION, names.TOKENS, names.LEARNING_RATE)
    ]
    assert caplog.records == []


def test_a_users_view_yields_exactly_one_stream() -> None:
    """A View on the user's own provider replaces our advice and makes no second stream."""
    reader = InMemoryMetricReader()
    view = View(
        instrument_name="ml.training.step.*",
        attribute_keys=set(),
        aggregation=ExplicitBucketHistogramAggregation([1.0, 2.0]),
    )
    instruments = instruments_of(provide(reader, views=(view,)))
    instruments.observe(names.STEP_DURATION, [0.5, 1.5, 4.0], {names.FRAMEWORK_NAME: "torch"})
    data: Any = reader.get_metrics_data()
    [metric] = data.resource_metrics[0].scope_metrics[0].metrics
    [point] = metric.data.data_points
    assert (metric.name, point.attributes, point.explicit_bounds, point.bucket_counts) == (
        "ml.training.step.duration", {}, (1.0, 2.0), (1, 1, 1),
    )  # fmt: skip


def test_the_standard_switch_makes_exponential_histograms(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION is obeyed, for all our histograms."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "base2_exponential_bucket_histogram")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")
    sent = []

    class Kept(OTLPMetricExporter):
        def export(self, metrics_data: MetricsData, *_: Any, **__: Any) -> MetricExportResult:
            sent.append(metrics_data)
            return MetricExportResult.SUCCESS

    reader = PeriodicExportingMetricReader(Kept(), export_interval_millis=math.inf)
    instruments = instruments_of(provide(reader))
    for values in ([0.25, 0.5, 0.0], [4.0]):
        instruments.observe(names.STEP_DURATION, values)
        reader.force_flush()
    reader.shutdown()
    found = []
    for data in sent:
        [metric] = data.resource_metrics[0].scope_metrics[0].metrics
        found += [(type(metric.data).__name__, _figure(point)) for point in metric.data.data_points]
    assert found == [("ExponentialHistogram", (3, 0.75)), ("ExponentialHistogram", (1, 4.0))]


def test_delta_readers_get_each_value_once() -> None:
    """With delta temporality every collection holds what came since the last, and nothing twice."""
    kinds = (metrics.Histogram, metrics.Counter)
    reader = InMemoryMetricReader(dict.fromkeys(kinds, AggregationTemporality.DELTA))
    instruments = instruments_of(provide(reader))
    found = []
    for values in ([0.5, 0.25], [2.0]):
        instruments.observe(names.STEP_DURATION, values)
        instruments.add(names.STEPS, len(values))
        found.append([points for _, _, points in streams(reader.get_metrics_data())])
    assert found == [[[({}, (2, 0.75))], [({}, 2)]], [[({}, (1, 2.0))], [({}, 1)]]]
    assert reader.get_metrics_data() is None


def test_a_kept_steps_value_is_an_exemplar_of_its_trace() -> None:
    """`record_kept` in a sampled step's context leaves that step's ids; one that was not sampled leaves none."""
    reader = InMemoryMetricReader()
    instruments = instruments_of(provide(reader))

    def within(trace_id: int, flags: int) -> Any:
        span = trace.NonRecordingSpan(
            trace.SpanContext(trace_id, 7, is_remote=False, trace_flags=trace.TraceFlags(flags))
        )
        return trace.set_span_in_context(span)

    instruments.observe(names.STEP_DURATION, [0.25, 0.5], {names.FRAMEWORK_NAME: "torch"})
    instruments.record_kept(names.STEP_DURATION, 0.5, {names.FRAMEWORK_NAME: "torch"}, within(41, 1))
    instruments.record_kept(names.STEP_DURATION, 9.0, {names.FRAMEWORK_NAME: "torch"}, within(42, 0))
    data: Any = reader.get_metrics_data()
    [point] = data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points
    exemplars = [(exemplar.trace_id, exemplar.span_id, exemplar.value) for exemplar in point.exemplars]
    assert (point.count, exemplars) == (4, [(41, 7, 0.5)])


def test_a_flush_inside_a_users_span_makes_no_exemplar() -> None:
    """The user's span that happens to surround a flush has nothing to do with our values."""
    reader = InMemoryMetricReader()
    instruments = instruments_of(provide(reader))
    instruments.observe(names.STEP_DURATION, [0.25])
    instruments.add(names.STEPS, 1)
    instruments.set(names.LOSS, 1.0)
    with trace.use_span(
        trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=False, trace_flags=trace.TraceFlags(1)))
    ):
        instruments.flush()
    data: Any = reader.get_metrics_data()
    found = data.resource_metrics[0].scope_metrics[0].metrics
    assert [list(metric.data.data_points[0].exemplars) for metric in found] == [[], [], []]


def test_an_attribute_that_names_does_not_list_is_refused() -> None:
    """In our tests an unlisted attribute is an error at once."""
    instruments = instruments_of(provide(InMemoryMetricReader()))
    with pytest.raises(AssertionError, match=r"ml\.training\.steps may not carry ml\.step\.number"):
        instruments.add(names.STEPS, 1, {"ml.outcome": "ok", "ml.step.number": "3"})


def test_for_users_an_unlisted_attribute_is_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a user's program the value counts, the attribute does not travel, and we count our mistake."""
    monkeypatch.setattr(errors, "strict", False)
    monkeypatch.setattr(errors, "swallowed", errors.Swallowed())
    reader = InMemoryMetricReader()
    instruments = instruments_of(provide(reader))
    for number in ("3", "4"):
        instruments.add(names.STEPS, 1, {names.STEP_NUMBER: number, names.OUTCOME: "ok"})
    assert streams(reader.get_metrics_data()) == [("ml.training.steps", "{step}", [({"ml.outcome": "ok"}, 2)])]
    assert errors.swallowed.counts == {"attributes of ml.training.steps": 2}


def test_values_without_a_meaning_are_counted_and_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """NaN, infinite and negative values reach no instrument, and the SDK prints no warning about them."""
    reader = InMemoryMetricReader()
    instruments = instruments_of(provide(reader))
    instruments.observe(names.STEP_DURATION, [math.nan, 0.5, -1.0])
    instruments.record_kept(names.STEP_DURATION, math.inf, None, trace.set_span_in_context(trace.INVALID_SPAN))
    instruments.add(names.STEPS, -1)
    instruments.add(names.STEPS, math.nan)
    instruments.set(names.LOSS, math.nan)
    instruments.set(names.LOSS, -2.0)
    assert streams(reader.get_metrics_data()) == [
        ("ml.training.loss", "{loss}", [({}, -2.0)]),
        ("ml.training.step.duration", "s", [({}, (1, 0.5))]),
    ]
    assert (instruments.refused, caplog.records) == (6, [])


def test_the_order_of_attributes_makes_no_second_series() -> None:
    """The last value wins whichever way round its attributes were written."""
    reader = InMemoryMetricReader()
    instruments = instruments_of(provide(reader))
    one, other = {names.OPTIMIZER: "Adam", names.PARAM_GROUP: "0"}, {names.PARAM_GROUP: "0", names.OPTIMIZER: "Adam"}
    for value, attributes in ((0.1, one), (0.2, other), (0.3, one)):
        instruments.set(names.LEARNING_RATE, value, attributes)
    assert streams(reader.get_metrics_data()) == [("ml.training.learning_rate", "{rate}", [(one, 0.3)])]


def test_a_name_of_ours_as_a_value_makes_no_second_series() -> None:
    """A span's name from `names` and the same word written out are one value."""
    reader = InMemoryMetricReader()
    instruments = instruments_of(provide(reader))
    for phase in (names.SPAN_FORWARD, "forward"):
        instruments.observe(names.PHASE_DURATION, [0.5, 0.25], {names.PHASE: phase})
        instruments.flush()
    assert streams(reader.get_metrics_data()) == [("ml.training.phase.duration", "s", [(FORWARD, (4, 1.5))])]


def test_many_values_do_not_wait_for_the_tick() -> None:
    """A burst is fed as soon as it fills a slice, so that what is pending stays bounded."""
    reader = InMemoryMetricReader()
    provider = provide(reader)
    instruments = instruments_of(provider)
    instruments.observe(names.STEP_DURATION, [0.5] * FLUSH_AT)
    instruments.observe(names.STEP_DURATION, [0.5])
    instruments.forget()
    assert streams(reader.get_metrics_data()) == [("ml.training.step.duration", "s", [({}, (FLUSH_AT, FLUSH_AT / 2))])]


def test_another_provider_takes_over_with_what_is_pending() -> None:
    """After `use()`, pending and later values go to the new provider, and the old one's readers get nothing more."""
    old, new = InMemoryMetricReader(), InMemoryMetricReader()
    instruments = instruments_of(provide(old), size=8)
    instruments.add(names.STEPS, 1)
    first = streams(old.get_metrics_data())
    instruments.add(names.STEPS, 2)
    instruments.observe(names.STEP_DURATION, [0.5])
    meter = provide(new).get_meter(names.SCOPE)
    instruments.use(meter)
    instruments.use(meter)
    left = streams(old.get_metrics_data())
    assert (first, left) == (
        [("ml.training.steps", "{step}", [({}, 1)]), ("otel_ml.store.size", "By", [({}, 8)])],
        [("ml.training.steps", "{step}", [({}, 1)])],
    )
    instruments.add(names.TOKENS, 5)
    assert streams(new.get_metrics_data()) == [
        ("ml.training.step.duration", "s", [({}, (1, 0.5))]),
        ("ml.training.steps", "{step}", [({}, 2)]),
        ("ml.training.tokens", "{token}", [({}, 5)]),
        ("otel_ml.store.size", "By", [({}, 8)]),
    ]


def test_a_drain_and_two_readers_lose_nothing() -> None:
    """While one thread hands in values and two collect, the deltas add up and providers can be swapped."""
    delta: dict[type, AggregationTemporality] = {metrics.Histogram: AggregationTemporality.DELTA}
    readers = [InMemoryMetricReader(delta), InMemoryMetricReader(delta)]
    instruments = instruments_of(provide(readers[0]))
    meters = [provide(readers[1]).get_meter(names.SCOPE)]
    counts = [0, 0]
    busy = threading.Event()
    busy.set()

    def collect(which: int) -> None:
        while True:
            last = not busy.is_set()
            for _, _, points in streams(readers[which].get_metrics_data()):
                counts[which] += sum(count for _, (count, _) in points)
            if last:
                return

    collectors = [threading.Thread(target=collect, args=(which,)) for which in (0, 1)]
    for collector in collectors:
        collector.start()
    for turn in range(2000):
        instruments.observe(names.STEP_DURATION, [0.5, 0.25, 0.125])
        if turn == 1000:
            instruments.use(meters[0])
        if turn % 10 == 0:
            instruments.flush()
    busy.clear()
    for collector in collectors:
        collector.join()
    assert (sum(counts), counts[0] > 0, counts[1] > 0) == (6000, True, True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_count_its_parents_values() -> None:
    """What was pending at a fork is the parent's; the child starts empty and the parent loses nothing."""
    reader = InMemoryMetricReader()
    instruments = instruments_of(provide(reader))
    instruments.add(names.STEPS, 7)
    child = os.fork()
    if child == 0:
        instruments.add(names.SAMPLES, 1)
        found = streams(reader.get_metrics_data())
        os._exit(0 if found == [("ml.training.samples", "{sample}", [({}, 1)])] else 1)
    assert (os.waitpid(child, 0)[1], streams(reader.get_metrics_data())) == (
        0,
        [("ml.training.steps", "{step}", [({}, 7)])],
    )
