"""Two tiers of real Collectors: an agent that shares traces out, and gateways that choose which to keep."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from otel_ml.stack.programs import shipped
from tests.e2e.backends import backend, ports, started, until
from tests.e2e.launching import BIN, RUN, launch, recorded

if TYPE_CHECKING:
    from otel_ml.store.records import SpanRow

DDP = Path(__file__).parent.parent / "faults" / "programs" / "ddp.py"
RUN_TRACES = {"ml.run", "ml.evaluation", "ml.compile", "ml.checkpoint"}  # roots that are always kept

# In place of the backends, files: what a gateway would have sent on.
FILES = """\
exporters:
  file: {path: "FOLDER/kept.jsonl", flush_interval: 100ms}
extensions: {file_storage: {directory: "FOLDER/queue", compaction: {directory: "FOLDER/queue"}}}
service:
  telemetry: {metrics: {level: none, readers: []}}
  extensions: [file_storage]
  pipelines:
    metrics: {exporters: [file]}
    metrics/host: {exporters: [file]}
    traces: {exporters: [file]}
    traces/sampled: {exporters: [file]}
    logs: {exporters: [file]}
"""
AGENT = """\
extensions: {file_storage: {directory: "FOLDER/queue", compaction: {directory: "FOLDER/queue"}}}
service: {telemetry: {metrics: {level: none, readers: []}}, extensions: [file_storage]}
"""


def laid(folder: Path, overlay: str, mine: str) -> list[str]:
    """The command of a Collector that reads the shipped files and, last, one of the test's."""
    folder.mkdir()
    (folder / "mine.yaml").write_text(mine.replace("FOLDER", str(folder)), encoding="utf-8")
    files = (shipped() / "collector.yaml", shipped() / overlay, folder / "mine.yaml")
    return [backend("otelcol"), *(f"--config={file}" for file in files)]


def spans_of(folder: Path) -> dict[str, list[str]]:
    """The names of the spans that a gateway kept, by trace id."""
    found: dict[str, list[str]] = {}
    path = folder / "kept.jsonl"
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0] if path.exists() else ""  # the last is being written
    for line in whole.splitlines():
        for resource in json.loads(line).get("resourceSpans", []):
            for scope in resource["scopeSpans"]:
                for span in scope["spans"]:
                    found.setdefault(span["traceId"], []).append(span["name"])
    return {trace_id: sorted(names) for trace_id, names in found.items()}


@pytest.mark.slow
def test_two_tiers(tmp_path: Path) -> None:
    """Each trace comes to one gateway, whole or not at all; what tells something is kept, and no run is ever broken."""
    http, *rest = ports(5)
    gateways = [tmp_path / "first", tmp_path / "second"]
    at = dict(zip(gateways, (rest[:2], rest[2:]), strict=True))
    shared = {"OTELCOL_KEEP_PERCENT": "40", "OTELCOL_DECISION_WAIT": "5s", "OTELCOL_SLOW_MS": "600000"}
    with ExitStack() as running:
        for folder, (grpc, other) in at.items():
            command = laid(folder, "gateway.yaml", FILES)
            variables = {**shared, "OTELCOL_GRPC_PORT": grpc, "OTELCOL_HTTP_PORT": other}
            running.enter_context(started(command, folder, grpc, **variables))
        agent = tmp_path / "agent"
        first, second = (f"127.0.0.1:{at[folder][0]}" for folder in gateways)
        variables = {"OTELCOL_GATEWAY_1": first, "OTELCOL_GATEWAY_2": second, "OTELCOL_GATEWAY": first}
        process, log = running.enter_context(
            started(
                laid(agent, "gateway-agent.yaml", AGENT), agent, http,
                OTELCOL_HTTP_PORT=http, OTELCOL_GRPC_PORT=ports(1)[0], **variables,
            )
        )  # fmt: skip

        def spans_sent(program: str | Path, launcher: tuple[str, ...]) -> list[SpanRow]:
            runs = tmp_path / f"runs-{Path(program).stem}"
            environ = {
                "OTEL_ML_DIR": str(runs), "OTEL_ML_RUN_ID": f"tiers-{Path(program).stem}",
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{http}",
                "OTEL_BSP_SCHEDULE_DELAY": "200",  # so that both ranks' part of a trace comes before it is decided on
            }  # fmt: skip
            ended = launch(launcher, program, cwd=tmp_path, timeout=120, **environ)
            assert ended.code == 0, ended.stderr
            return list(recorded(runs).spans())

        torchrun = (*RUN, str(BIN / "torchrun"), "--standalone", "--nproc-per-node=2")
        sent: dict[str, list[str]] = {}
        with ThreadPoolExecutor() as pool:
            both = list(pool.map(spans_sent, ("checkpoint.py", DDP), (RUN, torchrun)))
        for span in itertools.chain(*both):
            sent.setdefault(span.trace_id, []).append(span.name)
        sent = {trace_id: sorted(names) for trace_id, names in sent.items()}
        unusual = {trace_id for trace_id, names in sent.items() if RUN_TRACES & set(names)}

        def decided() -> bool:
            found = [spans_of(folder) for folder in gateways]
            return all(found) and unusual <= {*found[0], *found[1]}

        until(decided, process, log)

    kept = [spans_of(folder) for folder in gateways]
    assert kept[0].keys() & kept[1].keys() == set()
    assert all(kept), "a gateway that was given nothing"
    together: dict[str, Any] = {**kept[0], **kept[1]}
    assert together == {trace_id: sent[trace_id] for trace_id in together}
    usual = sent.keys() - unusual
    assert unusual <= together.keys()
    assert 0 < len(usual & together.keys()) < len(usual)
