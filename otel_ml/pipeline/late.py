"""OTLP over HTTP, imported while the program imports its framework, or when there is first something to send.

Its `requests` brings urllib3, which takes SSLContext out of `ssl`. Imported before the
program's first line, which may be gevent's `monkey.patch_all()`, it has each HTTPS request
of the program's end in a RecursionError. And a program starts without waiting for it.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk._logs.export import LogRecordExportResult
from opentelemetry.sdk.metrics.export import MetricExportResult
from opentelemetry.sdk.trace.export import SpanExportResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Late", "late", "prepare"]

logger = logging.getLogger("otel_ml")

_thread_number = _thread.get_ident  # the real one, whatever becomes of it
_PACKAGE = "opentelemetry.exporter.otlp.proto.http."
_FAILURE = {
    "traces": SpanExportResult.FAILURE, "metrics": MetricExportResult.FAILURE, "logs": LogRecordExportResult.FAILURE,
}  # fmt: skip


def late(signal: str, found: Iterable[Any]) -> Callable[[], Any] | None:
    """What makes this signal's exporter, if it is OpenTelemetry's own; None where it is another's, or none."""
    entry_point = next(iter(found), None)
    if entry_point is None or not entry_point.value.startswith(_PACKAGE):
        return None
    return partial(_LateMetrics if signal == "metrics" else Late, signal, entry_point.load)


def prepare() -> None:
    """Make those that are there: the first export would else do it, in the midst of steps."""
    for exporter in list(_waiting):
        exporter.made()


class Late:
    """An exporter that is there once it is prepared, or something is exported."""

    def __init__(self, signal: str, load: Callable[[], Callable[[], Any]]) -> None:
        self._signal = signal
        self._load = load
        self._exporters: dict[int, Any] = {}
        self._refused = False
        self._making = threading.Lock()
        _waiting.add(self)

    def export(self, batch: Any, **kwargs: Any) -> Any:
        """What it answers; a failure where it cannot be, which is told once."""
        exporter = self.made()
        return _FAILURE[self._signal] if exporter is None else exporter.export(batch, **kwargs)

    def force_flush(self, *_: Any) -> bool:
        """It holds nothing back."""
        return True

    def shutdown(self, **kwargs: Any) -> None:
        """Shut it down, if it came to be."""
        self._refused = True
        for exporter in list(self._exporters.values()):
            with contextlib.suppress(Exception):  # gevent's, for a connection of another thread
                exporter.shutdown(**kwargs)

    def made(self) -> Any:
        """The exporter; where gevent is in force one for each thread, as its connections know no other thread."""
        number = _thread_number() if _thread.get_ident is not _thread_number else 0
        with self._making:
            if number not in self._exporters and not self._refused:
                try:
                    self._exporters[number] = self._load()()
                except Exception as error:  # noqa: BLE001 - whatever it makes of the variables that it reads
                    self._refused = True
                    logger.warning("otel-ml: no %s are sent: %s: %s", self._signal, type(error).__name__, error)
            return self._exporters.get(number)


_waiting: weakref.WeakSet[Late] = weakref.WeakSet()


class _LateMetrics(Late):
    """Says at once what its exporter will prefer: a reader asks when it is made."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        from opentelemetry.exporter.otlp.proto.common._internal.metrics_encoder import OTLPMetricExporterMixin

        prefers: Any = OTLPMetricExporterMixin()
        self._preferred_temporality = prefers._get_temporality(None)  # noqa: SLF001 - the exporter's own reading
        self._preferred_aggregation = prefers._get_aggregation(None)  # noqa: SLF001 - of the variables
