"""Rows of the store as the OTLP requests they came from, grouped by resource and scope again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_ml.store.outbox import Batch, Record

__all__ = ["message_of", "request_of"]


def message_of(signal: str) -> Any:
    """The request's protobuf class: of `spans`, `logs` or `points`."""
    if signal == "spans":
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        return ExportTraceServiceRequest
    if signal == "logs":
        from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

        return ExportLogsServiceRequest
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    return ExportMetricsServiceRequest


_FIELDS = {
    "spans": ("resource_spans", "scope_spans", "spans"),
    "logs": ("resource_logs", "scope_logs", "log_records"),
    "points": ("resource_metrics", "scope_metrics", "metrics"),
}


def request_of(batch: Batch) -> Any:
    """One `Export…ServiceRequest` of these rows, in their order."""
    outer_field, inner_field, field = _FIELDS[batch.signal]
    request = message_of(batch.signal)()
    by_resource: dict[int, dict[int, list[Record]]] = {}
    for record in batch.records:
        by_resource.setdefault(record.resource_id, {}).setdefault(record.scope_id, []).append(record)
    for resource_id, by_scope in by_resource.items():
        outer = getattr(request, outer_field).add()
        otlp, outer.schema_url = batch.resources[resource_id]
        outer.resource.ParseFromString(otlp)
        for scope_id, records in by_scope.items():
            inner = getattr(outer, inner_field).add()
            otlp, inner.schema_url = batch.scopes[scope_id]
            inner.scope.ParseFromString(otlp)
            into = getattr(inner, field)
            if batch.signal == "points":
                _gather(records, into)
            else:
                for record in records:
                    into.add().ParseFromString(record.otlp)
    return request


def _gather(records: Sequence[Record], into: Any) -> None:
    """A row holds one point: those of one metric in one collection stand together again."""
    known: dict[tuple[Any, ...], Any] = {}
    for record in records:
        metric = into.add()
        metric.ParseFromString(record.otlp)
        kind = metric.WhichOneof("data")
        if kind is None:
            continue
        data = getattr(metric, kind)
        about = (getattr(data, "aggregation_temporality", None), getattr(data, "is_monotonic", None))
        key = (record.moment, metric.name, metric.unit, metric.description, kind, *about)
        first = known.setdefault(key, metric)
        if first is not metric:
            getattr(first, kind).data_points.extend(data.data_points)
            del into[-1]
