"""The OTel providers: made from the standard variables, or joined when the program made its own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from opentelemetry import _logs, metrics, trace
from opentelemetry.sdk import _configuration as sdk
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricReader,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from otel_ml.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.sdk.metrics.view import View
    from opentelemetry.sdk.resources import Resource

__all__ = ["Providers"]

_DELAY_MS = 1000
_METRICS_MS = 10_000


class _OfOneProcess:
    """Mixed into an exporter's wrapper: a forked child inherits it and must send nothing of its parent's."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.pid = os.getpid()

    def _ours(self) -> bool:
        return os.getpid() == self.pid

    def shutdown(self, *_: Any, **__: Any) -> None:
        """Shut the inner one down, in its own process only."""
        if self._ours():
            self.inner.shutdown()

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Flush the inner one, in its own process only."""
        return not self._ours() or self.inner.force_flush(timeout_millis)


class _Spans(_OfOneProcess, SpanExporter):
    def export(self, spans: Any) -> Any:
        return self.inner.export(spans) if self._ours() else SpanExportResult.SUCCESS


class _Logs(_OfOneProcess, LogRecordExporter):
    def export(self, batch: Any) -> Any:
        return self.inner.export(batch) if self._ours() else LogRecordExportResult.SUCCESS


class _Metrics(_OfOneProcess, MetricExporter):
    def __init__(self, inner: MetricExporter) -> None:
        _OfOneProcess.__init__(self, inner)
        MetricExporter.__init__(
            self,
            preferred_temporality=inner._preferred_temporality,  # noqa: SLF001 - the wrapper must prefer the same
            preferred_aggregation=inner._preferred_aggregation,  # noqa: SLF001
        )

    def export(self, metrics_data: Any, timeout_millis: float = 10_000, **kwargs: Any) -> Any:
        if not self._ours():
            return MetricExportResult.SUCCESS
        return self.inner.export(metrics_data, timeout_millis=timeout_millis, **kwargs)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return not self._ours() or self.inner.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        if self._ours():
            self.inner.shutdown(timeout_millis=timeout_millis, **kwargs)


def _component(names: Sequence[str], signal: Any) -> list[Any]:
    resolved = []
    for name in names:
        if name == "otlp":
            variable = sdk._PROTOCOL_ENV_BY_SIGNAL_TYPE[signal]  # noqa: SLF001 - the SDK's own table of names
            protocol = os.environ.get(variable) or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
            known = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
            if protocol.strip() not in known:
                message = f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol}: not supported; type 'http/protobuf' or 'grpc'."
                raise SettingsError(message)
            resolved.append(known[protocol.strip()])
        else:
            resolved.append(name)
    group = {"traces": "traces", "metrics": "metrics", "logs": "logs"}[signal]
    try:
        pairs = sdk._import_config_components(resolved, f"opentelemetry_{group}_exporter")  # noqa: SLF001
    except RuntimeError as error:
        extras = {"otlp_proto_grpc": "grpc", "prometheus": "prometheus"}
        extra = next((extras[n] for n in resolved if n in extras), None)
        hint = f" Type: pip install 'otel-ml[{extra}]'" if extra else ""
        message = f"{error}.{hint}"
        raise SettingsError(message) from None
    return [cls for _, cls in pairs]


class Providers:
    """The three providers everything leaves through."""

    def __init__(self, tracer: Any, meter: Any, logger: Any, *, made: bool) -> None:
        self.tracer = tracer
        self.meter = meter
        self.logger = logger
        self.made = made
        self.readers: list[MetricReader] = []

    @classmethod
    def make(cls, resource: Resource, exporters: Mapping[str, Sequence[str]], views: Sequence[View]) -> Providers:
        """Build SDK providers with these exporters and set them globally."""
        tracer = TracerProvider(resource=resource, shutdown_on_exit=False)
        for exporter in _component(exporters["traces"], "traces"):
            tracer.add_span_processor(BatchSpanProcessor(_Spans(exporter()), schedule_delay_millis=_delay("BSP")))
        readers: list[MetricReader] = []
        for component in _component(exporters["metrics"], "metrics"):
            if issubclass(component, MetricReader):
                readers.append(component())
            else:
                readers.append(_periodic(_Metrics(component())))
        meter = MeterProvider(readers, resource=resource, views=views, shutdown_on_exit=False)
        logger = LoggerProvider(resource=resource, shutdown_on_exit=False)
        for log_exporter in _component(exporters["logs"], "logs"):
            logger.add_log_record_processor(
                BatchLogRecordProcessor(_Logs(log_exporter()), schedule_delay_millis=_delay("BLRP"))
            )
        trace.set_tracer_provider(tracer)
        metrics.set_meter_provider(meter)
        _logs.set_logger_provider(logger)
        return cls(tracer, meter, logger, made=True)

    @classmethod
    def existing(cls) -> Providers | None:
        """The program's own SDK providers, when it has set them; None when it has set none."""
        tracer, meter, logger = trace.get_tracer_provider(), metrics.get_meter_provider(), _logs.get_logger_provider()
        kinds = ((tracer, TracerProvider), (meter, MeterProvider), (logger, LoggerProvider))
        if not any(isinstance(provider, kind) for provider, kind in kinds):
            return None
        return cls(tracer, meter, logger, made=False)

    def store(self, writer: Any, signals: set[str]) -> None:
        """Have the local store hear these signals."""
        if "traces" in signals and hasattr(self.tracer, "add_span_processor"):
            self.tracer.add_span_processor(
                BatchSpanProcessor(_Spans(writer.span_exporter), schedule_delay_millis=_DELAY_MS // 2)
            )
        if "logs" in signals and hasattr(self.logger, "add_log_record_processor"):
            self.logger.add_log_record_processor(
                BatchLogRecordProcessor(_Logs(writer.log_exporter), schedule_delay_millis=_DELAY_MS // 2)
            )
        if "metrics" in signals and hasattr(self.meter, "add_metric_reader"):
            reader = _periodic(_Metrics(writer.metric_exporter))
            self.meter.add_metric_reader(reader)
            self.readers.append(reader)

    def flush(self, timeout_ms: int) -> None:
        """Send what is pending; what the SDK does not bound is bounded by the caller."""
        for provider in (self.tracer, self.logger, self.meter):
            if hasattr(provider, "force_flush"):
                provider.force_flush(timeout_ms)
        for reader in self.readers:
            # A reader added later is not among those the provider flushes itself.
            reader.collect(timeout_millis=timeout_ms)

    def shutdown(self) -> None:
        """End the providers we made, and the readers we added."""
        for reader in self.readers:
            reader.shutdown()
        if self.made:
            for provider in (self.tracer, self.logger, self.meter):
                provider.shutdown()


def _delay(processor: str) -> float:
    return float(os.environ.get(f"OTEL_{processor}_SCHEDULE_DELAY") or _DELAY_MS)


def _periodic(exporter: MetricExporter) -> PeriodicExportingMetricReader:
    interval = os.environ.get("OTEL_METRIC_EXPORT_INTERVAL")
    return PeriodicExportingMetricReader(exporter, export_interval_millis=float(interval or _METRICS_MS))
