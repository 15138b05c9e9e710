"""Histograms fed in bulk: the same numbers as `record()`, to the bit, whoever reads them."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from opentelemetry import metrics as api
from opentelemetry import trace
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk import metrics
from opentelemetry.sdk.metrics._internal import _MeterConfig
from opentelemetry.sdk.metrics._internal import aggregation as aggregations
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.metrics.view import (
    Aggregation,
    DropAggregation,
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
    LastValueAggregation,
    SumAggregation,
    View,
)
from prometheus_client import CollectorRegistry, generate_latest

from otel_ml import errors
from otel_ml.pipeline import bulk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from opentelemetry.metrics import Histogram

    Round = list[tuple[list[float], dict[str, str]]]

BOUNDARIES = (0.001, 0.01, 0.1, 1.0, 10.0)


class _Listing(aggregations._LastValueAggregation):
    """An aggregation that `bulk` does not know: its value depends on each value and their order."""

    def aggregate(self, measurement: Any, should_sample_exemplar: bool = True) -> None:
        with self._lock:
            before = self._value or 0.0
            self._value = before / 3 + math.log1p(measurement.value)  # type: ignore[assignment]


class Listing(Aggregation):
    """Makes `_Listing`."""

    def _create_aggregation(self, instrument: Any, attributes: Any, reservoir_factory: Any, start: int) -> Any:
        return _Listing(attributes, reservoir_factory(_Listing), instrument_is_synchronous=True)


VIEWS: dict[str, list[View]] = {
    "default": [],
    "renamed": [View(instrument_name="h", name="renamed", description="another")],
    "filtered": [View(instrument_name="h", attribute_keys={"kept"})],
    "no attributes": [View(instrument_name="h", attribute_keys=set())],
    "dropped": [View(instrument_name="h", aggregation=DropAggregation())],
    "other buckets": [View(instrument_name="h", aggregation=ExplicitBucketHistogramAggregation([0.0, 0.5, 2.0]))],
    "one bucket": [View(instrument_name="h", aggregation=ExplicitBucketHistogramAggregation([]))],
    "no min and max": [
        View(instrument_name="h", aggregation=ExplicitBucketHistogramAggregation([1.0], record_min_max=False))
    ],
    "exponential": [View(instrument_name="h", aggregation=ExponentialBucketHistogramAggregation())],
    "small exponential": [
        View(instrument_name="h", aggregation=ExponentialBucketHistogramAggregation(max_size=4, max_scale=3))
    ],
    "filtered exponential": [
        View(instrument_name="h", attribute_keys={"kept"}, aggregation=ExponentialBucketHistogramAggregation(20))
    ],
    "sum": [View(instrument_name="h", aggregation=SumAggregation())],
    "last value": [View(instrument_name="h", aggregation=LastValueAggregation())],
    "two Views": [
        View(instrument_name="h", name="one", attribute_keys={"kept"}),
        View(instrument_name="h", name="two", aggregation=ExponentialBucketHistogramAggregation(max_size=8)),
    ],
    "cardinality limit": [View(instrument_name="h", aggregation_cardinality_limit=1)],
    "an aggregation we do not know": [
        View(instrument_name="h", name="listing", aggregation=Listing()),
        View(instrument_name="h", name="usual"),
    ],
}


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(errors, "strict", True)
    assert bulk.install()
    yield
    bulk.uninstall()


def three_readers() -> list[InMemoryMetricReader]:
    """Cumulative, delta, and delta with exponential histograms."""
    delta: dict[type, AggregationTemporality] = {metrics.Histogram: AggregationTemporality.DELTA}
    return [
        InMemoryMetricReader(),
        InMemoryMetricReader(delta),
        InMemoryMetricReader(delta, {metrics.Histogram: ExponentialBucketHistogramAggregation()}),
    ]


def collected(reader: InMemoryMetricReader) -> list[str]:
    """Everything a reader collects but times, as text that shows floats exactly, -0.0 too."""
    try:
        data = reader.get_metrics_data()
    except Exception as error:  # noqa: BLE001 - SDK 1.45.2 fails to merge some exponential histograms of single values too
        return [repr(error)]
    return [
        repr((metric.name, metric.description, metric.unit, type(metric.data).__name__, _without_times(point)))
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    ]


def _without_times(point: Any) -> dict[str, Any]:
    kept = {key: value for key, value in vars(point).items() if not key.endswith("time_unix_nano")}
    kept["exemplars"] = [(e.value, e.filtered_attributes, e.span_id, e.trace_id) for e in point.exemplars]
    return kept


def record_each(histogram: Histogram, values: Sequence[float], attributes: dict[str, str]) -> None:
    """Do what `feed()` must equal; `record()` logs what it refuses, so that is left out."""
    for value in values:
        if math.isfinite(value) and value >= 0:
            histogram.record(value, attributes)


def outcome(
    put: Callable[[Histogram, list[float], dict[str, str]], object],
    rounds: list[Round],
    views: Sequence[View],
    exemplars: metrics.ExemplarFilter | None = None,
) -> list[list[str]]:
    """Everything three readers collect after each round, and once more at the end."""
    readers = three_readers()
    provider = metrics.MeterProvider(readers, views=views, shutdown_on_exit=False, exemplar_filter=exemplars)
    histogram = provider.get_meter("m").create_histogram(
        "h", "s", "what", explicit_bucket_boundaries_advisory=BOUNDARIES
    )
    found = []
    for batches in [*rounds, []]:
        for values, attributes in batches:
            put(histogram, values, attributes)
        found += [collected(reader) for reader in readers]
    provider.shutdown()
    return found


# Durations as they come, and what is awkward: both zeros, powers of two and their
# neighbours (the exponential mapping treats them apart), subnormals, sums that overflow.
AWKWARD = [0.0, -0.0, 0, 1, 5e-324, 2.2250738585072014e-308, 1.7e308, 0.1, 1.0, 10.0]
AWKWARD += [near for power in (-10, -1, 0, 1, 2, 30) for near in (2.0**power, math.nextafter(2.0**power, 0))]
VALUE = st.one_of(
    st.sampled_from(AWKWARD),
    st.floats(min_value=1e-4, max_value=100.0),
    st.floats(allow_nan=True, allow_infinity=True),
)
ATTRIBUTES = st.sampled_from([{}, {"kept": "a"}, {"kept": "a", "dropped": "1"}, {"kept": "a", "dropped": "2"}])
ROUNDS = st.lists(st.lists(st.tuples(st.lists(VALUE, max_size=40), ATTRIBUTES), max_size=4), min_size=1, max_size=3)


@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
@given(rounds=ROUNDS)
@settings(max_examples=40, deadline=None)
def test_any_values_through_any_view_equal_per_value_recording(views: list[View], rounds: list[Round]) -> None:
    """Whatever the values, the View and the reader, every point is the one that `record()` makes."""
    try:
        each = outcome(record_each, rounds, views)
    except Exception:  # noqa: BLE001 - SDK 1.45.2: `record()` itself fails for some values in few exponential buckets
        reject()
    assert outcome(bulk.feed, rounds, views) == each


@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
def test_a_long_training_equals_per_value_recording(views: list[View]) -> None:
    """Batches of thousands of real durations, over many collections, make the points that `record()` makes."""
    dice = random.Random(7)
    rounds: list[Round] = [
        [
            ([dice.lognormvariate(-5, dice.choice((0.01, 0.5, 3))) for _ in range(size)], {"kept": "a", "dropped": "1"})
            for size in (1, 2, 10, 100, 1000)
        ]
        for _ in range(4)
    ]
    assert outcome(bulk.feed, rounds, views) == outcome(record_each, rounds, views)


def test_a_value_that_the_sdk_fails_on_costs_no_other_reader_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the SDK's own exponential histogram raises, that value is lost there and counted; the rest arrive."""
    monkeypatch.setattr(errors, "strict", False)
    monkeypatch.setattr(errors, "swallowed", errors.Swallowed())
    values = [17.0, math.nextafter(2.0**-10, 0), 5e-324, 1.0]
    with pytest.raises(IndexError):
        outcome(record_each, [[(values, {})]], VIEWS["two Views"])
    readers = three_readers()[1:]
    provider = metrics.MeterProvider(readers, views=VIEWS["two Views"], shutdown_on_exit=False)
    bulk.feed(provider.get_meter("m").create_histogram("h"), values)
    counts = [
        {metric.name: metric.data.data_points[0].count for metric in data.resource_metrics[0].scope_metrics[0].metrics}
        for data in (cast("Any", reader.get_metrics_data()) for reader in readers)
    ]
    assert [count["one"] for count in counts] == [4, 4]
    assert list(errors.swallowed.counts) == ["bulk: the SDK's exponential histogram"]


def test_exemplars_under_always_on_equal_per_value_recording() -> None:
    """OTEL_METRICS_EXEMPLAR_FILTER=always_on gets an exemplar of each bucket's last value, as from `record()`."""
    rounds: list[Round] = [[([0.5, 0.002, 0.7, 0.0, 30.0], {"kept": "a", "dropped": "1"})]]
    always = metrics.AlwaysOnExemplarFilter()
    views = VIEWS["filtered"]
    bulk_points = outcome(bulk.feed, rounds, views, always)[:2]
    assert bulk_points == outcome(record_each, rounds, views, always)[:2]
    assert "(0.7, {'dropped': '1'}, None, None)" in bulk_points[0][0]


def test_an_exemplar_filter_of_the_users_own_sees_each_value() -> None:
    """A filter that decides by the value is asked for every value."""
    asked = []

    class Curious(metrics.ExemplarFilter):
        def should_sample(self, value: float, *_: Any) -> bool:
            asked.append(value)
            return False

    outcome(bulk.feed, [[([1.0, 2.0, 3.0], {})]], (), Curious())
    assert asked == [1.0, 2.0, 3.0]


def test_the_feeding_threads_own_span_is_no_exemplar() -> None:
    """A user's thread that flushes inside a sampled span does not lend it to our values."""
    sampled = trace.SpanContext(1, 2, is_remote=False, trace_flags=trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(sampled)):
        points = outcome(bulk.feed, [[([1.0], {}), ([1.0, 2.0], {})]], ())[0]
    assert ["'exemplars': []" in point for point in points] == [True]


def test_refused_values_are_counted() -> None:
    """NaN, infinite and negative values are left out and their number returned; zeros of both signs are values."""
    reader = InMemoryMetricReader()
    provider = metrics.MeterProvider([reader], shutdown_on_exit=False)
    histogram = provider.get_meter("m").create_histogram("h")
    values = [1.0, math.nan, 2.0, math.inf, -1.0, -math.inf, -0.0, 0.0]
    assert [bulk.feed(histogram, some) for some in (values, [], [math.nan], (3.0, -3.0))] == [4, 0, 1, 1]
    [point] = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics[0].data.data_points  # type: ignore[union-attr]
    assert (point.count, point.sum, point.min, point.max) == (5, 6.0, -0.0, 3.0)  # type: ignore[union-attr]


def test_the_prometheus_scrape_is_the_same_text() -> None:
    """A Prometheus server that scrapes cannot tell bulk from per-value recording."""

    def scrapes(put: Callable[[Histogram, list[float], dict[str, str]], object]) -> list[str]:
        reader = PrometheusMetricReader(disable_target_info=True)
        provider = metrics.MeterProvider([reader], shutdown_on_exit=False)
        registry = CollectorRegistry()
        registry.register(reader._collector)
        dice = random.Random(3)
        texts = []
        histogram = provider.get_meter("m").create_histogram(
            "ml.step", "s", explicit_bucket_boundaries_advisory=BOUNDARIES
        )
        for size in (3, 500):
            for phase in ("forward", "backward"):
                put(histogram, [dice.lognormvariate(-3, 2) for _ in range(size)], {"ml.phase": phase})
            texts.append(generate_latest(registry).decode())
        provider.shutdown()
        return texts

    found = scrapes(bulk.feed)
    assert found == scrapes(record_each)
    assert 'ml_step_seconds_count{ml_phase="forward",otel_scope_name="m"' in found[1]


def take(reader: InMemoryMetricReader, total: list[float]) -> None:
    """Add a collection's count, sum and bucket counts to a total."""
    data = reader.get_metrics_data()
    for resource in data.resource_metrics if data else ():
        for point in resource.scope_metrics[0].metrics[0].data.data_points:
            found: Any = point
            buckets = found.positive if hasattr(found, "positive") else found
            total[0] += found.count
            total[1] += found.sum
            total[2] += sum(buckets.bucket_counts)


def test_two_feeders_and_a_delta_collector_lose_nothing() -> None:
    """Under a 10 µs switch interval the deltas that a third thread collects add up to all that two threads fed."""
    readers = three_readers()
    provider = metrics.MeterProvider(readers, shutdown_on_exit=False)
    histogram = provider.get_meter("m").create_histogram("h", explicit_bucket_boundaries_advisory=BOUNDARIES)
    totals: list[list[float]] = [[0, 0.0, 0], [0, 0.0, 0]]
    busy = threading.Event()
    busy.set()

    def feeder(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(150):
            # Multiples of 1/1024: their sums are exact in any order.
            bulk.feed(histogram, [dice.randint(1, 1 << 20) / 1024 for _ in range(20)])

    def collector() -> None:
        while busy.is_set():
            for reader, total in zip(readers[1:], totals, strict=True):
                take(reader, total)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        feeders = [threading.Thread(target=feeder, args=(seed,)) for seed in (1, 2)]
        collecting = threading.Thread(target=collector)
        for thread in (collecting, *feeders):
            thread.start()
        for thread in feeders:
            thread.join()
        busy.clear()
        collecting.join()
    finally:
        sys.setswitchinterval(before)
    for reader, total in zip(readers[1:], totals, strict=True):
        take(reader, total)
    expected = sum(dice.randint(1, 1 << 20) / 1024 for dice in map(random.Random, (1, 2)) for _ in range(3000))
    cumulative: list[float] = [0, 0.0, 0]
    take(readers[0], cumulative)
    assert [*totals, cumulative] == [[6000, expected, 6000]] * 3
    provider.shutdown()


def test_installing_twice_patches_once_and_the_last_uninstall_restores_identically() -> None:
    """After as many `uninstall()` as `install()`, every SDK method is the object it was."""
    bulk.uninstall()
    classes = [getattr(aggregations, name) for name in bulk.BULK]
    before = [vars(cls)["aggregate"] for cls in classes]
    assert bulk.install()
    patched = [vars(cls)["aggregate"] for cls in classes]
    assert bulk.install()
    nested = [vars(cls)["aggregate"] for cls in classes]
    bulk.uninstall()
    still = [vars(cls)["aggregate"] for cls in classes]
    bulk.uninstall()
    after = [vars(cls)["aggregate"] for cls in classes]
    bulk.uninstall()  # one too many does nothing
    bulk.install()  # the fixture's
    assert [one is two for one, two in zip(before, after, strict=True)] == [True] * 4
    assert [one is two is three for one, two, three in zip(patched, nested, still, strict=True)] == [True] * 4
    assert [one is two for one, two in zip(before, patched, strict=True)] == [False] * 4


def test_someone_elses_later_patch_is_left_alone() -> None:
    """`uninstall()` does not throw away a wrapper that was put around ours, and users' records still count."""
    cls: Any = aggregations._SumAggregation
    ours = vars(cls)["aggregate"]

    def theirs(self: Any, measurement: Any, should_sample_exemplar: bool = True) -> None:
        ours(self, measurement, should_sample_exemplar)

    cls.aggregate = theirs
    bulk.uninstall()
    try:
        assert vars(cls)["aggregate"] is theirs
        rounds: list[Round] = [[([1.0, 2.0], {})]]
        assert outcome(bulk.feed, rounds, VIEWS["sum"]) == outcome(record_each, rounds, VIEWS["sum"])
    finally:
        cls.aggregate = ours.__wrapped__
        bulk.install()


def test_an_sdk_that_counts_otherwise_falls_back_to_record(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the probe sees a difference nothing stays patched, and the values are recorded one by one."""
    bulk.uninstall()
    cls: Any = aggregations._ExplicitBucketHistogramAggregation
    original = cls.aggregate

    def twice(self: Any, measurement: Any, should_sample_exemplar: bool = True) -> None:
        original(self, measurement, should_sample_exemplar)
        original(self, measurement, should_sample_exemplar)

    monkeypatch.setattr(cls, "aggregate", twice)
    installed = bulk.install()
    left = vars(cls)["aggregate"]
    rounds: list[Round] = [[([1.0, 2.0], {})]]
    try:
        assert outcome(bulk.feed, rounds, ()) == outcome(record_each, rounds, ())
    finally:
        bulk.uninstall()
        monkeypatch.undo()
        bulk.install()
    assert (installed, left is twice) == (False, True)
    assert [record.getMessage() for record in caplog.records] == [
        "otel-ml: histograms are recorded value by value: slower, the same numbers"
    ]


def test_an_sdk_without_an_aggregation_we_patch_falls_back_to_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """An SDK that renamed one of the four is not patched at all."""
    bulk.uninstall()
    cls: Any = aggregations._ExplicitBucketHistogramAggregation
    before = vars(cls)["aggregate"]
    monkeypatch.setattr(bulk, "BULK", {**bulk.BULK, "_RenamedAggregation": bulk.BULK["_SumAggregation"]})
    try:
        assert (bulk.install(), vars(cls)["aggregate"] is before) == (False, True)
    finally:
        bulk.uninstall()
        monkeypatch.undo()
        bulk.install()


def test_a_disabled_sdk_is_not_patched_and_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """OTEL_SDK_DISABLED=true leaves nothing to feed, which is no cause for a warning."""
    bulk.uninstall()
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    installed = bulk.install()
    bulk.uninstall()
    monkeypatch.delenv("OTEL_SDK_DISABLED")
    bulk.install()
    assert (installed, caplog.records) == (False, [])


def test_foreign_histograms_get_their_values_by_record() -> None:
    """A histogram that is not the SDK's, or whose `record` is overridden, gets each value through `record()`."""

    class Foreign(api.Histogram):
        def __init__(self) -> None:
            self.seen: list[tuple[float, object]] = []

        def record(self, amount: float, attributes: Any = None, context: Any = None) -> None:
            self.seen.append((amount, attributes))

    foreign = Foreign()
    refused = bulk.feed(foreign, [1.0, math.nan, 2.0], {"a": "b"})
    assert (refused, foreign.seen) == (1, [(1.0, {"a": "b"}), (2.0, {"a": "b"})])
    for other in (api.NoOpMeter("m").create_histogram("h"), api.get_meter("m").create_histogram("h")):
        assert bulk.feed(other, [1.0, 2.0]) == 0


def test_a_disabled_meter_records_nothing() -> None:
    """A meter that a configurator switched off stays silent in bulk as well."""
    reader = InMemoryMetricReader()
    provider = metrics.MeterProvider([reader], shutdown_on_exit=False)
    histogram = provider.get_meter("m").create_histogram("h")
    provider._set_meter_configurator(meter_configurator=_switched_off)
    bulk.feed(histogram, [1.0, 2.0])
    assert reader.get_metrics_data() is None
    provider.shutdown()


def _switched_off(_scope: Any) -> Any:
    return _MeterConfig(is_enabled=False)


FORKING = """
import os, signal, sys, threading
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from otel_ml.pipeline import bulk

bulk.install()
reader = InMemoryMetricReader()
histogram = MeterProvider([reader], shutdown_on_exit=False).get_meter("m").create_histogram("h")
stop = threading.Event()
def feed():
    while not stop.is_set():
        bulk.feed(histogram, [0.5, 0.25, 3.0])
sys.setswitchinterval(1e-5)
feeder = threading.Thread(target=feed)
feeder.start()
codes = []
for _ in range(40):
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a child that hangs dies of it
        bulk.feed(histogram, [1.0, 2.0])
        os._exit(0)
    codes.append(os.waitpid(child, 0)[1])
stop.set()
feeder.join()
print(codes == [0] * 40)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_children_forked_while_another_thread_feeds_can_feed() -> None:
    """No fork happens while the SDK's locks are held by a feed, so no child inherits a lock that stays locked."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 0)
