"""Feeds OpenTelemetry histograms many values at a time, equal to `record()` to the bit.

Why: a `record()` costs 3-9 µs and a fast training loop makes thousands of values a
second. `instruments.py` calls `feed()` on the drain thread, and on a reader's thread just
before that reader collects.

How: a `Batch` travels through the SDK's own `consume_measurement`, so Views, attribute
filters, cardinality limits, delta resets and every reader stay the SDK's. Only the last
link, `aggregate()` of four aggregations, learns what a `Batch` is. An aggregation that we
do not know is noticed (it reads the batch's `value`) and gets the values one by one.
`install()` compares bulk with per-value recording on a throwaway provider; where they
differ, or the instrument is not the SDK's, `feed()` calls the public `record()`.
"""

# ruff: noqa: SLF001 - the SDK's internals have neither public names nor types
from __future__ import annotations

import os
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from functools import wraps
from math import frexp, inf, isfinite
from threading import RLock
from time import time_ns
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk import metrics
from opentelemetry.sdk.environment_variables import OTEL_SDK_DISABLED
from opentelemetry.sdk.metrics._internal import aggregation as aggregations
from opentelemetry.sdk.metrics._internal.measurement import Measurement
from opentelemetry.sdk.metrics._internal.measurement_consumer import SynchronousMeasurementConsumer
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.metrics.view import (
    ExponentialBucketHistogramAggregation,
    LastValueAggregation,
    SumAggregation,
    View,
)
from opentelemetry.sdk.resources import Resource

from otel_ml import errors
from otel_ml.pipeline.columns import add_up, extremes, floats, tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from opentelemetry.metrics import Histogram

    Attributes = Mapping[str, str | bool | int | float] | None
    Aggregate = Callable[[Any, Measurement, bool], None]

__all__ = ["NOWHERE", "Batch", "Rest", "feed", "gate", "install", "probe", "uninstall"]

gate = RLock()
"""Held while the SDK is fed, and across a fork.

The SDK does not re-make its locks in a forked child, so no fork may happen while one of
our threads holds one. Reentrant, for a fork from within a feed.
"""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=gate.acquire, after_in_parent=gate.release, after_in_child=gate.release)

# Not empty, so that the SDK does not take the calling thread's context instead: a
# user's thread that flushes must not lend its span to our values as an exemplar.
NOWHERE = trace.set_span_in_context(trace.INVALID_SPAN, Context())


class Batch(Measurement):
    """Many values of one instrument and attribute set, in the order they arrived."""

    def __init__(self, histogram: Any, values: array[float], attributes: Attributes) -> None:
        self.__dict__.update(values=values, reads=0)
        super().__init__(values[0], time_ns(), histogram, NOWHERE, attributes)

    values: array[float]
    reads: int

    def _read(self) -> float:
        self.__dict__["reads"] += 1
        return self.values[0]

    def _keep(self, value: float) -> None:
        """Accept what the dataclass's `__init__` assigns; it is `values[0]`."""

    # The first value; counts who asks. The aggregations that we patch never do.
    value = property(_read, _keep)

    def singles(self) -> Iterator[Measurement]:
        """Yield each value as a measurement of its own."""
        for value in self.values:
            yield self.single(value)

    def single(self, value: float) -> Measurement:
        """Return one value as a measurement of its own."""
        return Measurement(value, self.time_unix_nano, self.instrument, self.context, self.attributes)


class Rest(Measurement):
    """A value after a batch's first, for aggregations that took only the first."""


def _add_extremes(aggregation: Any, least: float, largest: float) -> None:
    """Update min and max; of equal values (0.0 and -0.0) the first to arrive stays, as one by one."""
    if aggregation._record_min_max:
        aggregation._min = min(aggregation._min, least)
        aggregation._max = max(aggregation._max, largest)


def _explicit(aggregation: Any, batch: Batch, _original: Aggregate) -> None:
    """Add a batch to a histogram with explicit buckets."""
    with aggregation._lock:
        if aggregation._value is None:
            aggregation._value = aggregation._get_empty_bucket_counts()
        more, aggregation._sum, least, largest = tally(batch.values, tuple(aggregation._boundaries), aggregation._sum)
        _add_extremes(aggregation, least, largest)
        counts = aggregation._value
        for bucket, count in enumerate(more):
            counts[bucket] += count


def _sum(aggregation: Any, batch: Batch, _original: Aggregate) -> None:
    """Add a batch to a sum."""
    with aggregation._lock:
        aggregation._value = add_up(batch.values, 0 if aggregation._value is None else aggregation._value)


def _last(aggregation: Any, batch: Batch, _original: Aggregate) -> None:
    """Keep a batch's last value."""
    with aggregation._lock:
        aggregation._value = batch.values[-1]


def _exponential(aggregation: Any, batch: Batch, original: Aggregate) -> None:
    """Add a batch to an exponential histogram.

    Scale and capacity depend on the order in which the range grew. So a value beyond the
    range goes through the SDK's own `aggregate()`, and what arrives in between is added
    in one go: it changes no bucket's bounds.
    """
    if _fill(aggregation, batch.values):
        return
    low, high = inf, -inf
    run: list[float] = []
    for value in batch.values:
        if value == 0 or low <= value <= high:
            run.append(value)
            continue
        _fill_or_add(aggregation, run, batch, original)
        run = []
        _add_one(aggregation, value, batch, original)
        low, high = min(low, value), max(high, value)
    _fill_or_add(aggregation, run, batch, original)


def _fill_or_add(aggregation: Any, run: list[float], batch: Batch, original: Aggregate) -> None:
    """Add a run that should fit; one by one where a collection has just emptied the buckets."""
    if run and not _fill(aggregation, run):
        for value in run:
            _add_one(aggregation, value, batch, original)


def _add_one(aggregation: Any, value: float, batch: Batch, original: Aggregate) -> None:
    """Add one value as the SDK does; SDK 1.45.2 raises for some, which must cost no other value or reader."""
    with errors.guard("bulk: the SDK's exponential histogram"):
        original(aggregation, batch.single(value), False)  # noqa: FBT003 - the SDK's signature


def _fill(aggregation: Any, values: Sequence[float]) -> bool:
    """Add values to an exponential histogram if its buckets hold them all; else do nothing and return False."""
    ordered = sorted(values)
    zeros = bisect_right(ordered, 0.0)
    with aggregation._lock:
        buckets = aggregation._value_positive
        if buckets is None or len(buckets) == 0:
            return False
        positive = ordered[zeros:]
        if positive:
            to_index, first, last = aggregation._mapping.map_to_index, buckets.index_start, buckets.index_end
            if to_index(positive[0]) < first or to_index(positive[-1]) > last:
                return False
        counts = _count_by_index(aggregation._mapping, positive)
        if counts and not first <= min(counts) <= max(counts) <= last:
            return False
        for index, count in counts.items():
            # A negative position wraps around, as the SDK's ring of buckets does.
            buckets.increment_bucket(index - buckets.index_base, count)
        aggregation._sum = add_up(values, aggregation._sum)
        aggregation._count += len(values)
        aggregation._zero_count += zeros
        _add_extremes(aggregation, ordered[0], ordered[bisect_left(ordered, ordered[-1])])
        return True


def _count_by_index(mapping: Any, ordered: list[float]) -> dict[int, int]:
    """Count sorted values by bucket index, asking the SDK's mapping for as few of them as will do.

    Between two values of one bucket all are of that bucket, with one exception: the
    logarithm may round a value just below a power of two up to it, and past the power's own
    bucket. Such a stretch is halved until each value has been asked for.
    """
    to_index = mapping.map_to_index
    exact = mapping.scale <= 0
    indexes = {position: to_index(ordered[position]) for position in {0, len(ordered) - 1} if ordered}
    counts = Counter(indexes.values())
    stretches = [(0, len(ordered) - 1)]
    while stretches:
        first, last = stretches.pop()
        inside = last - first - 1
        if inside <= 0:
            continue
        low, high = indexes[first], indexes[last]
        if low == high and (exact or frexp(ordered[first])[1] == frexp(ordered[last])[1]):
            counts[low] += inside
            continue
        middle = (first + last) // 2
        indexes[middle] = to_index(ordered[middle])
        counts[indexes[middle]] += 1
        stretches += (first, middle), (middle, last)
    return counts


BULK: dict[str, Callable[[Any, Batch, Aggregate], None]] = {
    "_ExplicitBucketHistogramAggregation": _explicit,
    "_ExponentialBucketHistogramAggregation": _exponential,
    "_SumAggregation": _sum,
    "_LastValueAggregation": _last,
}


def _patch(original: Aggregate, bulk: Callable[[Any, Batch, Aggregate], None]) -> Aggregate:
    """Return an `aggregate()` that knows batches, and leaves all else to the original."""

    @wraps(original)
    def aggregate(self: Any, measurement: Measurement, should_sample_exemplar: bool = True) -> None:  # noqa: FBT001, FBT002 - the SDK's signature
        kind = type(measurement)
        if kind is not Batch and kind is not Rest:
            original(self, measurement, should_sample_exemplar)
        elif isinstance(measurement, Batch):
            if should_sample_exemplar:  # only under OTEL_METRICS_EXEMPLAR_FILTER=always_on
                for single in measurement.singles():
                    original(self, single, should_sample_exemplar)
            else:
                bulk(self, measurement, original)

    return aggregate


class _State:
    """What is patched, for whom; guarded by `gate`."""

    def __init__(self) -> None:
        self.installs = 0
        self.active = False
        self.patched: list[tuple[type, Aggregate, Aggregate]] = []
        self.reads = 0  # how often the SDK reads a measurement's value outside of aggregations

    def patch(self) -> bool:
        """Patch all four aggregations, or none where the SDK has not all of them."""
        for name, bulk in BULK.items():
            cls = getattr(aggregations, name, None)
            if not isinstance(cls, type) or "aggregate" not in vars(cls):
                self.restore()
                return False
            original = vars(cls)["aggregate"]
            ours = _patch(original, bulk)
            cls.aggregate = ours  # type: ignore[attr-defined]
            self.patched.append((cls, original, ours))
        return True

    def restore(self) -> None:
        """Put the originals back, but where someone has since patched over ours."""
        for cls, original, ours in self.patched:
            if vars(cls)["aggregate"] is ours:
                cls.aggregate = original  # type: ignore[attr-defined]
        self.patched.clear()
        self.active = False


_state = _State()


def install() -> bool:
    """Teach the SDK's aggregations batches and return whether `feed()` will use them; nested calls patch once."""
    with gate:
        _state.installs += 1
        if _state.installs == 1:
            _state.active = _state.patch() and probe()
            if not _state.active:
                _state.restore()
                if os.environ.get(OTEL_SDK_DISABLED, "").strip().lower() != "true":
                    errors.logger.warning("otel-ml: histograms are recorded value by value: slower, the same numbers")
        return _state.active


def uninstall() -> None:
    """Undo one `install()`; the last one puts every patched method back."""
    with gate:
        _state.installs = max(0, _state.installs - 1)
        if _state.installs == 0:
            _state.restore()


def feed(histogram: Histogram, values: Sequence[float], attributes: Attributes = None) -> int:
    """Record every value and return how many were refused: NaN, infinite or negative, as `record()` refuses them."""
    kept = _clean(values)
    with gate:
        if isinstance(kept, array) and len(kept) > 1 and _state.active and _takes_batches(histogram):
            _consume(histogram, kept, attributes)
        else:
            for value in kept:
                histogram.record(value, attributes, context=NOWHERE)
    return len(values) - len(kept)


def _clean(values: Sequence[float]) -> Sequence[float]:
    """Return the values that `record()` would take, as they came: as a column where they are floats."""
    column = values if isinstance(values, array) else floats(list(values))
    if column is not None:
        least, _, bad = extremes(column)
        if not bad and least >= 0:
            return column
    kept = [value for value in values if isfinite(value) and value >= 0]
    return floats(kept) or kept


def _takes_batches(histogram: Any) -> bool:
    """Whether this is the SDK's own histogram, with nothing on its way that must see each value."""
    if not isinstance(histogram, metrics.Histogram) or type(histogram).record is not _RECORD:
        return False
    consumer = histogram._measurement_consumer
    return (
        type(consumer) is SynchronousMeasurementConsumer
        and type(consumer._sdk_config.exemplar_filter) in _EXEMPLAR_FILTERS
        and histogram._is_enabled()
    )


_RECORD = metrics.Histogram.record
_EXEMPLAR_FILTERS = (
    metrics.AlwaysOffExemplarFilter,
    metrics.AlwaysOnExemplarFilter,
    metrics.TraceBasedExemplarFilter,
)


def _consume(histogram: Any, values: array[float], attributes: Attributes) -> None:
    """Send a batch down the SDK's way, and its values singly after it where someone unknown took only the first."""
    consume = histogram._measurement_consumer.consume_measurement
    batch = Batch(histogram, values, attributes)
    consume(batch)
    if batch.reads > _state.reads:
        for value in values[1:]:
            consume(Rest(value, batch.time_unix_nano, histogram, NOWHERE, attributes))


def probe() -> bool:
    """Whether this SDK, patched, counts batches exactly as single values; asked on a throwaway provider."""
    with errors.guard("bulk.probe"):
        _state.reads = _count_reads()
        return _compare()
    return False


def _throwaway(readers: Sequence[InMemoryMetricReader], views: Sequence[View]) -> metrics.MeterProvider:
    return metrics.MeterProvider(
        readers,
        Resource.get_empty(),
        metrics.AlwaysOffExemplarFilter(),
        shutdown_on_exit=False,
        views=views,
    )


def _count_reads() -> int:
    """How often the SDK reads a measurement's value when nobody aggregates it."""
    histogram: Any = _throwaway((), ()).get_meter("probe").create_histogram("probe")
    if not _takes_batches(histogram):  # OTEL_SDK_DISABLED
        return 0
    batch = Batch(histogram, array("d", (1.0, 2.0)), None)
    histogram._measurement_consumer.consume_measurement(batch)
    return batch.reads


_PROBE_VALUES = ((0.3, 0.0, 2.0, 0.25, 1e-7, 0.3), (7.5, 0.1, 4096.0, 0.7, 0.1))


def _compare() -> bool:
    readers = (
        InMemoryMetricReader(),
        InMemoryMetricReader({metrics.Histogram: AggregationTemporality.DELTA}),
    )
    views = (
        View(instrument_name="*.filtered", attribute_keys={"kept"}),
        View(instrument_name="*.exponential", aggregation=ExponentialBucketHistogramAggregation(max_size=20)),
        View(instrument_name="*.sum", aggregation=SumAggregation()),
        View(instrument_name="*.last", aggregation=LastValueAggregation()),
    )
    provider = _throwaway(readers, views)
    meter = provider.get_meter("probe")
    attributes: Attributes = {"kept": "a", "dropped": 1}
    equal = True
    for values in _PROBE_VALUES:
        for suffix in ("plain", "filtered", "exponential", "sum", "last"):
            bulk, each = (
                meter.create_histogram(f"{way}.{suffix}", explicit_bucket_boundaries_advisory=(0.25, 1.0, 5.0))
                for way in ("bulk", "each")
            )
            if not _takes_batches(bulk):
                return False
            _consume(bulk, array("d", values), attributes)
            for value in values:
                each.record(value, attributes, context=NOWHERE)
        for reader in readers:
            points = _points(reader)
            equal &= bool(points["bulk"]) and points["bulk"] == points["each"]
    provider.shutdown()
    return equal


def _points(reader: InMemoryMetricReader) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Collect a reader's points, without their times, by the way they were recorded and the instrument's suffix."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {"bulk": {}, "each": {}}
    data = reader.get_metrics_data()
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                way, suffix = metric.name.split(".")
                found[way][suffix] = [
                    {key: value for key, value in vars(point).items() if not key.endswith("time_unix_nano")}
                    for point in metric.data.data_points
                ]
    return found
