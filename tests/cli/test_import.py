"""`otel-ml import`: a run of the local store from OTLP JSON lines, all of it or nothing."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from otel_ml.cli.main import main
from otel_ml.store.reader import RunReader
from otel_ml.store.runs import find_run, list_runs
from otel_ml.totals import RunTotals
from tests.store.conftest import Program

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The runs that are recorded are in one folder of the test's."""
    monkeypatch.setenv("OTEL_ML_DIR", str(tmp_path / "runs"))


def eventful(directory: Path, *, finished: bool = True) -> None:
    """A run with something of everything."""
    totals = RunTotals(run_id="run-1", run_name="digits", rank=0, world_size=2, host="there", pid=7, started_unix_ns=1)
    totals = dataclasses.replace(totals, ended_unix_ns=90, outcome="finished", steps=2, duration_s=1.5)
    program = Program(directory)
    with program.tracer.start_as_current_span("outer", attributes={"ml.step.number": 3, "list": [1.5, 2.5]}) as outer:
        outer.add_event("happened", {"how": "well"}, timestamp=5)
        program.tracer.start_span("inner", links=[], start_time=3).end(4)
    program.step(0, ml__training__loss=0.5)
    program.step(1, ml__training__loss=float("nan"))
    program.logger.emit(timestamp=4, body={"a": [1, None, True]}, attributes={"bytes": b"\x00\xff"})
    program.meter.create_counter("counter", "1").add(2, {"of": "a"})
    program.meter.create_up_down_counter("level").add(-1.5)
    program.meter.create_gauge("gauge").set(1.5)
    program.meter.create_histogram("spread", "s").record(0.25)
    if finished:
        told = {"ml.run.outcome": "finished", "ml.run.totals": json.dumps(totals.to_dict())}
        program.logger.emit(timestamp=80, event_name="ml.run.finished", attributes=told)
    program.end(totals=totals.to_dict() if finished else None)


def content(directory: Path) -> dict[str, Any]:
    """Everything that a run's readers see."""
    reader = RunReader(find_run(directory, "run-1"))
    rows: dict[str, list[Any]] = {"spans": reader.spans(), "logs": reader.logs(), "points": reader.points()}
    plain = {key: [dataclasses.replace(row, pid=0) for row in some] for key, some in rows.items()}
    return {key: list(map(repr, some)) for key, some in plain.items()}  # a NaN is like no other


def test_a_run_comes_back_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exported and imported, every span, log record and point is what it was, and so is the report."""
    eventful(tmp_path / "runs")
    lines = str(tmp_path / "run.jsonl")
    codes = [main(["export", "-o", lines]), main(["import", lines, "--dir", str(tmp_path / "other")])]
    told = capsys.readouterr().out

    assert codes == [0, 0]
    assert told == "imported run-1: 2 spans, 8 metric points, 4 log records; see it with: otel-ml report run-1\n"
    assert content(tmp_path / "other") == content(tmp_path / "runs")
    reports = []
    for folder in ("runs", "other"):
        assert main(["report", "--json", "--dir", str(tmp_path / folder)]) == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert reports[0] == reports[1]
    (process,) = find_run(tmp_path / "other", "run-1").processes
    assert (process.state, process.rank, process.world_size, process.run_name) == ("finished", 0, 2, "digits")


def test_a_run_without_an_end_is_told_as_lost(tmp_path: Path) -> None:
    """Whatever process now bears its number, a run that never said goodbye does not count as running."""
    eventful(tmp_path / "runs", finished=False)
    lines = str(tmp_path / "run.jsonl")
    main(["export", "-o", lines])

    assert main(["import", lines, "--dir", str(tmp_path / "other")]) == 0
    assert find_run(tmp_path / "other", None).state == "lost"


def test_an_export_of_an_import_is_the_same(tmp_path: Path) -> None:
    """The bytes are kept: what was imported is exported line for line."""
    eventful(tmp_path / "runs")
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    main(["export", "-o", str(first)])
    main(["import", str(first), "--dir", str(tmp_path / "other")])
    main(["export", "-o", str(second), "--dir", str(tmp_path / "other")])

    assert [json.loads(line) for line in second.read_text().splitlines()] == [
        json.loads(line) for line in first.read_text().splitlines()
    ]


SPAN = {"traceId": "00" * 15 + "01", "spanId": "00" * 7 + "01", "name": "s"}


def line(run_id: str | None = "run-1", **span: Any) -> str:
    """One line with one span."""
    attributes = [] if run_id is None else [{"key": "ml.run.id", "value": {"stringValue": run_id}}]
    spans = [{**SPAN, **span}]
    return json.dumps({"resourceSpans": [{"resource": {"attributes": attributes}, "scopeSpans": [{"spans": spans}]}]})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            line() + "\nhello\n",
            "line 2 is not OTLP JSON (Expecting value: line 1 column 1 (char 0)): 'hello'. A line is one",
        ),
        ("[]\n", "line 1 is not OTLP JSON (a list): '[]'"),
        ('{"spans": []}\n', "line 1 is not OTLP JSON (its keys are spans): "),
        (line(traceId="xyz") + "\n", "line 1 is not OTLP JSON (non-hexadecimal number found"),
        (line(startTimeUnixNano="soon") + "\n", "line 1 is not OTLP JSON (Failed to parse"),
        ("[" * 100_000 + "\n", "line 1 is not OTLP JSON (maximum recursion depth exceeded"),
        (line(None) + "\n", "none of the 1 records says which run it is of"),
        ("", "no record in it; nothing was imported"),
        (line() + "\n" + line(name="x" * 1_000_000) + "\n", "holds more than 1 MB; type --max-mb to take more"),
    ],
    ids=["no JSON", "a list", "other keys", "an id", "an instant", "deep", "no run", "empty", "too much"],
)
def test_what_cannot_be_imported_leaves_nothing(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line and what to do are told, and the folder is as it was."""
    path = tmp_path / "foreign.jsonl"
    path.write_text(text, encoding="utf-8")
    before = path.read_bytes()

    assert main(["import", str(path), "--max-mb", "1"]) == 2
    assert said in capsys.readouterr().err
    assert list((tmp_path / "runs").glob("*")) == []
    assert path.read_bytes() == before


def finished(**totals: Any) -> str:
    """One line with a run's last event, which tells these totals."""
    told = {**RunTotals(run_id="run-1").to_dict(), **totals}
    attributes = [{"key": "ml.run.totals", "value": {"stringValue": json.dumps(told)}}]
    record = {"eventName": "ml.run.finished", "timeUnixNano": "1", "attributes": attributes}
    resource = {"attributes": [{"key": "ml.run.id", "value": {"stringValue": "run-1"}}]}
    return json.dumps({"resourceLogs": [{"resource": resource, "scopeLogs": [{"logRecords": [record]}]}]})


@pytest.mark.parametrize(
    ("text", "folder", "said"),
    [
        (line() + "\n", "file/runs", "Not a directory"),
        (line() + "\n" + finished(pid=1 << 70) + "\n", "runs", "too large to convert to SQLite INTEGER"),
    ],
    ids=["no folder", "no column takes it"],
)
def test_what_cannot_be_written_leaves_nothing(
    text: str, folder: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a folder, or a column, has against it is told in one line, and nothing of a run is there."""
    path = tmp_path / "foreign.jsonl"
    path.write_text(text, encoding="utf-8")
    (tmp_path / "file").touch()

    assert main(["import", str(path), "--dir", str(tmp_path / folder)]) == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"otel-ml: {path}: nothing was imported: ")
    assert said in told
    assert list((tmp_path / "runs").glob("*")) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """Where the disk takes no more, that is told in one line, and nothing of a run is there."""
    path = tmp_path / "foreign.jsonl"
    path.write_text(f"{line(name='x' * 1_000_000)}\n" * 2, encoding="utf-8")
    command = [sys.executable, "-m", "otel_ml", "import", str(path), "--dir", str(tmp_path / "runs")]
    limited = ["bash", "-c", 'ulimit -f 1024; exec "$@"', "-", *command]  # KiB that a file may have
    done = subprocess.run(limited, capture_output=True, text=True, timeout=60, check=False)

    (told,) = done.stderr.splitlines()
    assert (done.returncode, told.startswith(f"otel-ml: {path}: nothing was imported: ")) == (1, True)
    assert list((tmp_path / "runs").glob("*")) == []


def test_numbers_without_a_meaning_are_left_out(tmp_path: Path) -> None:
    """A kind and a status that OTLP does not know are taken for none."""
    path = tmp_path / "foreign.jsonl"
    path.write_text(line(kind=-7, status={"code": -9}) + "\n", encoding="utf-8")
    assert main(["import", str(path)]) == 0
    (span,) = RunReader(find_run(tmp_path / "runs", "run-1")).spans()
    assert (span.kind, span.status) == ("internal", "unset")


def test_a_run_that_is_there_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is written into the folder of a run that is there, and nothing of the file's other runs is kept."""
    eventful(tmp_path / "runs")
    path = tmp_path / "foreign.jsonl"
    path.write_text(f"{line('run-2')}\n{line('run-1')}\n", encoding="utf-8")
    before = sorted(tmp_path.glob("runs/**/*"))

    assert main(["import", str(path)]) == 2
    assert "run run-1 is in" in (said := capsys.readouterr().err)
    assert "`otel-ml runs rm run-1`" in said
    assert sorted(tmp_path.glob("runs/**/*")) == before


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who wrote the file was stopped: what came before is imported, and it is told."""
    path = tmp_path / "foreign.jsonl"
    path.write_text(f"{line()}\n{line()[:50]}", encoding="utf-8")

    assert main(["import", str(path)]) == 0
    assert "line 2 has no end: who wrote it was stopped. It is left out" in capsys.readouterr().err
    assert len(RunReader(find_run(tmp_path / "runs", "run-1")).spans()) == 1


def test_requests_on_one_line_are_all_taken(tmp_path: Path) -> None:
    """A Collector that was killed between a request and its line's end goes on in the same line."""
    path = tmp_path / "foreign.jsonl"
    path.write_text(f"{line()}{line(spanId='0000000000000002')} {line(spanId='0000000000000003')}\n", encoding="utf-8")

    assert main(["import", str(path)]) == 0
    found = [span.span_id for span in RunReader(find_run(tmp_path / "runs", "run-1")).spans()]
    assert sorted(found) == [SPAN["spanId"], "0000000000000002", "0000000000000003"]


def test_records_that_came_late_are_put_in_their_place(tmp_path: Path) -> None:
    """The newest point of a counter is the newest by its time, in whatever order the endpoint was sent them."""

    def points(at: int, value: int) -> str:
        attributes = [{"key": "ml.run.id", "value": {"stringValue": "run-1"}}]
        data = {"dataPoints": [{"timeUnixNano": str(at), "asInt": str(value)}], "isMonotonic": True}
        metric = {"name": "ml.training.steps", "sum": {**data, "aggregationTemporality": 2}}
        outer = {"resource": {"attributes": attributes}, "scopeMetrics": [{"metrics": [metric]}]}
        return json.dumps({"resourceMetrics": [outer]})

    path = tmp_path / "foreign.jsonl"
    path.write_text("\n".join([points(10, 1), points(40, 4), points(20, 2), points(30, 3)]) + "\n", encoding="utf-8")

    assert main(["import", str(path)]) == 0
    reader = RunReader(find_run(tmp_path / "runs", "run-1"))
    assert [(p.time_unix_ns, p.value) for p in reader.points()] == [(10, 1), (20, 2), (30, 3), (40, 4)]
    assert [p.value for p in reader.points(latest=True)] == [4]


def test_several_runs_and_processes_each_have_their_place(tmp_path: Path) -> None:
    """A Collector's files hold many: each run becomes a folder, each process a file."""

    def of(run_id: str, instance: str) -> str:
        keys = {"ml.run.id": run_id, "service.instance.id": instance}
        attributes = [{"key": key, "value": {"stringValue": value}} for key, value in keys.items()]
        outer = {"resource": {"attributes": attributes}, "scopeSpans": [{"spans": [SPAN]}]}
        return json.dumps({"resourceSpans": [outer]})

    path = tmp_path / "foreign.jsonl"
    path.write_text("\n".join([of("a", "1"), of("b", "2"), of("a", "3"), of("a", "1")]) + "\n", encoding="utf-8")

    assert main(["import", str(path)]) == 0
    assert {run.id: len(run.processes) for run in list_runs(tmp_path / "runs")} == {"a": 2, "b": 1}
    assert len(RunReader(find_run(tmp_path / "runs", "a")).spans()) == 3
