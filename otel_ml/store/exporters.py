"""The three OTel exporters that bring a process's telemetry to the store's writer; called on the SDK's threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.metrics import (
    Counter,
    Histogram,
    ObservableCounter,
    ObservableGauge,
    ObservableUpDownCounter,
    UpDownCounter,
)
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    MetricExporter,
    MetricExportResult,
    MetricsData,
)
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otel_ml.errors import swallow

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk.trace import ReadableSpan

    Take = Callable[[str, Sequence[Any]], bool]

__all__ = ["StoreLogs", "StoreMetrics", "StoreSpans"]


class StoreSpans(SpanExporter):
    """Ended spans to rows; shutting it down leaves the file open for the goodbye."""

    def __init__(self, take: Take) -> None:
        self._take = take

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Hand a batch to the writer; FAILURE where it was lost."""
        try:
            kept = self._take("spans", spans)
        except Exception:  # noqa: BLE001 - the law: never break the program
            swallow("store.export_spans")
            kept = False
        return SpanExportResult.SUCCESS if kept else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """Nothing: the pipeline closes the writer once all three signals are flushed."""

    def force_flush(self, timeout_millis: int = 30000) -> bool:  # noqa: ARG002 - the SDK's signature
        """Nothing is held back here."""
        return True


class StoreLogs(LogRecordExporter):
    """Log records and events to rows; shutting it down leaves the file open for the goodbye."""

    def __init__(self, take: Take) -> None:
        self._take = take

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Hand a batch to the writer; FAILURE where it was lost."""
        try:
            kept = self._take("logs", batch)
        except Exception:  # noqa: BLE001 - the law: never break the program
            swallow("store.export_logs")
            kept = False
        return LogRecordExportResult.SUCCESS if kept else LogRecordExportResult.FAILURE

    def shutdown(self) -> None:
        """Nothing: the pipeline closes the writer once all three signals are flushed."""

    def force_flush(self, timeout_millis: int = 30000) -> bool:  # noqa: ARG002 - the SDK's signature
        """Nothing is held back here."""
        return True


class StoreMetrics(MetricExporter):
    """Collections to rows, cumulative, so that the newest point tells the whole run."""

    def __init__(self, take: Take) -> None:
        kinds = (Counter, UpDownCounter, Histogram, ObservableCounter, ObservableUpDownCounter, ObservableGauge)
        super().__init__(preferred_temporality=dict.fromkeys(kinds, AggregationTemporality.CUMULATIVE))
        self._take = take

    def export(
        self,
        metrics_data: MetricsData,
        timeout_millis: float = 10_000,  # noqa: ARG002 - the SDK's signature
        **kwargs: Any,  # noqa: ARG002
    ) -> MetricExportResult:
        """Hand a collection to the writer; FAILURE where it was lost."""
        try:
            kept = self._take("points", [metrics_data])
        except Exception:  # noqa: BLE001 - an error here would end periodic export for good
            swallow("store.export_metrics")
            kept = False
        return MetricExportResult.SUCCESS if kept else MetricExportResult.FAILURE

    def force_flush(self, timeout_millis: float = 10_000) -> bool:  # noqa: ARG002 - the SDK's signature
        """Nothing is held back here."""
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Nothing: the pipeline closes the writer once all three signals are flushed."""
