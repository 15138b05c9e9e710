"""The shipped Alertmanager: real alerts go in, and what a webhook and Slack are told comes out."""

from __future__ import annotations

import json
import threading
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from tests.collector_config.panels import SHIPPED
from tests.e2e.backends import backend, ports, started, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIGURATION = SHIPPED / "alertmanager" / "alertmanager.yaml"
SECRETS = "/etc/alertmanager/secrets"


@contextmanager
def listening() -> Iterator[tuple[str, dict[str, list[Any]]]]:
    """A server, and what was posted to it, by path."""
    posted: dict[str, list[Any]] = {"/slack": [], "/webhook": []}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted[self.path].append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", posted
        finally:
            server.shutdown()


def alert(name: str, severity: str, run: str, rank: str) -> dict[str, Any]:
    """One of Prometheus' alerts on a rank of a run."""
    labels = {"alertname": name, "severity": severity, "ml_run_id": run, "ml_run_name": run, "ml_rank": rank}
    words = {"summary": f"{run} rank {rank}: {name}", "description": "It is so.", "runbook": "RUNBOOK.md"}
    return {"labels": labels, "annotations": words}


def fire(url: str, *alerts: dict[str, Any]) -> None:
    """Send alerts as Prometheus does."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/api/v2/alerts", json.dumps(alerts).encode(), headers)
    urllib.request.urlopen(request, timeout=10).close()


@pytest.mark.slow
def test_who_is_told_what(tmp_path: Path) -> None:
    """One message a run, whatever the ranks; what a failure explains is left out; addresses come from files."""
    (port,) = ports(1)
    text = CONFIGURATION.read_text(encoding="utf-8")
    assert text.count(f"{SECRETS}/slack-url") == text.count(f"{SECRETS}/webhook-url") == 2  # said, and used
    sooner = text.replace(SECRETS, str(tmp_path)).replace("group_wait: 15s", "group_wait: 1s")
    (tmp_path / "alertmanager.yaml").write_text(sooner, encoding="utf-8")
    command = [
        backend("alertmanager"), f"--config.file={tmp_path / 'alertmanager.yaml'}", "--cluster.listen-address=",
        f"--storage.path={tmp_path / 'data'}", f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with listening() as (address, posted), started(command, tmp_path, port) as (alertmanager, log):
        url = f"http://127.0.0.1:{port}"
        for name in ("slack", "webhook"):
            (tmp_path / f"{name}-url").write_text(f"{address}/{name}\n", encoding="utf-8")
        fire(
            url,
            alert("RunFailed", "critical", "gpt", "0"), alert("RunFailed", "critical", "gpt", "1"),
            alert("InputBound", "warning", "gpt", "0"), alert("LossSpike", "warning", "other", "0"),
        )  # fmt: skip
        until(lambda: len(posted["/webhook"]) >= 2 and len(posted["/slack"]) >= 2, alertmanager, log)
    told = {
        message["groupLabels"]["ml_run_id"]: sorted(
            (a["labels"]["alertname"], a["labels"]["ml_rank"]) for a in message["alerts"]
        )
        for message in posted["/webhook"]
    }
    assert told == {"gpt": [("RunFailed", "0"), ("RunFailed", "1")], "other": [("LossSpike", "0")]}
    said = {m["attachments"][0]["title"].strip(): m["attachments"][0]["color"] for m in posted["/slack"]}
    assert said == {"gpt: RunFailed RunFailed": "danger", "other: LossSpike": "warning"}
    assert any("*gpt rank 1: RunFailed*" in m["attachments"][0]["text"] for m in posted["/slack"])


@pytest.mark.slow
def test_without_addresses(tmp_path: Path) -> None:
    """As it ships, with no address anywhere, it starts, keeps the alerts for whoever asks, and says what is missing."""
    (port,) = ports(1)
    text = CONFIGURATION.read_text(encoding="utf-8").replace(SECRETS, str(tmp_path / "none"))
    (tmp_path / "alertmanager.yaml").write_text(text.replace("group_wait: 15s", "group_wait: 1s"), encoding="utf-8")
    command = [
        backend("alertmanager"), f"--config.file={tmp_path / 'alertmanager.yaml'}", "--cluster.listen-address=",
        f"--storage.path={tmp_path / 'data'}", f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with started(command, tmp_path, port) as (alertmanager, log):
        url = f"http://127.0.0.1:{port}"
        fire(url, alert("RunFailed", "critical", "gpt", "0"))
        until(lambda: log.read_text(encoding="utf-8").count("-url: no such file") >= 2, alertmanager, log)
        with urllib.request.urlopen(f"{url}/api/v2/alerts", timeout=10) as answer:
            assert [a["labels"]["alertname"] for a in json.load(answer)] == ["RunFailed"]
