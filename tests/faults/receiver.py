"""OTLP receivers as they are on bad days, each a real server on a port of its own; and what a good one was sent."""

from __future__ import annotations

import gzip
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, final

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BEHAVIOURS", "Receiver"]


@final
class Receiver:
    """A server that listens until the end of the context; `behaviour` is one of `BEHAVIOURS`."""

    def __init__(self, behaviour: str = "good") -> None:
        self.behaviour = behaviour
        self.bodies: list[tuple[str, bytes]] = []
        self.asked = threading.Event()  # the first request has come
        self.released = threading.Event()  # who waits is to be answered now
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign] # its clients are killed
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(0.05))

    @property
    def endpoint(self) -> str:
        """Its address, for `OTEL_EXPORTER_OTLP_ENDPOINT`."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Receiver:
        if self.behaviour == "dead":
            self._server.server_close()  # its port is refused from now on
        else:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def close(self) -> None:
        """Stop listening, from a request's own thread."""
        threading.Thread(target=self._server.shutdown).start()
        self._server.socket.close()

    # --- what it was sent --------------------------------------------------------------

    def spans(self) -> list[Any]:
        """The spans."""
        requests = self._parsed("/v1/traces", ExportTraceServiceRequest)
        return [s for r in requests for o in r.resource_spans for i in o.scope_spans for s in i.spans]

    def logs(self) -> list[Any]:
        """The log records."""
        requests = self._parsed("/v1/logs", ExportLogsServiceRequest)
        return [s for r in requests for o in r.resource_logs for i in o.scope_logs for s in i.log_records]

    def counted(self, metric: str) -> dict[str, float]:
        """The newest value of a cumulative counter, summed over its attributes, by the instance that sent it."""
        last: dict[tuple[str, str], tuple[int, float]] = {}
        for request in self._parsed("/v1/metrics", ExportMetricsServiceRequest):
            for outer in request.resource_metrics:
                who = _instance(outer.resource)
                for found in (m for inner in outer.scope_metrics for m in inner.metrics if m.name == metric):
                    for point in found.sum.data_points:
                        key, value = (who, str(point.attributes)), point.as_int or point.as_double
                        last[key] = max(last.get(key, (0, 0.0)), (point.time_unix_nano, value))
        totals: dict[str, float] = {}
        for (who, _), (_, value) in last.items():
            totals[who] = totals.get(who, 0) + value
        return totals

    def instances(self) -> set[str]:
        """The `service.instance.id` of everything that was sent: one a process."""
        found = set()
        for path, kind, outer in (
            ("/v1/traces", ExportTraceServiceRequest, "resource_spans"),
            ("/v1/logs", ExportLogsServiceRequest, "resource_logs"),
            ("/v1/metrics", ExportMetricsServiceRequest, "resource_metrics"),
        ):
            for request in self._parsed(path, kind):
                found |= {_instance(part.resource) for part in getattr(request, outer)}
        return found

    def _parsed(self, path: str, kind: Any) -> list[Any]:
        return [kind.FromString(body) for where, body in self.bodies if where == path]


def _instance(resource: Any) -> str:
    return next(str(a.value.string_value) for a in resource.attributes if a.key == "service.instance.id")


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.asked.set()
            if body[:2] == b"\x1f\x8b":
                body = gzip.decompress(body)
            receiver.bodies.append((self.path, body))
            BEHAVIOURS[receiver.behaviour](receiver, self)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


def _answer(status: int, body: bytes = b"", **headers: str) -> Callable[[Receiver, Any], None]:
    def answer(_: Receiver, request: Any) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return answer


def _raw(content: bytes) -> Callable[[Receiver, Any], None]:
    def answer(_: Receiver, request: Any) -> None:
        request.wfile.write(content)
        request.close_connection = True

    return answer


def _die(receiver: Receiver, request: Any) -> None:
    """Half an answer, and nobody listens any more."""
    receiver.close()
    request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhal")
    request.connection.shutdown(socket.SHUT_RDWR)
    request.close_connection = True


def _stall(receiver: Receiver, request: Any) -> None:
    """No answer before the test says so: it waits longer than any test does."""
    receiver.released.wait(600)
    _answer(200)(receiver, request)


def _slow(receiver: Receiver, request: Any) -> None:
    """Ten seconds for an answer."""
    receiver.released.wait(10)
    _answer(200)(receiver, request)


BEHAVIOURS: dict[str, Callable[[Receiver, Any], None]] = {
    "good": _answer(200),
    "dead": _answer(200),
    "dies": _die,
    "slow": _slow,
    "stalled": _stall,
    "too many": _answer(429, Retry_After="100"),
    "unavailable": _answer(503, Retry_After="100"),
    "unavailable now and then": _answer(503, Retry_After="0"),
    "refuses": _answer(400, b"no such tenant"),
    "forbids": _answer(403, b"<html>who are you?</html>"),
    "garbage": _raw(b"\x00\xffSSH-2.0-OpenSSH_9.9\r\n"),
    "garbage in an answer": _answer(200, b"\xff" * 5000),
    "hangs up": _raw(b""),
}
