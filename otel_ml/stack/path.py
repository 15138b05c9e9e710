"""One span, metric and log sent through the program's own exporters, and looked for behind each backend."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from opentelemetry import trace
from opentelemetry.trace import format_trace_id

from otel_ml import names, redact
from otel_ml.core.identity import resolve
from otel_ml.pipeline.providers import Providers
from otel_ml.pipeline.resource import resource_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["BACKENDS", "Probe", "emit", "look_for", "send"]

BACKENDS = ("prometheus", "jaeger", "loki")

_FLUSH_MS = 10_000
_ASK_S = 5.0
_PAUSE_S = 0.5


@dataclass(frozen=True)
class Probe:
    """What was sent: the run it says it belongs to, and its trace."""

    run_id: str
    trace_id: str

    def question(self, backend: str) -> str:
        """The path and query that find it there."""
        selector = f'{{ml_run_id="{self.run_id}"}}'
        return {
            "prometheus": f"/api/v1/query?query={quote(f'otel_ml_probe_total{selector}')}",
            "jaeger": f"/api/traces/{self.trace_id}",
            "loki": f"/loki/api/v1/query_range?since=1h&query={quote(selector)}",
        }[backend]


def send(exporters: Mapping[str, Sequence[str]]) -> Probe:
    """Send one span, one metric and one log in it; returns when they are on their way (10 s a signal at most).

    Args:
        exporters: the exporters' names by signal; what they read from the environment is the user's.
    """
    identity = resolve({"OTEL_ML_RUN_ID": f"doctor-{os.urandom(6).hex()}", "OTEL_ML_RUN_NAME": "doctor"}, ["doctor"])
    providers = Providers.make(resource_of(identity, {}), exporters, ())
    trace_id = emit(providers)
    providers.flush(_FLUSH_MS)
    providers.shutdown()
    return Probe(identity.run_id, trace_id)


def emit(providers: Providers) -> str:
    """One span, one metric and one log in it; the trace's id."""
    span = providers.tracer.get_tracer(names.SCOPE).start_span(names.SPAN_PROBE)
    with trace.use_span(span, end_on_exit=True):
        providers.meter.get_meter(names.SCOPE).create_counter(names.PROBE.name, names.PROBE.unit, names.PROBE.doc).add(
            1
        )
        providers.logger.get_logger(names.SCOPE).emit(
            timestamp=time.time_ns(), event_name=names.EVENT_PROBE, body="sent by otel-ml doctor"
        )
    return format_trace_id(span.get_span_context().trace_id)


def look_for(probe: Probe, urls: Mapping[str, str], within_s: float) -> dict[str, float | str]:
    """By backend, after how many seconds the probe was there; or, as text, why it is not."""
    started = time.monotonic()
    found: dict[str, float | str] = {}
    why: dict[str, str] = {}
    while len(found) < len(urls) and time.monotonic() - started < within_s:
        for name, url in urls.items():
            if name in found:
                continue
            try:
                answer = _asked(url.rstrip("/") + probe.question(name))
            except (OSError, ValueError) as error:
                why[name] = f"{redact.text(url)} does not answer: {redact.text(str(getattr(error, 'reason', error)))}"
                continue
            why[name] = f"not there after {within_s:g} s"
            if _has(name, answer):
                found[name] = time.monotonic() - started
        time.sleep(_PAUSE_S)
    return {name: found.get(name, why.get(name, "not asked")) for name in urls}


def _asked(url: str) -> Any:
    if not url.startswith(("http://", "https://")):
        message = "need http:// or https://"
        raise ValueError(message)
    try:
        with urllib.request.urlopen(url, timeout=_ASK_S) as answer:  # noqa: S310 - the scheme is checked above
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 404:  # what Jaeger says of a trace that it does not know
            return {}
        raise


def _has(backend: str, answer: Any) -> bool:
    data = answer.get("data") or {}
    return bool(data if backend == "jaeger" else data.get("result"))
