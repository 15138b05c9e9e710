"""Records of OpenTelemetry as rows of the store: indexed columns, and the OTLP bytes of each record.

Called by the writer on the SDK's export threads, at the pace of all our background work. A
record that OTLP has no form for is left out and counted; the others of its batch are kept.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Histogram as HistogramData
from opentelemetry.trace import format_span_id, format_trace_id

from otel_ml import names
from otel_ml.store.alike import Alike, otlp
from otel_ml.store.packed import LONG, encoded, log_attribute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    from otel_ml.core.pace import Pace
    from otel_ml.store.packed import Encoded

__all__ = [
    "ENCODERS", "Origin", "attributes_json", "collected_unix_ns", "count", "json_of", "log_known_by", "span_known_by",
    "text_of",
]  # fmt: skip

INT64 = 1 << 63

Row = tuple[Any, ...]

_TOGETHER = 4  # records encoded between two looks at the clock
_HEADS = 32


@dataclasses.dataclass
class Origin:
    """Who made a group of rows: a resource and a scope, as columns of their tables.

    `known_by` has, for each row, what its record is known by on the way to an endpoint (`ledger.py`); points have none.
    """

    resource: Row
    scope: Row
    rows: list[Row]
    known_by: list[Any]


def json_of(value: object) -> str:
    """A value as compact JSON text."""
    return _encode(value)


@functools.lru_cache(maxsize=1024)
def _json_key(key: str) -> str:
    return json_of(key)


def _plain(value: object) -> object:
    """What JSON has no word for: mappings and sequences of the SDK, bytes, anything else as text."""
    if isinstance(value, Mapping):
        return {str(k): v for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        return list(value)
    return value.hex() if isinstance(value, (bytes, bytearray)) else str(value)


_encode = json.JSONEncoder(default=_plain, separators=(",", ":")).encode


def attributes_json(attributes: Mapping[str, Any] | None) -> str:
    """Attributes as a JSON object."""
    return json_of(dict(attributes)) if attributes else "{}"


def text_of(value: str) -> str:
    """Text that SQLite takes: lone surrogates become question marks."""
    return value.encode("utf-8", "replace").decode()


def _step(attributes: Mapping[str, Any] | None) -> int | None:
    step = attributes.get(names.STEP_NUMBER) if attributes else None
    return step if isinstance(step, int) and step < INT64 else None


def _time(unix_ns: int | None) -> int:
    """An instant as it is stored.

    Raises:
        OverflowError: it is beyond SQLite's integers; the record counts as unencodable.
    """
    if unix_ns is not None and unix_ns >= INT64:
        raise OverflowError(unix_ns)
    return unix_ns or 0


def _number(value: float | None) -> float | str | None:
    """A number as it is stored: a NaN as text, since SQLite would make it NULL; a huge sum as a double."""
    if isinstance(value, int):
        return value if -INT64 <= value < INT64 else float(value)
    return "nan" if value is not None and math.isnan(value) else value


_heads: dict[tuple[int, int], tuple[Any, Any, Row, Row]] = {}
_alike = Alike()


def _head(
    resource: Resource, scope: InstrumentationScope | None, messages: Callable[[], tuple[Any, Any]]
) -> tuple[Row, Row]:
    """A resource and a scope as rows, from both as they are sent; of those met last they are kept, with the objects."""
    known = _heads.get((id(resource), id(scope)))
    if known is None:
        resource_otlp, scope_otlp = (message.SerializeToString() for message in messages())
        known = (
            resource,
            scope,
            (resource.schema_url, attributes_json(resource.attributes), resource_otlp),
            ("", None, None, "{}", scope_otlp)
            if scope is None
            else (scope.name, scope.version, scope.schema_url, attributes_json(scope.attributes), scope_otlp),
        )
        if len(_heads) >= _HEADS:
            _heads.clear()
        _heads[id(resource), id(scope)] = known
    return known[2:]


def span_known_by(span: ReadableSpan) -> tuple[int, int]:
    """What a span is known by, whichever processor has it."""
    return span.context.trace_id, span.context.span_id


def log_known_by(log: ReadableLogRecord) -> Any:
    """What a log record is known by: its attributes, the one object that all processors' copies of it share."""
    return log.log_record.attributes


def _isolated(records: list[Any], encode: Callable[[list[Any]], Origin]) -> tuple[list[Origin], int]:
    """Encode records of one resource and scope together; one that cannot be encoded costs only itself."""
    try:
        return [encode(records)], 0
    except Exception:  # noqa: BLE001 - protobuf's errors have no common root; the caller counts them
        if len(records) == 1:
            return [], 1
    return _summed(_isolated([record], encode) for record in records)


def _summed(parts: Iterable[tuple[list[Origin], int]]) -> tuple[list[Origin], int]:
    origins, lost = [], 0
    for some, missing in parts:
        origins += some
        lost += missing
    return origins, lost


def _grouped(records: Iterable[Any], encode: Callable[[list[Any]], Origin], pace: Pace) -> tuple[list[Origin], int]:
    groups: dict[tuple[int, int], list[Any]] = {}
    for record in records:
        groups.setdefault((id(record.resource), id(record.instrumentation_scope)), []).append(record)
    return _summed(_in_slices(group, encode, pace) for group in groups.values())


def _in_slices(records: list[Any], encode: Callable[[list[Any]], Origin], pace: Pace) -> tuple[list[Origin], int]:
    parts = []
    for first in range(0, len(records), _TOGETHER):
        parts.append(_isolated(records[first : first + _TOGETHER], encode))
        pace.rest()
    return _summed(parts)


def _encode_spans(records: Sequence[ReadableSpan], pace: Pace) -> tuple[list[Origin], int]:
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    def encode(spans: list[ReadableSpan]) -> Origin:
        likenesses = [_alike.of(span) for span in spans]
        shares = [None if likeness is None else _alike.known(likeness) for likeness in likenesses]
        singular = [span for span, shared in zip(spans, shares, strict=True) if shared is None]
        sent = iter(encode_spans(singular).resource_spans[0].scope_spans[0].spans if singular else ())
        rows = []
        for span, likeness, shared in zip(spans, likenesses, shares, strict=True):
            if likeness is not None and shared is not None:
                own = likeness.attributes
                tail = shared[1] if own is None else _with_attributes(shared[1], span)
                rows.append((*_span_head(span), *tail, otlp(span, shared[0], own)))
                continue
            message = next(sent)
            tail = _span_tail(span)
            rows.append((*_span_head(span), *tail, message.SerializeToString()))
            if likeness is not None:
                _alike.keep(likeness, message, tail)
        resource, scope = spans[0].resource, spans[0].instrumentation_scope

        def heads() -> tuple[Any, Any]:
            whole = encode_spans(spans[:1]).resource_spans[0]
            return whole.resource, whole.scope_spans[0].scope

        return Origin(*_head(resource, scope, heads), rows, [span_known_by(span) for span in spans])

    return _grouped(records, encode, pace)


def _span_head(span: ReadableSpan) -> Row:
    """A span's columns up to `end_unix_ns`."""
    context = span.context
    return (
        format_trace_id(context.trace_id),
        format_span_id(context.span_id),
        None if span.parent is None else format_span_id(span.parent.span_id),
        span.name,
        span.kind.name.lower(),
        _time(span.start_time),
        _time(span.end_time),
    )


def _span_tail(span: ReadableSpan) -> Row:
    """The columns after it, without `otlp`."""
    links = [
        {
            "trace_id": format_trace_id(link.context.trace_id),
            "span_id": format_span_id(link.context.span_id),
            "attributes": dict(link.attributes or {}),
        }
        for link in span.links
    ]
    events = [
        {"name": event.name, "time_unix_ns": event.timestamp, "attributes": dict(event.attributes or {})}
        for event in span.events
    ]
    return (
        span.status.status_code.name.lower(),
        span.status.description,
        _step(span.attributes),
        attributes_json(span.attributes),
        json_of(links),
        json_of(events),
    )


def _with_attributes(tail: Row, span: ReadableSpan) -> Row:
    """The same columns with a span's own attributes."""
    return (*tail[:2], _step(span.attributes), attributes_json(span.attributes), *tail[4:])


def _encode_logs(records: Sequence[ReadableLogRecord], pace: Pace) -> tuple[list[Origin], int]:
    from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs

    def encode(logs: list[ReadableLogRecord]) -> Origin:
        columns = _columns(logs)
        pace.rest()
        leaner = [_without(log, packed) for log, packed in zip(logs, columns, strict=True)]
        message = encode_logs(leaner).resource_logs[0]
        inner = message.scope_logs[0]
        rows = [
            _log_row(log, sent.SerializeToString(), packed, pace)
            for log, sent, packed in zip(logs, inner.log_records, columns, strict=True)
        ]
        heads = _head(logs[0].resource, logs[0].instrumentation_scope, lambda: (message.resource, inner.scope))
        return Origin(*heads, rows, [log_known_by(log) for log in logs])

    return _grouped(records, encode, pace)


def _columns(logs: list[ReadableLogRecord]) -> list[dict[str, Encoded]]:
    """The long columns of each log record, by attribute; all in one go: the program has the interpreter meanwhile."""
    found = [
        (n, key, values)
        for n, log in enumerate(logs)
        if not log.dropped_attributes  # which a plain dict could not say
        for key, values in (log.log_record.attributes or {}).items()
        if isinstance(values, (tuple, list)) and len(values) >= LONG
    ]
    columns: list[dict[str, Encoded]] = [{} for _ in logs]
    for (n, key, _), column in zip(found, encoded([values for *_, values in found]), strict=True):
        if column is not None:
            columns[n][key] = column
    return columns


def _without(log: ReadableLogRecord, packed: dict[str, Encoded]) -> ReadableLogRecord:
    if not packed:
        return log
    record = copy.copy(log.log_record)
    record.attributes = {key: value for key, value in (record.attributes or {}).items() if key not in packed}
    return dataclasses.replace(log, log_record=record)


def _log_row(log: ReadableLogRecord, otlp: bytes, packed: dict[str, Encoded], pace: Pace) -> Row:
    pace.rest()
    record = log.log_record
    attributes = record.attributes or {}
    texts = [f"{_json_key(k)}:{packed[k][1] if k in packed else json_of(v)}" for k, v in attributes.items()]
    body = record.body
    return (
        _time(record.timestamp or record.observed_timestamp),
        record.event_name or None,
        None if record.severity_number is None else record.severity_number.value,
        body if body is None or isinstance(body, str) else json_of(body),
        format_trace_id(record.trace_id) if record.trace_id else None,
        format_span_id(record.span_id) if record.span_id else None,
        _step(record.attributes),
        f"{{{','.join(texts)}}}",
        otlp + b"".join(log_attribute(key, array) for key, (array, _) in packed.items()),
    )


def _encode_points(records: Sequence[MetricsData], pace: Pace) -> tuple[list[Origin], int]:
    """One row a point: each is wrapped in a copy of its metric that holds it alone."""
    parts = []
    for collection in records:
        for outer in collection.resource_metrics:
            for inner in outer.scope_metrics:
                singles = [
                    dataclasses.replace(metric, data=dataclasses.replace(metric.data, data_points=[point]))  # type: ignore[arg-type]
                    for metric in inner.metrics
                    for point in metric.data.data_points
                ]
                if singles:
                    parts.append(_in_slices(singles, functools.partial(_encode_scope, outer, inner), pace))
    return _summed(parts)


def _encode_scope(outer: ResourceMetrics, inner: ScopeMetrics, singles: list[Metric]) -> Origin:
    from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics

    scope = dataclasses.replace(inner, metrics=singles)
    message = encode_metrics(MetricsData([dataclasses.replace(outer, scope_metrics=[scope])])).resource_metrics[0]
    sent = message.scope_metrics[0]
    rows = [_point_row(metric, one.SerializeToString()) for metric, one in zip(singles, sent.metrics, strict=True)]
    return Origin(*_head(outer.resource, inner.scope, lambda: (message.resource, sent.scope)), rows, [])


def _point_row(metric: Metric, otlp: bytes) -> Row:
    data, point = metric.data, metric.data.data_points[0]
    if isinstance(data, Sum):
        kind = "counter" if data.is_monotonic else "up_down_counter"
    elif isinstance(data, HistogramData):
        kind = "histogram"
    else:
        kind = "exponential_histogram" if isinstance(data, ExponentialHistogram) else "gauge"
    temporality = getattr(data, "aggregation_temporality", None)
    head = (
        point.time_unix_nano,
        point.start_time_unix_nano,
        metric.name,
        kind,
        metric.unit or "",
        None if temporality is None else AggregationTemporality(temporality).name.lower(),
        attributes_json(point.attributes),
    )
    if isinstance(point, NumberDataPoint):
        return (*head, _number(point.value), None, None, None, None, None, otlp)
    summary = (point.count, _number(point.sum), _number(point.min), _number(point.max))
    return (*head, None, *summary, json_of(_buckets(point)), otlp)


def _buckets(point: HistogramDataPoint | ExponentialHistogramDataPoint) -> dict[str, Any]:
    if isinstance(point, HistogramDataPoint):
        return {"bounds": list(point.explicit_bounds), "counts": list(point.bucket_counts)}
    sides = {"positive": point.positive, "negative": point.negative}
    return {
        "scale": point.scale,
        "zero_count": point.zero_count,
        **{side: {"offset": b.offset, "counts": list(b.bucket_counts)} for side, b in sides.items()},
    }


def collected_unix_ns(collection: MetricsData) -> int:
    """When a collection was made: the time of its points; 0 where it has none."""
    for resource_metrics in collection.resource_metrics:
        for scope_metrics in resource_metrics.scope_metrics:
            for metric in scope_metrics.metrics:
                for point in metric.data.data_points:
                    return point.time_unix_nano
    return 0


def count(signal: str, records: Sequence[Any]) -> int:
    """How many rows a batch would make."""
    if signal != "points":
        return len(records)
    return sum(
        len(metric.data.data_points)
        for collection in records
        for resource_metrics in collection.resource_metrics
        for scope_metrics in resource_metrics.scope_metrics
        for metric in scope_metrics.metrics
    )


ENCODERS: dict[str, Callable[[Sequence[Any], Pace], tuple[list[Origin], int]]] = {
    "spans": _encode_spans,
    "logs": _encode_logs,
    "points": _encode_points,
}
