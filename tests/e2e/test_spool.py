"""The real Collector goes away and comes back: in the end it has what the local store has, each record once."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections import Counter
from signal import SIGKILL
from typing import TYPE_CHECKING, Any

import pytest

from otel_ml.export.jsonlines import requests_in
from otel_ml.store.runs import list_runs
from tests.e2e.backends import backend, ports, started
from tests.e2e.launching import BIN, RUN, environment, launch, recorded, totals
from tests.e2e.test_collector import COLLECTOR, parsed
from tests.export.far import Far as Endpoint
from tests.faults.processes import Process, once, wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.e2e.receivers import Received

# It writes what it acknowledged before it is killed, and goes on in the same files.
KEEPING = COLLECTOR.replace('.jsonl"}', '.jsonl", append: true, flush_interval: 10ms}')
STEPS = 40


class Far:
    """A Collector that can be started again, and what it has written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.http, self.grpc = ports(2)
        self._configuration = folder / "collector.yaml"
        self._configuration.write_text(
            KEEPING.replace("HTTP", self.http).replace("GRPC", self.grpc).replace("FOLDER", str(folder)),
            encoding="utf-8",
        )

    def started(self) -> Any:
        """The Collector, until the end of the context."""
        return started([backend("otelcol"), f"--config={self._configuration}"], self.folder, self.http)

    def variables(self, protocol: str) -> dict[str, str]:
        """What a program that sends to it is told."""
        return {
            "OTEL_ML_DIR": str(self.folder / "runs"),
            "OTEL_ML_STRICT": "1",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.grpc if protocol == 'grpc' else self.http}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_EXPORTER_OTLP_TIMEOUT": "2",
            "OTEL_METRIC_EXPORT_INTERVAL": "300",
        }

    def received(self) -> Received:
        """What it has written so far; the last line may be half written."""
        for signal in ("traces", "metrics", "logs"):
            path = self.folder / f"{signal}.jsonl"
            path.touch()
            whole, _, _ = path.read_bytes().rpartition(b"\n")
            path.with_suffix(".whole").write_bytes(whole)
        folder = self.folder / "whole"
        folder.mkdir(exist_ok=True)
        for signal in ("traces", "metrics", "logs"):
            (self.folder / f"{signal}.whole").replace(folder / f"{signal}.jsonl")
        return parsed(folder)


def replay(*arguments: str, **env: str) -> tuple[int, dict[str, Any]]:
    """The exit code of `otel-ml replay`, and what it says of the only run."""
    done = subprocess.run(
        [str(BIN / "otel-ml"), "replay", "--json", *arguments],
        env=environment(**env), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    (told,) = json.loads(done.stdout)["runs"]
    return done.returncode, told


def sent(told: dict[str, Any], what: str = "sent") -> dict[str, int]:
    """How many of each signal."""
    return {signal: counts[what] for signal, counts in told["signals"].items()}


def spans_and_logs(received: Received) -> tuple[Counter[Any], Counter[Any]]:
    """The spans and log records that arrived, by what tells one from another."""
    logs = ((log.event or "", str(log.body), json.dumps(log.attributes, sort_keys=True)) for log in received.logs)
    return Counter(span.span_id for span in received.spans), Counter(logs)


def spans_and_logs_here(directory: Path) -> tuple[Counter[Any], Counter[Any]]:
    """The same of the local store."""
    found = recorded(directory)
    logs = ((log.event_name or "", str(log.body), json.dumps(log.attributes, sort_keys=True)) for log in found.logs())
    return Counter(span.span_id for span in found.spans()), Counter(logs)


def curve(points: Sequence[Any]) -> set[int]:
    """The times at which the step counter stood between what it was before and after the Collector was away."""
    return {p.time_unix_ns for p in points if p.name == "ml.training.steps" and STEPS < (p.value or 0) < 2 * STEPS}


def steps_here(directory: Path) -> float:
    """What the store's step counter came to."""
    return sum(point.value or 0 for point in recorded(directory).points("ml.training.steps", latest=True))


def test_round_trip_through_the_collector(tmp_path: Path) -> None:
    """What `otel-ml export` writes, the Collector reads and writes again the same, and `otel-ml import` takes."""
    far = Far(tmp_path)
    variables = {"OTEL_ML_DIR": str(tmp_path / "runs"), "OTEL_ML_STEPS_PER_SECOND": "1000"}
    assert launch(RUN, "observed.py", cwd=tmp_path, timeout=120, **variables).code == 0
    signals = {"traces": "spans", "metrics": "points", "logs": "logs"}
    ours = tmp_path / "ours"
    ours.mkdir()
    with far.started():
        for signal in signals:
            path = ours / f"{signal}.jsonl"
            assert command("export", "--signal", signal, "-o", str(path), **variables) == ""
            for line in path.read_bytes().splitlines():
                asked = urllib.request.Request(
                    f"http://127.0.0.1:{far.http}/v1/{signal}", line, {"Content-Type": "application/json"}
                )
                with urllib.request.urlopen(asked, timeout=30) as answer:
                    assert answer.status == 200
    # The Collector has ended in order: its files are whole.
    theirs = [str(tmp_path / f"{signal}.jsonl") for signal in signals]
    told = json.loads(command("import", "--json", "--dir", str(tmp_path / "back"), *theirs))

    for signal in signals:
        assert messages(tmp_path / f"{signal}.jsonl") == messages(ours / f"{signal}.jsonl")
    here = recorded(tmp_path / "runs")
    assert {signal: told["runs"][0][signal] for signal in signals} == {
        "traces": len(here.spans()), "metrics": len(here.points()), "logs": len(here.logs()),
    }  # fmt: skip
    back = recorded(tmp_path / "back")
    assert list(map(repr, back.points())) == list(map(repr, here.points()))
    assert (back.spans(), back.logs(), back.resource()) == (here.spans(), here.logs(), here.resource())
    assert totals(tmp_path / "back") == totals(tmp_path / "runs")


def messages(path: Path) -> list[Any]:
    """The requests in a file of OTLP JSON lines."""
    with path.open("rb") as file:
        return list(requests_in(file, path.name, most_bytes=1 << 30, say=pytest.fail))


def command(*arguments: str, **env: str) -> str:
    """What one of our commands prints."""
    return subprocess.run(
        [str(BIN / "otel-ml"), *arguments],
        env=environment(**env), stdout=subprocess.PIPE, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_collector_is_killed_and_comes_back(protocol: str, tmp_path: Path) -> None:
    """Of a run that goes on while the Collector is dead nothing is lost, nothing comes twice, no curve has a hole."""
    far = Far(tmp_path)
    runs = tmp_path / "runs"
    with Process(RUN, "gated.py", cwd=tmp_path, **far.variables(protocol)) as program:
        with far.started() as (collector, _):
            program.say(str(STEPS))
            program.until("MADE")
            wait_until(runs, steps=STEPS - 1)  # the last one is over when the next begins
            once(lambda: spans_and_logs(far.received()) == spans_and_logs_here(runs), "the first steps to arrive")
            collector.kill()
            collector.wait()
        program.say(str(STEPS))
        program.until("MADE")
        wait_until(runs, steps=2 * STEPS - 1)
        once(lambda: spans_and_logs(far.received()) != spans_and_logs_here(runs), "what has not arrived")
        once(lambda: len(curve(recorded(runs).points("ml.training.steps"))) > 6, "metrics of the time without it")
        with far.started():
            program.say(str(STEPS))
            program.until("MADE")
            wait_until(runs, steps=3 * STEPS - 1)
            once(lambda: spans_and_logs(far.received()) == spans_and_logs_here(runs), "everything that was kept")
            program.hang_up()
            ended = program.end()

    code, told = replay("--dry-run", **far.variables(protocol))
    assert (ended.code, code, sent(told, "left")) == (0, 0, {"traces": 0, "logs": 0, "metrics": 0})
    received = far.received()
    received.points.sort(key=lambda point: point.time_unix_ns)  # what was kept came late
    assert spans_and_logs(received) == spans_and_logs_here(runs)
    assert set(spans_and_logs(received)[0].values()) == {1}
    assert received.totals("ml.training.steps") == {"ml.outcome=ok": steps_here(runs)} == {"ml.outcome=ok": 3 * STEPS}
    kept, came = recorded(runs).points("ml.training.steps"), received.points
    assert len(curve(kept) & curve(came)) >= 4  # what the exporter sends when it is back stands for the last ones


def test_replay_after_the_end(tmp_path: Path) -> None:
    """What a run recorded while the Collector was dead is sent by one command, once, however often it is typed."""
    far = Far(tmp_path)
    variables = far.variables("http/protobuf")
    with Process(RUN, "gated.py", cwd=tmp_path, OTEL_ML_SHUTDOWN_TIMEOUT="1", **variables) as program:
        program.say(str(STEPS))
        program.until("MADE")
        program.hang_up()
        ended = program.end()
    (found,) = list_runs(tmp_path / "runs")
    assert ended.code == 0
    assert f"otel-ml replay {found.id}" in ended.stderr

    with far.started():
        first = replay(found.id, **variables)
        second = replay(found.id, **variables)
    received = far.received()
    spans, logs = spans_and_logs_here(tmp_path / "runs")
    points = len(recorded(tmp_path / "runs").points())
    assert (first[0], second[0]) == (0, 0)
    assert sent(first[1]) == {"traces": spans.total(), "logs": logs.total(), "metrics": points}
    assert sent(second[1]) == {"traces": 0, "logs": 0, "metrics": 0}
    assert spans_and_logs(received) == (spans, logs)
    assert len(received.points) == points
    assert received.totals("ml.training.steps") == {"ml.outcome=ok": STEPS}


def test_replay_of_a_killed_run(tmp_path: Path) -> None:
    """What a run that was killed had on disk and not sent, also what was on its way, is sent by the command."""
    runs = tmp_path / "runs"
    with Endpoint() as away:
        nobody = away.endpoint  # its port is closed again
    environ = {"OTEL_ML_DIR": str(runs), "OTEL_EXPORTER_OTLP_ENDPOINT": nobody}
    with Process(RUN, "gated.py", cwd=tmp_path, **environ) as program:
        program.say(str(STEPS))
        program.until("MADE")
        wait_until(runs, steps=STEPS - 1)
        program.send_all(SIGKILL)
        program.end()

    with Endpoint() as endpoint:
        code, told = replay("--endpoint", endpoint.endpoint, **environ)
    here = recorded(runs)
    assert (code, sent(told, "left")) == (0, {"traces": 0, "logs": 0, "metrics": 0})
    assert Counter(endpoint.spans()) == Counter(span.name for span in here.spans())
    assert Counter(endpoint.logs()) == Counter(log.event_name or "" for log in here.logs())
    assert sent(told)["metrics"] == endpoint.points().total() == len(here.points())
