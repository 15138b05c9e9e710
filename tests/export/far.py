"""An OTLP/HTTP endpoint that answers as a test says, and keeps what it took."""

from __future__ import annotations

import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, final

from otel_ml.export.requests import message_of
from otel_ml.store.ledger import Ledger
from otel_ml.store.outbox import SIGNALS
from tests.store.conftest import Program

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Far", "recorded"]

Answer = tuple[int, dict[str, str], bytes]
_PATHS = {"/v1/traces": "spans", "/v1/logs": "logs", "/v1/metrics": "points"}
TAKEN: Answer = (200, {}, b"")


@final
class Far:
    """Listens until the end of the context; `answer` is given each request's signal and message."""

    def __init__(self, answer: Callable[[str, Any], Answer] = lambda _signal, _request: TAKEN) -> None:
        self.answer = answer
        self.taken: list[tuple[str, Any]] = []
        self.asked: list[tuple[str, float]] = []  # the signal and the moment of each request
        self.headers: list[dict[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(0.05))

    @property
    def endpoint(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Far:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def spans(self) -> list[str]:
        """The names of the spans that it took, in their order."""
        requests = [request for signal, request in self.taken if signal == "spans"]
        return [s.name for r in requests for o in r.resource_spans for i in o.scope_spans for s in i.spans]

    def logs(self) -> list[str]:
        """The events that it took, in their order."""
        requests = [request for signal, request in self.taken if signal == "logs"]
        return [s.event_name for r in requests for o in r.resource_logs for i in o.scope_logs for s in i.log_records]

    def points(self) -> Counter[str]:
        """How many points of each metric it took."""
        requests = [request for signal, request in self.taken if signal == "points"]
        metrics = [m for r in requests for o in r.resource_metrics for i in o.scope_metrics for m in i.metrics]
        return Counter(m.name for m in metrics for _ in getattr(m, m.WhichOneof("data")).data_points)


def _handler(far: Far) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            signal = _PATHS[self.path]
            body = self.rfile.read(int(self.headers["Content-Length"]))
            request = message_of(signal).FromString(body)
            far.asked.append((signal, time.monotonic()))
            far.headers.append({key.lower(): value for key, value in self.headers.items()})
            status, headers, content = far.answer(signal, request)
            if status == 200:
                far.taken.append((signal, request))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


def recorded(runs: Path, run_id: str = "run-1", *, spans: int = 3, owed: bool = True) -> Path:
    """The file of a process that ended while its endpoint was away: spans s0, s1…, two events, one counter."""
    program = Program(runs, run_id)
    if owed:
        program.writer.ledger = Ledger(SIGNALS)
    for number in range(spans):
        program.span(f"s{number}", start=10 + number, end=20 + number)
    program.step(0)
    program.step(1)
    program.meter.create_counter("steps").add(2)
    program.end()
    assert program.writer.path is not None
    return program.writer.path
