"""A real stack for the tests: started by `otel-ml stack up`, asked through its programs' own APIs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest

from otel_ml.stack.programs import shipped
from tests.e2e.backends import PATIENCE_S, backend
from tests.e2e.launching import BIN, environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

BINARIES = ("otelcol", "prometheus", "alertmanager", "jaeger", "loki")

# What ships is for hours and days; the tests wait for seconds.
_SOONER = {
    "prometheus/prometheus.yaml": {
        "scrape_interval: 15s": "scrape_interval: 1s",
        "scrape_timeout: 10s": "scrape_timeout: 1s",
        "evaluation_interval: 15s": "evaluation_interval: 1s",
    },
    "collector.yaml": {
        "metrics_flush_interval: 15s": "metrics_flush_interval: 1s",
        "collection_interval: 15s": "collection_interval: 2s",
    },
    "loki/loki.yaml": {"evaluation_interval: 15s": "evaluation_interval: 2s"},
}


def sooner(folder: Path) -> Path:
    """A copy of the shipped configurations that looks and judges every second or two; nothing else differs."""
    shutil.copytree(shipped(), folder)
    for name, changes in _SOONER.items():
        path = folder / name
        text = path.read_text(encoding="utf-8")
        for old, new in changes.items():
            assert old in text, f"{name} has no {old!r} any more"
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")
    return folder


def otel_ml(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The command, with its output."""
    known = {name: value for name, value in os.environ.items() if name == "OTEL_ML_BACKENDS"}
    return subprocess.run(
        [str(BIN / "otel-ml"), *words],
        env=environment(**{**known, **env}), capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip


@dataclass(frozen=True)
class Stack:
    """A stack that runs, by its folder and its programs' addresses."""

    folder: Path
    urls: Mapping[str, str]

    @property
    def endpoint(self) -> str:
        """What goes into OTEL_EXPORTER_OTLP_ENDPOINT."""
        return self.urls["collector"]

    def ask(self, name: str, path: str, /, **query: Any) -> Any:
        """The JSON that a program answers; a refusal fails the test with its words."""
        url = f"{self.urls[name]}{path}?{urlencode(query, doseq=True)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            pytest.fail(f"{url}: {error.code} {error.read().decode(errors='replace')}")

    def prometheus(self, query: str, at: float | None = None) -> list[dict[str, Any]]:
        """An instant query's result: [{metric, value}]."""
        when = {} if at is None else {"time": at}
        return list(self.ask("prometheus", "/api/v1/query", query=query, **when)["data"]["result"])

    def value(self, query: str) -> float | None:
        """The single number that a query answers; None where it answers nothing."""
        result = self.prometheus(query)
        assert len(result) <= 1, result
        return float(result[0]["value"][1]) if result else None

    def exemplars(self, query: str) -> list[dict[str, Any]]:
        """The exemplars of the last hour: [{labels, value, timestamp}]."""
        now = time.time()
        found = self.ask("prometheus", "/api/v1/query_exemplars", query=query, start=now - 3600, end=now + 60)["data"]
        return [one for series in found for one in series["exemplars"]]

    def loki(self, query: str, limit: int = 5000) -> list[tuple[dict[str, str], str]]:
        """The last hour's lines, oldest first: (labels and structured metadata, text)."""
        found = self.ask("loki", "/loki/api/v1/query_range", query=query, since="1h", limit=limit, direction="forward")
        rows = [(int(at), s["stream"], line) for s in found["data"]["result"] for at, line in s["values"]]
        return [(labels, line) for _, labels, line in sorted(rows, key=lambda row: row[0])]

    def trace(self, trace_id: str) -> list[dict[str, Any]]:
        """A trace's spans: [{name, id, parents, attributes, resource}]; none where Jaeger does not know the trace."""
        try:
            with urllib.request.urlopen(f"{self.urls['jaeger']}/api/traces/{trace_id}", timeout=30) as answer:
                traces = json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return []
        return [span for trace in traces for span in _spans(trace)]

    def traces(self, service: str, operation: str, limit: int = 1500) -> list[list[dict[str, Any]]]:
        """The traces with that span of that service."""
        found = self.ask("jaeger", "/api/traces", service=service, operation=operation, limit=limit, lookback="1h")
        return [_spans(trace) for trace in found["data"]]

    def pid(self, name: str) -> int | None:
        """The program's process; None while it is away."""
        state = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
        pid: int | None = state["programs"][name]["pid"]
        return pid

    @contextmanager
    def without(self, name: str) -> Iterator[None]:
        """As long as this lasts, the program is killed whenever it is there; afterwards it comes back by itself."""
        over = threading.Event()

        def keep_dead() -> None:
            while not over.wait(0.02):
                pid = self.pid(name)
                if pid is not None:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue

        killer = threading.Thread(target=keep_dead)
        killer.start()
        try:
            yield
        finally:
            over.set()
            killer.join()

    def ready(self) -> bool:
        """Whether all of it is ready."""
        return otel_ml("stack", "status", "--dir", str(self.folder)).returncode == 0


def _spans(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """A trace's spans, their attributes and their resources' as dictionaries."""

    def plain(tags: list[dict[str, Any]]) -> dict[str, Any]:
        return {tag["key"]: tag["value"] for tag in tags}

    resources = {key: plain(process["tags"]) for key, process in trace["processes"].items()}
    return [
        {
            "name": span["operationName"],
            "id": span["spanID"],
            "parents": [ref["spanID"] for ref in span["references"] if ref["traceID"] == span["traceID"]],
            "attributes": plain(span["tags"]),
            "resource": resources[span["processID"]],
        }
        for span in trace["spans"]
    ]


def soon(answer: Callable[[], Any], within_s: float = PATIENCE_S) -> Any:
    """What `answer()` says as soon as that is something; what it says at the end of our patience otherwise."""
    deadline = time.monotonic() + within_s
    while True:
        said = answer()
        if said or time.monotonic() > deadline:
            return said
        time.sleep(0.3)


@contextmanager
def running_stack(folder: Path, config: Path) -> Iterator[Stack]:
    """A stack on free ports, with this configuration; ended on the way out, and nothing of it left."""
    for name in BINARIES:
        backend(name)
    where = ("--dir", str(folder))
    try:
        up = otel_ml("stack", "up", "--free-ports", "--config", str(config), "--json", *where)
        assert up.returncode == 0, up.stderr
        yield Stack(folder, {name: one["url"] for name, one in json.loads(up.stdout).items()})
    finally:
        otel_ml("stack", "down", *where)
