"""A small program on the SDK's real providers, whose telemetry goes to a `StoreWriter`."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from otel_ml import names
from otel_ml.store.writer import StoreWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from opentelemetry.sdk.metrics.view import View

RUN: dict[str, Any] = {
    "service.name": "train",
    "ml.run.id": "run-1",
    "ml.run.name": "digits",
    "ml.rank": 0,
    "ml.world_size": 2,
}
CAPS: dict[str, Any] = {"run_bytes": 1 << 30, "total_bytes": 1 << 32, "total_age_s": 1e9}


class Program:
    """One process's providers and writer; `end()` says goodbye as the pipeline does."""

    def __init__(
        self,
        directory: Path,
        run_id: str = "run-1",
        *,
        resource: dict[str, Any] | None = None,
        gate: bool = True,
        views: Sequence[View] = (),
        **caps: Any,
    ) -> None:
        made = Resource({**RUN, "ml.run.id": run_id, **(resource or {})}, "https://example.test/schema")
        self.writer = StoreWriter(directory, run_id, **{**CAPS, **caps})
        self.spans = TracerProvider(resource=made)
        self.spans.add_span_processor(BatchSpanProcessor(self.writer.span_exporter))
        self.logs = LoggerProvider(resource=made)
        self.logs.add_log_record_processor(BatchLogRecordProcessor(self.writer.log_exporter))
        reader = PeriodicExportingMetricReader(self.writer.metric_exporter, export_interval_millis=3_600_000)
        self.metrics = MeterProvider([reader], resource=made, views=views)
        self.tracer = self.spans.get_tracer("otel_ml", "1.0", "https://example.test/scope")
        self.logger = self.logs.get_logger("otel_ml", "1.0")
        self.meter = self.metrics.get_meter("otel_ml", "1.0")
        self._stopped = False
        if gate:
            self.writer.open_gate()

    def event(self, name: names.Event, attributes: dict[str, Any] | None = None, *, at: int = 1) -> None:
        """Emit an event at `at` nanoseconds."""
        self.logger.emit(timestamp=at, event_name=name, body=f"{name} happened", attributes=attributes or {})

    def step(self, number: int, **values: Any) -> None:
        """Emit the step record of `number`; `__` in a key is a dot."""
        attributes = {key.replace("__", "."): value for key, value in values.items()}
        self.event(names.EVENT_STEP, {names.STEP_NUMBER: number, **attributes}, at=number + 1)

    def span(self, name: str, start: int = 10, end: int = 20, **options: Any) -> None:
        """Make a span with explicit times."""
        self.tracer.start_span(name, start_time=start, **options).end(end)

    def flush(self) -> None:
        """Bring everything to the writer."""
        self.spans.force_flush()
        self.logs.force_flush()
        self.metrics.force_flush()

    def drop(self) -> None:
        """Stop the providers' threads without a goodbye."""
        if self._stopped:
            return
        self._stopped = True
        self.flush()
        self.spans.shutdown()
        self.logs.shutdown()
        self.metrics.shutdown()

    def end(self, outcome: str = "finished", *, totals: dict[str, Any] | None = None, exit_code: int = 0) -> None:
        """Stop, say goodbye and leave one file."""
        self.drop()
        self.writer.finish(totals=totals, ended_unix_ns=2_000_000_000, outcome=outcome, exit_code=exit_code)
        self.writer.close()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """The folder that holds all runs; not there yet."""
    return tmp_path / "runs"


@pytest.fixture
def program(runs: Path) -> Iterator[Callable[..., Program]]:
    """Start programs that write to `runs`; what is left of them is stopped after the test."""
    started: list[Program] = []

    def start(run_id: str = "run-1", **options: Any) -> Program:
        started.append(Program(options.pop("directory", runs), run_id, **options))
        return started[-1]

    yield start
    for one in started:
        one.drop()
        one.writer.close()


@pytest.fixture
def script(runs: Path) -> Callable[[str], subprocess.Popen[str]]:
    """Start Python source in a process of its own that has `Program` and `runs`."""
    here, root = Path(__file__).parent, Path(names.__file__).parents[1]
    head = f"import os, sys\nfrom pathlib import Path\nfrom conftest import Program\nruns = Path({str(runs)!r})\n"

    def start(source: str) -> subprocess.Popen[str]:
        path = os.pathsep.join([str(here), str(root), os.environ.get("PYTHONPATH", "")])
        return subprocess.Popen(
            [sys.executable, "-c", head + source],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@contextmanager
def plain_user() -> Iterator[None]:
    """Run a block without root's right to write everywhere, where the tests run as root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def unprivileged() -> Callable[[], Any]:
    """`plain_user`, for tests."""
    return plain_user
