"""The program's own log records, with run, step and trace, whatever handler prints them.

No handler is added to the root logger: with one there, `logging.basicConfig()` would do
nothing and warnings of a program that configures nothing would no longer be printed.
Instead `Logger.callHandlers` passes each record on as it always did, and then to the
handler of `opentelemetry-instrumentation-logging`.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from opentelemetry import trace
from opentelemetry.instrumentation.logging.handler import LoggingHandler

from otel_ml import names
from otel_ml.core.context import recorders
from otel_ml.errors import swallow
from otel_ml.redact import text

__all__ = ["Logs"]

_OURS = ("otel_ml", "opentelemetry", "urllib3", "grpc")


class _Handler(LoggingHandler):
    """Drops what logging and the factory put on a record, keeps what the program did."""

    def _get_attributes(self, record: logging.LogRecord) -> Any:
        attributes, event = super()._get_attributes(record)
        for key in ("otelTraceID", "otelSpanID", "otelServiceName", "otelTraceSampled"):
            attributes.pop(key, None)
        for key in ("exception.message", "exception.stacktrace"):
            value = attributes.get(key)
            if isinstance(value, str):
                attributes[key] = text(value)
        recorder = recorders.live()
        if recorder is not None and recorder.state:
            attributes[names.STEP_NUMBER] = recorder.number
        return attributes, event


class Logs:
    """Installs and removes both halves: records to OpenTelemetry, ids onto records."""

    def __init__(self, logger_provider: Any) -> None:
        self.handler = _Handler(logger_provider=logger_provider)
        self._original: Any = None
        self._ours: Any = None
        self._factory: Any = None
        self._our_factory: Any = None

    def install(self) -> None:
        """Start."""
        original = self._original = logging.Logger.callHandlers
        handler = self.handler

        @functools.wraps(original)
        def callHandlers(self: logging.Logger, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
            original(self, record)
            if not record.name.startswith(_OURS):
                try:
                    handler.emit(record)
                except Exception:  # noqa: BLE001 - the law: never break the program
                    swallow("passing on a log record")

        self._ours = callHandlers
        logging.Logger.callHandlers = callHandlers  # type: ignore[method-assign]
        factory = self._factory = logging.getLogRecordFactory()

        def with_ids(*args: Any, **kwargs: Any) -> logging.LogRecord:
            record = factory(*args, **kwargs)
            try:
                context = trace.get_current_span().get_span_context()
            except Exception:  # noqa: BLE001 - the law: never break the program
                swallow("finding a log record's span")
                context = trace.INVALID_SPAN_CONTEXT
            record.otelTraceID = format(context.trace_id, "032x") if context.is_valid else "0"
            record.otelSpanID = format(context.span_id, "016x") if context.is_valid else "0"
            return record

        self._our_factory = with_ids
        logging.setLogRecordFactory(with_ids)

    def uninstall(self) -> None:
        """Put both originals back, unless somebody else has placed theirs over ours since."""
        if logging.Logger.callHandlers is self._ours:
            logging.Logger.callHandlers = self._original  # type: ignore[method-assign]
        if logging.getLogRecordFactory() is self._our_factory:
            logging.setLogRecordFactory(self._factory)
