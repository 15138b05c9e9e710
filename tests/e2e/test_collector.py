"""A program sends to the real Collector, and the real Prometheus scrapes a program while it runs."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from google.protobuf.json_format import ParseDict  # type: ignore[import-untyped]  # it ships no types
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_ml.export.jsonlines import documents
from tests.e2e.backends import backend, ports, started, until
from tests.e2e.launching import INSTRUMENT, PROGRAMS, RUN, environment, launch
from tests.e2e.receivers import Received, nested, orphans, steps_of_logs

if TYPE_CHECKING:
    from pathlib import Path

STEPS = 15  # of the observed program
PATIENCE_S = 60

COLLECTOR = """\
receivers:
  otlp: {protocols: {http: {endpoint: "127.0.0.1:HTTP"}, grpc: {endpoint: "127.0.0.1:GRPC"}}}
exporters:
  file/traces: {path: "FOLDER/traces.jsonl"}
  file/metrics: {path: "FOLDER/metrics.jsonl"}
  file/logs: {path: "FOLDER/logs.jsonl"}
service:
  telemetry: {metrics: {level: none}}
  pipelines:
    traces: {receivers: [otlp], exporters: [file/traces]}
    metrics: {receivers: [otlp], exporters: [file/metrics]}
    logs: {receivers: [otlp], exporters: [file/logs]}
"""

PROMETHEUS = """\
global: {scrape_interval: 500ms, scrape_timeout: 500ms}
scrape_configs:
  - {job_name: training, static_configs: [{targets: ["127.0.0.1:PORT"]}]}
"""


def parsed(folder: Path) -> Received:
    """What the Collector wrote to its files."""
    received = Received()
    messages: dict[str, type[Any]] = {
        "traces": ExportTraceServiceRequest,
        "metrics": ExportMetricsServiceRequest,
        "logs": ExportLogsServiceRequest,
    }
    for signal, message in messages.items():
        for line in (folder / f"{signal}.jsonl").read_text(encoding="utf-8").splitlines():
            for document in documents(line):
                received.take(signal, ParseDict(_base64_ids(document), message()), {})
    return received


def _base64_ids(document: Any) -> Any:
    """OTLP's JSON writes ids in hex, where protobuf's own mapping has base64."""
    import base64

    if isinstance(document, list):
        return [_base64_ids(one) for one in document]
    if not isinstance(document, dict):
        return document
    return {
        key: base64.b64encode(bytes.fromhex(value)).decode()
        if key in {"traceId", "spanId", "parentSpanId"}
        else _base64_ids(value)
        for key, value in document.items()
    }


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_collector(protocol: str, tmp_path: Path) -> None:
    """The Collector takes all three signals and passes on what was meant: steps, the program's own spans, its logs."""
    http, grpc = ports(2)
    configuration = tmp_path / "collector.yaml"
    configuration.write_text(
        COLLECTOR.replace("HTTP", http).replace("GRPC", grpc).replace("FOLDER", str(tmp_path)), encoding="utf-8"
    )
    port, launcher = (http, RUN) if protocol == "http/protobuf" else (grpc, INSTRUMENT)
    variables = {
        "OTEL_ML_DIR": str(tmp_path / "runs"),
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
    }
    with started([backend("otelcol"), f"--config={configuration}"], tmp_path, port):
        ended = launch(launcher, "observed.py", cwd=tmp_path, timeout=120, **variables)

    assert ended.code == 0
    received = parsed(tmp_path)
    assert received.sent() == ["logs", "metrics", "traces"]
    (run_id,) = {row["ml.run.id"] for rows in received.resources().values() for row in rows}
    assert run_id.startswith("observed-")
    assert orphans(received.spans) == []
    assert nested(received.spans) == sorted(map(tuple, ended.truth["spans"]), key=str)
    assert steps_of_logs(received.logs, received.spans) == sorted(map(tuple, ended.truth["logs"]), key=str)
    steps = {s.attributes["ml.step.number"]: s.attributes for s in received.spans if s.name == "ml.step"}
    assert {number: step["ml.training.loss"] for number, step in steps.items()} == {
        int(number): float(loss) for number, loss in ended.losses()
    }
    assert received.totals("ml.training.steps") == {"ml.outcome=ok": STEPS}


def test_prometheus(tmp_path: Path) -> None:
    """Prometheus scrapes a program while it runs and answers for its counters and histograms."""
    scraped, port = ports(2)
    configuration = tmp_path / "prometheus.yaml"
    configuration.write_text(PROMETHEUS.replace("PORT", scraped), encoding="utf-8")
    command = [
        backend("prometheus"), f"--config.file={configuration}", f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    variables = {
        "OTEL_ML_DIR": str(tmp_path / "runs"),
        "OTEL_METRICS_EXPORTER": "prometheus",
        "OTEL_EXPORTER_PROMETHEUS_HOST": "127.0.0.1",
        "OTEL_EXPORTER_PROMETHEUS_PORT": scraped,
    }

    def asked(query: str) -> list[Any]:
        url = f"http://127.0.0.1:{port}/api/v1/query?query={quote(query)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return list(json.load(answer)["data"]["result"])

    with started(command, tmp_path, port) as (prometheus, log):
        running = subprocess.Popen(
            [*RUN, str(PROGRAMS / "observed.py"), "wait"], cwd=tmp_path, env=environment(**variables),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        with running:
            try:
                (steps,) = until(
                    lambda: asked(f'ml_training_steps_total{{ml_outcome="ok"}} == {STEPS}'), prometheus, log
                )
                (count,) = until(lambda: asked("ml_training_step_duration_seconds_count"), prometheus, log)
                (target,) = until(lambda: asked("target_info"), prometheus, log)
            finally:
                running.communicate("\n", timeout=PATIENCE_S)
    assert running.returncode == 0
    assert [steps["value"][1], count["value"][1]] == [str(STEPS), str(STEPS)]
    assert steps["metric"]["job"] == "training"
    assert target["metric"]["ml_run_id"].startswith("observed-")
