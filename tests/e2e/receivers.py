"""Real OTLP receivers, for http/protobuf and for grpc, that keep what a program sent as plain data.

Tests start one, give its endpoint to a program through OpenTelemetry's own variables, and
look at what came over the wire. Requests are served on threads; what goes wrong there is
kept and raised when the receiver is closed.
"""

from __future__ import annotations

import gzip
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc  # type: ignore[import-untyped]  # it ships no types
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

__all__ = [
    "RECEIVERS", "Log", "Nested", "Point", "Received", "Span", "grpc_receiver", "http_receiver", "nested", "orphans",
    "roots", "steps_of_logs",
]  # fmt: skip

Attributes: TypeAlias = dict[str, Any]

_TEMPORALITY = {0: None, 1: "delta", 2: "cumulative"}


@dataclass(frozen=True)
class Span:
    """A span as it came; ids are hex, links are pairs of trace id and span id."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str | None
    start_unix_ns: int
    end_unix_ns: int
    attributes: Attributes
    links: tuple[tuple[str, str], ...]
    flags: int
    scope: str
    resource: Attributes


@dataclass(frozen=True)
class Log:
    """A log record, or an event where it has a name."""

    event: str
    body: Any
    severity: int
    trace_id: str | None
    span_id: str | None
    attributes: Attributes
    scope: str
    resource: Attributes


@dataclass(frozen=True)
class Point:
    """A metric's point: a number's `value`, or a histogram's `count` and `sum` and how many its buckets hold."""

    name: str
    kind: str
    unit: str
    temporality: str | None
    time_unix_ns: int
    attributes: Attributes
    value: float | None
    count: int | None
    sum: float | None
    in_buckets: int | None
    scope: str
    resource: Attributes


@dataclass
class Received:
    """Everything that one receiver was sent so far, and the endpoint to send to."""

    endpoint: str = ""
    protocol: str = ""
    spans: list[Span] = field(default_factory=list)
    logs: list[Log] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    headers: dict[str, list[dict[str, str]]] = field(default_factory=lambda: defaultdict(list))  # of each request
    problems: list[BaseException] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, came: Callable[[], bool], timeout_s: float = 60) -> None:
        """Return as soon as `came()` holds, which is asked after each request."""
        with self.changed:
            assert self.changed.wait_for(came, timeout_s), f"it did not come within {timeout_s:g} s"

    def sent(self) -> list[str]:
        """The signals that came, sorted."""
        return [name for name, rows in (("logs", self.logs), ("metrics", self.points), ("traces", self.spans)) if rows]

    def resources(self) -> dict[str, list[Attributes]]:
        """The different resources of each signal that came."""
        found: dict[str, list[Attributes]] = {}
        rows: list[tuple[str, Sequence[Span | Log | Point]]] = [
            ("traces", self.spans), ("metrics", self.points), ("logs", self.logs),
        ]  # fmt: skip
        for signal, things in rows:
            for thing in things:
                known = found.setdefault(signal, [])
                if thing.resource not in known:
                    known.append(thing.resource)
        return found

    def totals(self, name: str) -> dict[str, float]:
        """What each series of a counter, or count of a histogram, came to; by its attributes as text."""
        found: dict[str, float] = defaultdict(float)
        for point in self.points:
            amount = point.count if point.value is None else point.value
            if point.name == name and amount is not None:
                key = " ".join(f"{k}={v}" for k, v in sorted(point.attributes.items()))
                found[key] = amount + (found[key] if point.temporality == "delta" else 0)
        return dict(found)

    # --- what the servers give it ------------------------------------------------------

    def take(self, signal: str, request: Any, headers: Mapping[str, str]) -> None:
        """Keep one export request."""
        try:
            with self.changed:
                _DECODERS[signal](self, request)
                self.headers[signal].append({key.lower(): value for key, value in headers.items()})
                self.changed.notify_all()
        except Exception as error:
            self.problems.append(error)
            raise


# --- how spans and logs hang together ------------------------------------------------------

Nested: TypeAlias = tuple[str, int | None, str | None]


def orphans(spans: Iterable[Span]) -> list[tuple[str, str | None]]:
    """Spans whose parent is not among them, as name and the missing id."""
    there = {(span.trace_id, span.span_id) for span in spans}
    return [
        (span.name, span.parent_id)
        for span in spans
        if span.parent_id is not None and (span.trace_id, span.parent_id) not in there
    ]


def roots(spans: Iterable[Span]) -> dict[tuple[str, str], Span]:
    """The root above each span, by the span's trace and span id; of those that have one."""
    by_id = {(span.trace_id, span.span_id): span for span in spans}
    found = {}
    for key, span in by_id.items():
        top: Span | None = span
        while top is not None and top.parent_id is not None:
            top = by_id.get((top.trace_id, top.parent_id))
        if top is not None:
            found[key] = top
    return found


def _step(root: Span | None) -> int | None:
    return None if root is None or root.name != "ml.step" else int(root.attributes["ml.step.number"])


def nested(spans: Sequence[Span], scope: str = "program") -> list[Nested]:
    """The program's own spans, each with the step it is in and the name of what else is right around it; sorted."""
    by_id = {(span.trace_id, span.span_id): span for span in spans}
    above = roots(spans)
    found: list[Nested] = []
    for key, span in by_id.items():
        if span.scope == scope:
            parent = by_id.get((span.trace_id, span.parent_id or ""))
            around = None if parent is None or parent.name == "ml.step" else parent.name
            found.append((span.name, _step(above.get(key)), around))
    return sorted(found, key=str)


def steps_of_logs(logs: Iterable[Log], spans: Sequence[Span], scope: str = "program") -> list[tuple[str, int | None]]:
    """The program's own log records, each with the step that its span is in; sorted."""
    above = roots(spans)
    return sorted(
        ((log.body, _step(above.get((log.trace_id or "", log.span_id or "")))) for log in logs if log.scope == scope),
        key=str,
    )


# --- decoding ----------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """An OTLP value as Python has it."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [plain(one) for one in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    return getattr(value, kind)


def _attributes(pairs: Any) -> Attributes:
    return {pair.key: plain(pair.value) for pair in pairs}


def _take_spans(into: Received, request: Any) -> None:
    for resource in request.resource_spans:
        about = _attributes(resource.resource.attributes)
        for scope in resource.scope_spans:
            into.spans.extend(
                Span(
                    name=span.name,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex() or None,
                    start_unix_ns=span.start_time_unix_nano,
                    end_unix_ns=span.end_time_unix_nano,
                    attributes=_attributes(span.attributes),
                    links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                    flags=span.flags,
                    scope=scope.scope.name,
                    resource=about,
                )
                for span in scope.spans
            )


def _take_logs(into: Received, request: Any) -> None:
    for resource in request.resource_logs:
        about = _attributes(resource.resource.attributes)
        for scope in resource.scope_logs:
            into.logs.extend(
                Log(
                    event=record.event_name,
                    body=plain(record.body),
                    severity=record.severity_number,
                    trace_id=record.trace_id.hex() or None,
                    span_id=record.span_id.hex() or None,
                    attributes=_attributes(record.attributes),
                    scope=scope.scope.name,
                    resource=about,
                )
                for record in scope.log_records
            )


def _take_metrics(into: Received, request: Any) -> None:
    for resource in request.resource_metrics:
        about = _attributes(resource.resource.attributes)
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                kind = metric.WhichOneof("data")
                data = getattr(metric, kind)
                for point in data.data_points:
                    into.points.append(_point(metric, kind, data, point, scope.scope.name, about))


def _point(metric: Any, kind: str, data: Any, point: Any, scope: str, about: Attributes) -> Point:
    value, count, total, in_buckets = None, None, None, None
    if kind in ("gauge", "sum"):
        value = float(getattr(point, point.WhichOneof("value")))
    else:
        count, total = point.count, point.sum
        in_buckets = (
            sum(point.bucket_counts)
            if kind == "histogram"
            else point.zero_count + sum(point.positive.bucket_counts) + sum(point.negative.bucket_counts)
        )
    return Point(
        name=metric.name,
        kind=kind,
        unit=metric.unit,
        temporality=None if kind == "gauge" else _TEMPORALITY[data.aggregation_temporality],
        time_unix_ns=point.time_unix_nano,
        attributes=_attributes(point.attributes),
        value=value,
        count=count,
        sum=total,
        in_buckets=in_buckets,
        scope=scope,
        resource=about,
    )


_DECODERS: Final = {"traces": _take_spans, "logs": _take_logs, "metrics": _take_metrics}


# --- http/protobuf -----------------------------------------------------------------------

_MESSAGES: Final[dict[str, tuple[Any, Any]]] = {
    "traces": (trace_service_pb2.ExportTraceServiceRequest, trace_service_pb2.ExportTraceServiceResponse),
    "metrics": (metrics_service_pb2.ExportMetricsServiceRequest, metrics_service_pb2.ExportMetricsServiceResponse),
    "logs": (logs_service_pb2.ExportLogsServiceRequest, logs_service_pb2.ExportLogsServiceResponse),
}


@contextmanager
def http_receiver() -> Iterator[Received]:
    """A receiver of OTLP over http/protobuf on a free port of this machine."""
    received = Received(protocol="http/protobuf")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            signal = self.path.removeprefix("/v1/")
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            asked, answered = _MESSAGES[signal]
            received.take(signal, asked.FromString(body), dict(self.headers.items()))
            answer = answered().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
            """Say nothing a request."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            import sys

            error = sys.exc_info()[1]
            # A program that ends, or gives up on us, may leave a connection behind.
            if error is not None and not isinstance(error, ConnectionError) and error not in received.problems:
                received.problems.append(error)

    server = Server(("127.0.0.1", 0), Handler)
    received.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert received.problems == []


# --- grpc --------------------------------------------------------------------------------


@contextmanager
def grpc_receiver() -> Iterator[Received]:
    """A receiver of OTLP over grpc on a free port of this machine."""
    received = Received(protocol="grpc")

    def export(signal: str) -> Any:
        def answer(_: Any, request: Any, context: Any) -> Any:
            sent = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
            received.take(signal, request, sent)
            return _MESSAGES[signal][1]()

        return answer

    services = {
        "traces": (
            trace_service_pb2_grpc.TraceServiceServicer,
            trace_service_pb2_grpc.add_TraceServiceServicer_to_server,
        ),
        "metrics": (
            metrics_service_pb2_grpc.MetricsServiceServicer,
            metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server,
        ),
        "logs": (logs_service_pb2_grpc.LogsServiceServicer, logs_service_pb2_grpc.add_LogsServiceServicer_to_server),
    }
    with ThreadPoolExecutor(4) as pool:
        server: Any = grpc.server(pool)
        for signal, (service, add) in services.items():
            register: Any = add
            register(type(f"{signal}Service", (service,), {"Export": export(signal)})(), server)
        received.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield received
        finally:
            server.stop(grace=None).wait()
    assert received.problems == []


RECEIVERS = {"http/protobuf": http_receiver, "grpc": grpc_receiver}
