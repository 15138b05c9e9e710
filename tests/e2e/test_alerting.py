"""A run goes wrong, and a person hears of it: real Prometheus, real Alertmanager, a stub in Slack's place."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.launching import RUN, launch
from tests.e2e.stack import running_stack, soon, sooner

if TYPE_CHECKING:
    from collections.abc import Iterator

TROUBLES = Path(__file__).resolve().parent.parent.parent / "examples" / "troubles.py"

# What ships lets an alert stand for ten minutes and a message wait for fifteen seconds.
HASTE = {
    "prometheus/rules/recording.yaml": {"[10m]": "[8s]", "offset 10m": "offset 8s"},
    "alertmanager/alertmanager.yaml": {"group_wait: 15s": "group_wait: 1s", "group_interval: 2m": "group_interval: 2s"},
}


@pytest.fixture
def slack() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An address that takes what Slack would be sent, and the messages that came."""
    messages: list[dict[str, Any]] = []

    class Stub(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/services/hook", messages
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def of(messages: list[dict[str, Any]], word: str) -> list[dict[str, Any]]:
    """The attachments whose title has the word."""
    return [a for message in messages for a in message["attachments"] if word in a["title"]]


@pytest.mark.slow
def test_slack(slack: tuple[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    """A loss that becomes NaN is told to Slack under the run's name, with what to do, and so is that it is over."""
    address, messages = slack
    config = sooner(tmp_path / "config")
    for name, changes in HASTE.items():
        path = config / name
        text = path.read_text(encoding="utf-8")
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")
    with running_stack(tmp_path / "stack", config) as stack:
        (stack.folder / "secrets" / "slack-url").write_text(address, encoding="utf-8")
        variables = {
            "OTEL_ML_DIR": str(tmp_path),
            "OTEL_ML_RUN_NAME": "tiny",
            "OTEL_EXPORTER_OTLP_ENDPOINT": stack.endpoint,
        }
        ended = launch(RUN, TROUBLES, "nan", "--steps=60", cwd=tmp_path, timeout=120, **variables)
        assert ended.code == 0, ended.stderr
        soon(lambda: of(messages, "LossNonFinite"))
        told = of(messages, "LossNonFinite")[0]
        assert told["title"].split() == ["tiny:", "LossNonFinite"]
        assert told["color"] == "danger"
        assert "*tiny: loss is NaN or infinite*" in told["text"]
        assert "collector-config/RUNBOOK.md#lossnonfinite" in told["text"]
        soon(lambda: of(messages, "over: "))
        over = of(messages, "over: ")[0]
        assert (over["title"].split(), over["color"]) == (["over:", "tiny:", "LossNonFinite"], "good")
