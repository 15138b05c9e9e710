"""An OTLP receiver in a process of its own: takes everything at once, counts afterwards.

It keeps request bodies as they are and answers 200, so that it takes next to no CPU from
what is measured; `GET /take` parses them, tells what they held and forgets them.
Run by the harness as `python -m tests.bench.sink`, which prints the address.
"""

from __future__ import annotations

import gzip
import json
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_bodies: list[tuple[str, bytes]] = []
_lock = threading.Lock()


def _counted(bodies: list[tuple[str, bytes]]) -> dict[str, int]:
    """Count what the requests held: spans, points, logs, and the records that their sender says it dropped."""
    counts = {"bytes": sum(len(body) for _, body in bodies)}
    counts |= dict.fromkeys(("spans", "points", "logs", "dropped"), 0)
    for path, body in bodies:
        plain = gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
        if path == "/v1/traces":
            traces = ExportTraceServiceRequest.FromString(plain)
            counts["spans"] += sum(len(s.spans) for r in traces.resource_spans for s in r.scope_spans)
        elif path == "/v1/logs":
            logs = ExportLogsServiceRequest.FromString(plain)
            counts["logs"] += sum(len(s.log_records) for r in logs.resource_logs for s in r.scope_logs)
        elif path == "/v1/metrics":
            metrics = ExportMetricsServiceRequest.FromString(plain)
            for metric in (m for r in metrics.resource_metrics for s in r.scope_metrics for m in s.metrics):
                points = getattr(metric, metric.WhichOneof("data")).data_points
                counts["points"] += len(points)
                if metric.name == "otel_ml.record.dropped":  # cumulative: the last one is the total
                    counts["dropped"] = sum(point.as_int for point in points)
    return counts


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with _lock:
            _bodies.append((self.path, body))
        self._answer(b"", "application/x-protobuf")

    def do_GET(self) -> None:
        with _lock:
            taken = list(_bodies)
            _bodies.clear()
        self._answer(json.dumps(_counted(taken)).encode(), "application/json")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main() -> None:
    """Serve on a free port of this machine until killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal all get it; the harness still asks us
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
