"""The program's own log records, with run, step and trace, whatever handler prints them.

No handler is added to the root logger: with one there, `logging.basicConfig()` would do
nothing and warnings of a program that configures nothing would no longer be printed.
Instead `Logger.callHandlers` passes each record on as it always did, and then to the
handler of `opentelemetry-instrumentation-logging`.
"""

from __future__ import annotations

import functools
import logging
import sys
from typing import Any

from opentelemetry import trace
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, get_value
from opentelemetry.instrumentation.logging.handler import LoggingHandler

from otel_ml import names
from otel_ml.core.context import recorders, request_id
from otel_ml.errors import swallow
from otel_ml.fields import IDS, beside, plain, unwrapped
from otel_ml.redact import text

__all__ = ["Logs"]

# What we, OpenTelemetry and its transports say; and torch's record of each compilation, which is for its own tools.
_UNHEARD = ("otel_ml", "opentelemetry", "urllib3", "grpc", "torch.__trace")
_BELOW_UNHEARD = tuple(f"{name}." for name in _UNHEARD)


class _Handler(LoggingHandler):
    """Drops what logging and the factory put on a record, keeps what the program did."""

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record, with what it is given and what its context holds as attributes."""
        super().emit(unwrapped(record))

    def flush(self) -> None:
        """Nothing: `logging.shutdown()` asks all handlers there are, and the run's end sends what is left.

        The SDK's starts a thread here, which Python 3.12 does not let it do at exit.
        """

    def _get_attributes(self, record: logging.LogRecord) -> Any:
        attributes, event = super()._get_attributes(record)
        given = beside({**_context(), **attributes})
        attributes = {key: plain(key, value) for key, value in given.items() if key not in IDS}
        for key in ("exception.message", "exception.stacktrace"):
            value = attributes.get(key)
            if isinstance(value, str):
                attributes[key] = text(value)
        recorder = recorders.live()
        if recorder is not None and recorder.state:
            attributes[names.STEP_NUMBER] = recorder.number
        request = request_id.get()
        if request is not None:
            attributes[names.REQUEST_ID] = request
        return attributes, event


class Logs:
    """Installs and removes both halves: records to OpenTelemetry, ids onto records."""

    def __init__(self, logger_provider: Any, *, theirs: bool) -> None:
        self.handler = _Handler(logger_provider=logger_provider)
        self._theirs = theirs  # the provider is the program's: a handler of its own may feed it
        self._original: Any = None
        self._ours: Any = None
        self._factory: Any = None
        self._our_factory: Any = None

    def use(self, logger_provider: Any) -> None:
        """Send to this provider, which the program has set, what no OpenTelemetry handler of its own sends there."""
        self.handler = _Handler(logger_provider=logger_provider)
        self._theirs = True

    def install(self) -> None:
        """Start."""
        original = self._original = logging.Logger.callHandlers
        logs = self

        @functools.wraps(original)
        def callHandlers(self: logging.Logger, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
            # Inside an export: what a transport says of it is not the program's to print, and what a handler of
            # the program's says about that, sent on, would make the next export, and so on for ever.
            exporting = get_value(_SUPPRESS_INSTRUMENTATION_KEY)
            unheard = record.name in _UNHEARD or record.name.startswith(_BELOW_UNHEARD)
            if not (exporting and unheard and record.levelno < logging.WARNING):
                original(self, record)
            if not (exporting or unheard):
                try:
                    if not (logs._theirs and _has_handler(self)):
                        logs.handler.emit(record)
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


def _context() -> dict[str, Any]:
    """What structlog holds for this thread or task: the fields of `LogContext`, and those the program bound itself."""
    contextvars = sys.modules.get("structlog.contextvars")
    return contextvars.get_contextvars() if contextvars is not None else {}


def _has_handler(logger: logging.Logger | None) -> bool:
    """Whether a handler that `callHandlers` just called is one that passes records on to OpenTelemetry."""
    while logger is not None:
        if any(type(h).__name__ == "LoggingHandler" for h in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False
