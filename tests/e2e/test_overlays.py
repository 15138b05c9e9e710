"""What is laid over the agent's configuration does in a real Collector what its first lines say."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from otel_ml.stack.programs import shipped
from tests.e2e.backends import backend, ports, started, until
from tests.e2e.launching import RUN, launch

if TYPE_CHECKING:
    from pathlib import Path

# In place of Loki, a file; and no traces.
MINE = """\
exporters: {file: {path: "FOLDER/logs.jsonl", flush_interval: 100ms}}
extensions: {file_storage: {directory: "FOLDER/queue", compaction: {directory: "FOLDER/queue"}}}
service:
  telemetry: {metrics: {level: none, readers: []}}
  extensions: [file_storage]
  pipelines:
    traces: {exporters: [span_metrics]}
    logs: {exporters: [file]}
    logs/files: {exporters: [file]}
"""
TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def series(port: str, name: str) -> list[tuple[dict[str, str], str]]:
    """A metric's series on a scrape endpoint: labels and value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.findall(rf"^{name}{{(.*)}} (\S+)", text, re.MULTILINE)
    return [(dict(re.findall(r'(\w+)="([^"]*)"', labels)), value) for labels, value in found]


def tailed(path: Path) -> list[dict[str, Any]]:
    """The log records that came from files."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    records = [r for line in lines for rl in line["resourceLogs"] for sl in rl["scopeLogs"] for r in sl["logRecords"]]
    return [r for r in records if any(a["key"] == "log.file.name" for a in r.get("attributes", []))]


@pytest.mark.slow
def test_scrape_and_files(tmp_path: Path) -> None:
    """A scrape endpoint has the run and the rank as labels; lines of files come as records, tracebacks whole."""
    http, grpc, scraped = ports(3)
    (tmp_path / "mine.yaml").write_text(MINE.replace("FOLDER", str(tmp_path)), encoding="utf-8")
    laid = (shipped() / f"{name}.yaml" for name in ("collector", "prometheus-scrape", "file-log"))
    log = tmp_path / "train.log"
    log.touch()
    variables = {
        "OTELCOL_HTTP_PORT": http, "OTELCOL_GRPC_PORT": grpc, "OTELCOL_SCRAPE_PORT": scraped,
        "OTELCOL_LOG_FILES": str(tmp_path / "*.log"),
    }  # fmt: skip
    command = [backend("otelcol"), *(f"--config={file}" for file in (*laid, tmp_path / "mine.yaml"))]
    with started(command, tmp_path, http, **variables) as (process, said):
        ended = launch(
            RUN, "observed.py", cwd=tmp_path, timeout=120, OTEL_ML_DIR=str(tmp_path / "runs"), OTEL_ML_RUN_ID="scraped",
            RANK="0", WORLD_SIZE="1", OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{http}",
        )  # fmt: skip
        assert ended.code == 0, ended.stderr
        (steps,) = until(lambda: series(scraped, "ml_training_steps_total"), process, said)
        with log.open("a", encoding="utf-8") as file:
            file.write("Traceback (most recent call last):\n  File 'train.py', line 1\n    no\nValueError: no\n")
            file.write(json.dumps({"message": "told", "trace_id": TRACE_ID, "span_id": SPAN_ID}) + "\nlast\n")
        until(lambda: len(tailed(tmp_path / "logs.jsonl")) >= 3, process, said)
        time.sleep(0.5)
    labels, value = steps
    assert value == "15"
    assert {k: v for k, v in labels.items() if k.startswith(("ml_", "service_name"))} == {
        "service_name": "observed", "ml_run_id": "scraped", "ml_run_name": "observed", "ml_run_attempt": "0",
        "ml_rank": "0", "ml_outcome": "ok",
    }  # fmt: skip
    records = tailed(tmp_path / "logs.jsonl")
    assert [r["body"]["stringValue"].splitlines()[0] for r in records][:2] == [
        "Traceback (most recent call last):",
        "ValueError: no",
    ]
    assert records[0]["body"]["stringValue"].splitlines()[1:] == ["  File 'train.py', line 1", "    no"]
    assert [(r["traceId"], r["spanId"]) for r in records if r.get("traceId")] == [(TRACE_ID, SPAN_ID)]
