"""The OTel providers: made from the standard variables, or joined when the program made its own."""

from __future__ import annotations

import logging
import os
from functools import partial
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from opentelemetry import _logs, metrics, trace
from opentelemetry.sdk import _configuration as sdk
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.metrics import Counter, MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    MetricExporter,
    MetricExportResult,
    MetricReader,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from otel_ml.core.threads import started_for_us
from otel_ml.errors import SettingsError, swallowed
from otel_ml.pipeline.ids import SystemIds
from otel_ml.pipeline.late import Late, late

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.sdk.metrics.view import View
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.id_generator import IdGenerator

    _Overran = Callable[[], None] | None

__all__ = ["Providers"]

logger = logging.getLogger("otel_ml")

_DELAY_MS = 1000
_METRICS_MS = 10_000


class _OfOneProcess:
    """Mixed into an exporter's wrapper: a forked child inherits it and must send nothing of its parent's."""

    def __init__(self, inner: Any, ledger: Any = None) -> None:
        self.inner = inner
        self.ledger = ledger if _tells(inner) else None
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

    def _rest(self, batch: Any, encode: Callable[[Any], Any]) -> list[Any]:
        """Of a batch that an OTLP exporter refused: what is left when what OTLP cannot hold is taken out, if any is.

        One lone surrogate or integer above int64 makes the SDK lose all that is sent together.
        """
        if not _tells(self.inner):
            return []
        rest = [record for record in batch if _can(encode, record)]
        return rest if len(rest) < len(batch) else []


def _can(encode: Callable[[Any], Any], record: Any) -> bool:
    try:
        encode([record]).SerializePartialToString()
    except Exception:  # noqa: BLE001 - protobuf's errors have no common root
        swallowed.add("encoding for OTLP")
        return False
    return True


def _encode_spans(spans: Any) -> Any:
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    return encode_spans(spans)


def _encode_logs(logs: Any) -> Any:
    from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs

    return encode_logs(logs)


def _tells(exporter: Any) -> bool:
    """Whether this exporter's answer says that an endpoint has the records."""
    return isinstance(exporter, Late) or type(exporter).__module__.startswith("opentelemetry.exporter.otlp")


class _Spans(_OfOneProcess, SpanExporter):
    def export(self, spans: Any) -> Any:
        if not self._ours():
            return SpanExportResult.SUCCESS
        result = SpanExportResult.FAILURE
        try:
            result = self.inner.export(spans)
            rest = [] if result is SpanExportResult.SUCCESS else self._rest(spans, _encode_spans)
            if rest:
                result = self.inner.export(rest)
        finally:
            if self.ledger is not None:
                known_by = [(span.context.trace_id, span.context.span_id) for span in spans]
                self.ledger.told("spans", known_by, arrived=result is SpanExportResult.SUCCESS)
        return result


class _Logs(_OfOneProcess, LogRecordExporter):
    def export(self, batch: Any) -> Any:
        if not self._ours():
            return LogRecordExportResult.SUCCESS
        result = LogRecordExportResult.FAILURE
        try:
            result = self.inner.export(batch)
            rest = [] if result is LogRecordExportResult.SUCCESS else self._rest(batch, _encode_logs)
            if rest:
                result = self.inner.export(rest)
        finally:
            if self.ledger is not None:
                known_by = [log.log_record.attributes for log in batch]
                self.ledger.told("logs", known_by, arrived=result is LogRecordExportResult.SUCCESS)
        return result


class _SpanBatches(BatchSpanProcessor):
    """Gathers spans in its own process; in a forked child it has no thread and gathers nothing."""

    def __init__(self, exporter: SpanExporter, delay_ms: float, ledger: Any = None, overran: _Overran = None) -> None:
        super().__init__(_Spans(exporter, ledger), schedule_delay_millis=delay_ms)
        _stay_home(self._batch_processor, overran)


class _LogBatches(BatchLogRecordProcessor):
    """Gathers log records in its own process; in a forked child it has no thread and gathers nothing."""

    def __init__(
        self,
        exporter: LogRecordExporter,
        delay_ms: float,
        ledger: Any = None,
        overran: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(_Logs(exporter, ledger), schedule_delay_millis=delay_ms)
        _stay_home(self._batch_processor, overran)


def _stay_home(batch: Any, overran: _Overran) -> None:
    """The SDK starts its thread anew in a forked child: let that one end at once, and nothing wait for it.

    `overran()` is called for each record that its queue lets go of because it is full: the SDK only logs that.
    """
    home, worker, emit = os.getpid(), batch.worker, batch.emit
    queue = getattr(batch, "_queue", ())
    most = getattr(queue, "maxlen", None)

    def emit_at_home(data: Any) -> None:
        if os.getpid() == home:
            if overran is not None and len(queue) == most:
                overran()
            emit(data)

    batch.worker = lambda: worker() if os.getpid() == home else None
    batch.emit = emit_at_home


class _Reader(PeriodicExportingMetricReader):
    """Collects in its own process; a forked child would send its parent's totals again."""

    def _at_fork_reinit(self) -> None:
        """Start no thread."""


class _Metrics(_OfOneProcess, MetricExporter):
    def __init__(self, inner: MetricExporter, ledger: Any = None) -> None:
        _OfOneProcess.__init__(self, inner, ledger)
        MetricExporter.__init__(
            self,
            preferred_temporality=inner._preferred_temporality,  # noqa: SLF001 - the wrapper must prefer the same
            preferred_aggregation=inner._preferred_aggregation,  # noqa: SLF001
        )

    def export(self, metrics_data: Any, timeout_millis: float = 10_000, **kwargs: Any) -> Any:
        if not self._ours():
            return MetricExportResult.SUCCESS
        result = MetricExportResult.FAILURE
        try:
            result = self.inner.export(metrics_data, timeout_millis=timeout_millis, **kwargs)
        finally:
            if self.ledger is not None:
                at = _collected_unix_ns(metrics_data)
                self.ledger.told_points(at, arrived=result is MetricExportResult.SUCCESS)
        return result

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return not self._ours() or self.inner.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        if self._ours():
            self.inner.shutdown(timeout_millis=timeout_millis, **kwargs)


def _collected_unix_ns(collection: Any) -> int:
    """When a collection was made, by its first point; 0 where it has none."""
    for resource_metrics in collection.resource_metrics:
        for scope_metrics in resource_metrics.scope_metrics:
            for metric in scope_metrics.metrics:
                for point in metric.data.data_points:
                    return int(point.time_unix_nano)
    return 0


_PROTOCOLS = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
_told: set[str] = set()
_EXTRAS = {"otlp_proto_grpc": "grpc", "prometheus": "prometheus"}


def _component(names: Sequence[str], signal: Any) -> list[Any]:
    """The exporters' classes. What cannot be is told and left out, as OTel asks: the rest of the telemetry works."""
    found = []
    for name in names:
        try:
            found.append(_exporter(name, signal))
        except SettingsError as error:  # noqa: PERF203 - two names at most
            if str(error) not in _told:  # an endpoint is of three signals
                logger.warning("otel-ml: %s", error)
                _told.add(str(error))
    return found


def _exporter(name: str, signal: Any) -> Any:
    known = name
    if name == "otlp":
        variable = sdk._PROTOCOL_ENV_BY_SIGNAL_TYPE[signal]  # noqa: SLF001 - the SDK's own table of names
        if not os.environ.get(variable):
            variable = "OTEL_EXPORTER_OTLP_PROTOCOL"
        protocol = os.environ.get(variable, "").strip() or "http/protobuf"
        if protocol not in _PROTOCOLS:
            message = f"{variable}={protocol}: no {signal} are sent; type 'http/protobuf' or 'grpc'."
            raise SettingsError(message)
        known = _PROTOCOLS[protocol]
    if known == _PROTOCOLS["http/protobuf"]:
        _need_url(signal)
    group = f"opentelemetry_{signal}_exporter"
    waits = late(signal, entry_points(group=group, name=known)) if known == _PROTOCOLS["http/protobuf"] else None
    if waits is not None:
        return waits
    try:
        ((_, exporter),) = sdk._import_config_components([known], group)  # noqa: SLF001
    except (RuntimeError, ImportError) as error:
        missing = f"type: pip install 'otel-ml[{_EXTRAS[known]}]'" if known in _EXTRAS else "is it installed?"
        message = f"OTEL_{signal.upper()}_EXPORTER={name}: {error}; {missing}"
        raise SettingsError(message) from None
    return exporter


def _need_url(signal: str) -> None:
    """Refuse an endpoint that `requests` would refuse at each export."""
    for name in (f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        given = os.environ.get(name, "").strip()
        if given:
            try:
                parts = urlsplit(given)
                fits = parts.scheme in ("http", "https") and bool(parts.hostname)
            except ValueError:
                fits = False
            if not fits:
                url = "http://localhost:4318" if "://" in given else f"http://{given}"
                message = f"{name}={given}: need a URL; nothing is sent there. Type {name}={url}."
                raise SettingsError(message)
            return


class Providers:
    """The three providers everything leaves through.

    `made` names the signals whose provider is ours, `stored` those that the local store hears.
    """

    def __init__(self, tracer: Any, meter: Any, logger: Any, *, made: set[str]) -> None:
        self.tracer = tracer
        self.meter = meter
        self.logger = logger
        self.made = made
        self._left: list[Any] = []  # ours, where the program has since set its own
        self._readers: list[MetricReader] = []
        self._kept: list[Any] = []  # the store's own processors
        self._writer: Any = None
        self.stored: set[str] = set()
        self._ledger: Any = None

    @classmethod
    def make(
        cls, resource: Resource, exporters: Mapping[str, Sequence[str]], views: Sequence[View], ledger: Any = None
    ) -> Providers:
        """The SDK providers that the program or its distribution has set; for each that is not, one of ours, set.

        `ledger` hears what the OTLP exporters of ours say of each batch.
        """
        providers = cls(
            trace.get_tracer_provider(), metrics.get_meter_provider(), _logs.get_logger_provider(), made=set()
        )
        providers._ledger = ledger
        with started_for_us():
            providers._make(resource, exporters, views, ledger)
        return providers

    def _make(
        self, resource: Resource, exporters: Mapping[str, Sequence[str]], views: Sequence[View], ledger: Any
    ) -> None:
        if not isinstance(self.tracer, TracerProvider):
            self.tracer = _tracer_provider(resource, _component(exporters["traces"], "traces"), ledger)
            self.made.add("traces")
            trace.set_tracer_provider(self.tracer)
        if not isinstance(self.meter, MeterProvider):
            found = _component(exporters["metrics"], "metrics")
            self.meter = _meter_provider(resource, found, views, ledger)
            self.made.add("metrics")
            metrics.set_meter_provider(self.meter)
        if not isinstance(self.logger, LoggerProvider):
            self.logger = _logger_provider(resource, _component(exporters["logs"], "logs"), ledger)
            self.made.add("logs")
            _logs.set_logger_provider(self.logger)

    def adopt(self, signal: str) -> Any:
        """The program has set its own provider of this signal: leave through that one, the store as well."""
        field, current = _GLOBAL[signal]
        self._left.append(getattr(self, field))
        provider: Any = current()
        setattr(self, field, provider)
        self.made.discard(signal)
        if self._ledger is not None:
            self._ledger.owed.discard(_TABLES[signal])
        if signal in self.stored:
            self._store(signal)
        return provider

    def store(self, writer: Any, signals: set[str]) -> None:
        """Have the local store hear these signals."""
        self._writer, self.stored = writer, signals
        for signal in signals:
            self._store(signal)

    @started_for_us()
    def _store(self, signal: str) -> None:
        if signal == "traces" and hasattr(self.tracer, "add_span_processor"):
            overran = partial(self._writer.overran, "spans")
            self._kept.append(_SpanBatches(self._writer.span_exporter, _DELAY_MS, overran=overran))
            self.tracer.add_span_processor(self._kept[-1])
        elif signal == "logs" and hasattr(self.logger, "add_log_record_processor"):
            overran = partial(self._writer.overran, "logs")
            self._kept.append(_LogBatches(self._writer.log_exporter, _DELAY_MS, overran=overran))
            self.logger.add_log_record_processor(self._kept[-1])
        elif signal == "metrics" and hasattr(self.meter, "add_metric_reader"):
            reader = _periodic(_Metrics(self._writer.metric_exporter))
            self.meter.add_metric_reader(reader)
            self._readers.append(reader)

    def keep(self) -> None:
        """Have the local store write what it was told so far, on the calling thread."""
        for processor in list(self._kept):
            processor.force_flush()
        if self._writer is not None:
            self._writer.settle()

    def end_store(self, timeout_ms: int) -> None:
        """Bring what is pending to the local store, before anything waits for an endpoint's answer."""
        for processor in self._kept:
            processor.force_flush(timeout_ms)
        while self._readers:
            # A reader added later is not among those the provider ends itself; this collects once more.
            self._readers.pop().shutdown(timeout_ms)

    def flush(self, timeout_ms: int, *, stored: bool = False) -> None:
        """Send what is pending; what the SDK does not bound is bounded by the caller.

        With `stored`, what is pending for the local store goes there first.
        """
        for kept in (*self._kept, *self._readers) if stored else ():
            kept.force_flush(timeout_ms)
        if stored and self._writer is not None:
            self._writer.settle()
        for provider in (*self._left, self.tracer, self.logger, *self._pushing()):
            if hasattr(provider, "force_flush"):
                provider.force_flush(timeout_ms)

    def _pushing(self) -> Sequence[Any]:
        """What pushes metrics. A scrape endpoint would hold what is collected unasked, and answer twice with it."""
        readers: Sequence[Any] = getattr(self.meter, "_metric_readers", ())
        scraped = [r for r in readers if type(r).__module__.startswith("opentelemetry.exporter.prometheus")]
        return [r for r in readers if r not in scraped] if scraped else [self.meter]

    def shutdown(self) -> None:
        """End the providers we made, and the readers we added."""
        for reader in self._readers:
            reader.shutdown()
        for provider in (*self._left, *(getattr(self, _GLOBAL[signal][0]) for signal in sorted(self.made))):
            provider.shutdown()


_GLOBAL: dict[str, tuple[str, Callable[[], Any]]] = {
    "traces": ("tracer", trace.get_tracer_provider),
    "metrics": ("meter", metrics.get_meter_provider),
    "logs": ("logger", _logs.get_logger_provider),
}


_TABLES = {"traces": "spans", "metrics": "points", "logs": "logs"}  # what the store calls them


def _tracer_provider(resource: Resource, exporters: Sequence[Any], ledger: Any) -> TracerProvider:
    provider = TracerProvider(resource=resource, shutdown_on_exit=False, id_generator=_id_generator())
    for exporter in map(_made, exporters):
        provider.add_span_processor(_SpanBatches(exporter, _delay("BSP"), _owing(ledger, "spans", exporter)))
    return provider


def _made(exporter: Any) -> Any:
    return exporter()


def _owing(ledger: Any, table: str, exporter: Any) -> Any:
    """The ledger, which from now on expects to be told what arrived of this signal; None where nothing tells that.

    One exporter of a signal is believed. What the store keeps of metrics is cumulative: where
    an endpoint wants deltas it cannot be sent the store's.
    """
    if ledger is None or table in ledger.owed or not _tells(exporter):
        return None
    if table == "points" and exporter._preferred_temporality.get(Counter) is AggregationTemporality.DELTA:  # noqa: SLF001
        return None
    ledger.owed.add(table)
    for processor in ("BSP", "BLRP"):
        queue = os.environ.get(f"OTEL_{processor}_MAX_QUEUE_SIZE", "")
        ledger.queue = max(ledger.queue, int(queue) if queue.isdecimal() else 0)
    return ledger


def _id_generator() -> IdGenerator:
    """What OTEL_PYTHON_ID_GENERATOR names; by default not the SDK's, which draws from the program's `random`."""
    name = sdk._get_id_generator()  # noqa: SLF001 - the SDK's own reading of the variable
    if name == "random":
        return SystemIds()
    try:
        return sdk._import_id_generator(name)  # noqa: SLF001
    except RuntimeError as error:
        logger.warning(
            "otel-ml: OTEL_PYTHON_ID_GENERATOR=%s: %s; it is ignored. Type random, or unset it.", name, error
        )
        return SystemIds()


def _meter_provider(resource: Resource, exporters: Sequence[Any], views: Sequence[View], ledger: Any) -> MeterProvider:
    made = map(_made, exporters)
    readers = [e if isinstance(e, MetricReader) else _periodic(_Metrics(e, _owing(ledger, "points", e))) for e in made]
    return MeterProvider(readers, resource=resource, views=views, shutdown_on_exit=False)


def _logger_provider(resource: Resource, exporters: Sequence[Any], ledger: Any) -> LoggerProvider:
    provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
    for exporter in map(_made, exporters):
        provider.add_log_record_processor(_LogBatches(exporter, _delay("BLRP"), _owing(ledger, "logs", exporter)))
    return provider


def _delay(processor: str) -> float:
    return float(os.environ.get(f"OTEL_{processor}_SCHEDULE_DELAY") or _DELAY_MS)


def _periodic(exporter: MetricExporter) -> PeriodicExportingMetricReader:
    interval = os.environ.get("OTEL_METRIC_EXPORT_INTERVAL")
    return _Reader(exporter, export_interval_millis=float(interval or _METRICS_MS))
