"""The shipped rules and alerts: they fire when they should, name what is emitted, and the runbook says what to do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.collector_config.panels import RULES, SHIPPED, alerts, dashboards, known, metrics_of, rules
from tests.e2e.backends import backend, ports, started, until

if TYPE_CHECKING:
    from pathlib import Path

TESTS = sorted((RULES / "tests").glob("*.yaml"))
RUNBOOK = SHIPPED / "RUNBOOK.md"
LOKI_LABELS = {"service_name", "ml_run_id", "ml_run_name", "ml_rank"}


def run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    """What a checker says."""
    environ = {**os.environ, **env}
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=240)


@pytest.fixture(scope="module")
def simulated() -> dict[Path, subprocess.CompletedProcess[str]]:
    """What promtool says of each file of tests: hours go by in each, so two at a time, the longest first."""
    promtool = backend("promtool")
    longest_first = sorted(TESTS, key=lambda path: path.stat().st_size, reverse=True)
    with ThreadPoolExecutor(2) as pool:
        told = pool.map(lambda path: run(promtool, "test", "rules", str(path), GOGC="400"), longest_first)
        return dict(zip(longest_first, told, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alerts_fire_and_do_not(path: Path, simulated: dict[Path, subprocess.CompletedProcess[str]]) -> None:
    """Each alert fires on its trouble with exactly these labels and words, resolves, and leaves alone what is well."""
    assert simulated[path].returncode == 0, simulated[path].stdout + simulated[path].stderr


def test_rules_are_valid() -> None:
    """Prometheus takes the rules, with its linter's every complaint counted as an error."""
    files = map(str, sorted(RULES.glob("*.yaml")))
    checked = run(backend("promtool"), "check", "rules", "--lint=all", "--lint-fatal", *files)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_alertmanagers_configuration_is_valid() -> None:
    """Alertmanager takes its configuration, with both receivers in it."""
    checked = run(backend("amtool"), "check-config", str(SHIPPED / "alertmanager" / "alertmanager.yaml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "3 receivers" in checked.stdout


def expectations() -> list[tuple[str, str, list[Any]]]:
    """Of every promtool test: file, alert, what is expected."""
    return [
        (path.stem, expected["alertname"], expected["exp_alerts"])
        for path in TESTS
        for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]
        for expected in test["alert_rule_test"]
    ]


def test_every_alert_is_tested() -> None:
    """No alert of Prometheus' without a test in which it fires, one in which it does not, and one of a healthy run."""
    of_prometheus = {rule["alert"] for rule in rules() if "alert" in rule}
    expected = expectations()
    assert {alert for file, alert, fired in expected if fired and file != "healthy"} == of_prometheus
    assert {alert for file, alert, fired in expected if not fired and file != "healthy"} == of_prometheus
    assert {alert for file, alert, _ in expected if file == "healthy"} == of_prometheus
    assert [alert for file, alert, fired in expected if fired and file == "healthy"] == []


def test_every_alert_has_its_section() -> None:
    """The runbook has a section an alert and none besides, the alert names it, and has severity and words."""
    sections = re.findall(r"^### (\w+)$", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(sections) == sorted(alerts())
    for name, alert in alerts().items():
        assert alert["labels"] in ({"severity": "critical"}, {"severity": "warning"}), name
        assert alert["annotations"]["runbook"] == f"collector-config/RUNBOOK.md#{name.lower()}"
        assert set(alert["annotations"]) == {"summary", "description", "dashboard", "runbook"}, name


def test_the_runbooks_links_lead_somewhere() -> None:
    """Every link inside the runbook names a section or a file that is there."""
    text = RUNBOOK.read_text(encoding="utf-8")
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert [at for at in links if at.startswith("#") and at[1:] not in anchors] == []
    assert [at for at in links if not at.startswith("#") and not (SHIPPED / at).exists()] == []


def test_the_runbooks_panels_are_there() -> None:
    """A panel that the runbook sends its reader to is on a dashboard."""
    named = set(re.findall(r"(?<!\*)\*([A-Z][^*]*)\*(?!\*)", RUNBOOK.read_text(encoding="utf-8")))
    titles = {panel["title"] for dashboard in dashboards().values() for panel in dashboard["panels"]}
    assert {"Idle", "Progress by rank"} <= named
    assert named - titles == set()


def test_rules_ask_for_what_is_emitted() -> None:
    """A rule or alert names metrics of ours, of the stack, or of a rule's before it, and no others."""
    asked = {name for rule in rules() for name in metrics_of(rule["expr"]) if not name.startswith("/")}
    assert asked - known() == set()
    patterns = {name[1:-1] for rule in rules() for name in metrics_of(rule["expr"]) if name.startswith("/")}
    unknown = [p for p in patterns if not any(re.fullmatch(p, name) for name in known())]
    assert unknown == []


def test_recorded_series_are_asked_for() -> None:
    """No rule records what no alert and no panel wants."""
    wanted = {name for rule in rules() for name in metrics_of(rule["expr"])}
    text = "".join(path.read_text(encoding="utf-8") for path in (SHIPPED / "grafana" / "dashboards").glob("*.json"))
    recorded = [rule["record"] for rule in rules() if "record" in rule]
    assert [name for name in recorded if name not in wanted and name not in text] == []


LOG_LINES = {
    "LogTraceback": 'could not read the shard\nTraceback (most recent call last):\n  File "data.py", line 3',
    "LogCudaError": "RuntimeError: CUDA error: an illegal memory access was encountered",
    "LogNcclTimeout": "[Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=41, OpType=ALLREDUCE)",
    "LogOutOfMemory": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
}
HEALTHY_LINES = ("step 4: loss 1.93, 18.2 ms", "NCCL version 2.27.3", "CUDA is available", "memory 4.1 of 80 GiB")
LOKI = """\
auth_enabled: false
server: {http_listen_address: 127.0.0.1, http_listen_port: HTTP, grpc_listen_address: 127.0.0.1, grpc_listen_port: GRPC}
common:
  instance_addr: 127.0.0.1
  path_prefix: FOLDER
  replication_factor: 1
  ring: {kvstore: {store: inmemory}}
  storage: {filesystem: {chunks_directory: FOLDER/chunks, rules_directory: FOLDER/unused}}
schema_config:
  configs: [{from: "2024-04-01", store: tsdb, object_store: filesystem, schema: v13, index: {prefix: i_, period: 24h}}]
ingester: {lifecycler: {min_ready_duration: 0s, final_sleep: 0s}}
ruler:
  enable_api: true
  rule_path: FOLDER/rules
  evaluation_interval: 1s
  storage: {type: local, local: {directory: "RULES"}}
  ring: {kvstore: {store: inmemory}}
frontend: {scheduler_address: "127.0.0.1:GRPC"}
frontend_worker: {scheduler_address: "127.0.0.1:GRPC"}
query_scheduler: {use_scheduler_ring: false}
analytics: {reporting_enabled: false}
"""


@pytest.mark.slow
def test_log_patterns(tmp_path: Path) -> None:
    """Loki takes the rules; each fires on the line it is for, for that run and rank, and on no ordinary line."""
    http, grpc = ports(2)
    settings = {"HTTP": http, "GRPC": grpc, "FOLDER": str(tmp_path), "RULES": str(SHIPPED / "loki" / "rules")}
    text = LOKI
    for word, value in settings.items():
        text = text.replace(word, value)
    (tmp_path / "loki.yaml").write_text(text, encoding="utf-8")
    with started([backend("loki"), f"-config.file={tmp_path / 'loki.yaml'}"], tmp_path, http) as (loki, log):
        url = f"http://127.0.0.1:{http}"
        until(lambda: get(f"{url}/ready"), loki, log)
        for alert, line in LOG_LINES.items():
            push(url, alert, line)
        for line in HEALTHY_LINES:
            push(url, "well", line)
        expected = {(alert, alert) for alert in LOG_LINES}
        until(lambda: firing(url) >= expected, loki, log)
        assert firing(url) == expected


def get(url: str) -> bytes:
    """What is there."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return bytes(answer.read())


def push(url: str, run_id: str, line: str) -> None:
    """A line of rank 3 of a run, as the Collector's have come to be stored."""
    stream = {"service_name": "train", "ml_run_id": run_id}
    entry = [str(time.time_ns()), line, {"ml_run_name": "gpt", "ml_rank": "3"}]
    body = json.dumps({"streams": [{"stream": stream, "values": [entry]}]}).encode()
    request = urllib.request.Request(f"{url}/loki/api/v1/push", body, {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=10).close()


def firing(url: str) -> set[tuple[str, str]]:
    """Alerts of the ruler's, each with the run that it is about."""
    found = json.loads(get(f"{url}/prometheus/api/v1/alerts"))["data"]["alerts"]
    assert all(set(one["labels"]) == {"alertname", "severity"} | LOKI_LABELS for one in found), found
    return {(one["labels"]["alertname"], one["labels"]["ml_run_id"]) for one in found if one["state"] == "firing"}
