"""What the store's exporters leave on disk, and what they never do to the program."""

from __future__ import annotations

import json
import logging
import math
import os
import sqlite3
import stat
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.metrics.export import Gauge, MetricsData, NumberDataPoint, ResourceMetrics, ScopeMetrics
from opentelemetry.sdk.metrics.export import Metric as SdkMetric
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource as SdkResource
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_ml import names
from otel_ml.store import file as file_module
from otel_ml.store import writer as writer_module
from otel_ml.store.file import is_network
from otel_ml.store.schema import COLUMNS
from otel_ml.store.writer import StoreWriter

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from tests.store.conftest import Program


def rows(path: Path, table: str, *columns: str) -> list[tuple[Any, ...]]:
    """Columns of a table as they are in the file."""
    connection = sqlite3.connect(path)
    try:
        order = "" if table == "drops" else "ORDER BY id"
        return connection.execute(f"SELECT {', '.join(columns or COLUMNS[table])} FROM {table} {order}").fetchall()
    finally:
        connection.close()


def files(directory: Path) -> list[str]:
    """Everything below a folder, relative to it."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def only(directory: Path) -> Path:
    """The one file there is."""
    (path,) = directory.rglob("*.sqlite*")
    return path


# --- what is on disk ------------------------------------------------------------------------


def test_process_without_a_step_leaves_no_file(program: Callable[..., Program], runs: Path) -> None:
    """Before the gate opens nothing is written, whatever is exported, and the goodbye writes nothing either."""
    one = program(gate=False)
    one.span("a")
    one.event(names.EVENT_CONFIG)
    one.meter.create_counter("c").add(1)
    one.end()

    assert not runs.exists()
    assert one.writer.size() == 0


def test_gate_lets_what_was_held_back_through_first(program: Callable[..., Program], runs: Path) -> None:
    """What was exported before the first step is in the file, before what came after."""
    one = program(gate=False)
    one.event(names.EVENT_CONFIG, at=1)
    one.span("before")
    one.meter.create_counter("c").add(1)
    one.flush()
    one.writer.open_gate()
    one.event(names.EVENT_STEP, at=2)
    one.span("after")
    one.end()

    path = only(runs)
    assert rows(path, "logs", "event_name") == [("ml.config",), ("ml.step",)]
    assert rows(path, "spans", "name") == [("before",), ("after",)]
    assert rows(path, "points", "DISTINCT name, value") == [("c", 1)]


def test_held_back_records_are_bounded_and_the_lost_ones_counted(
    program: Callable[..., Program], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the bound the oldest held-back records go, and the file says how many of each signal."""
    monkeypatch.setattr(writer_module, "HELD", {"spans": 2, "logs": 1, "points": 1})
    one = program(gate=False)
    counters = [one.meter.create_counter(f"c{n}") for n in range(3)]
    for number in range(3):
        one.span(f"s{number}")
        one.event(names.EVENT_STEP, at=number + 1)
        counters[number].add(1)
        one.flush()
    one.writer.open_gate()
    one.end()

    path = only(runs)
    assert rows(path, "spans", "name") == [("s1",), ("s2",)]
    assert rows(path, "logs", "time_unix_ns") == [(3,)]
    assert rows(path, "drops") == [
        ("logs", "before_gate", 2),
        ("points", "before_gate", 3),
        ("spans", "before_gate", 1),
    ]
    assert one.writer.dropped() == {"logs before_gate": 2, "points before_gate": 3, "spans before_gate": 1}


def test_clean_end_leaves_one_private_file(program: Callable[..., Program], runs: Path) -> None:
    """After the goodbye there is one file, without a journal, that nobody else can read or find."""
    one = program()
    one.span("a")
    one.end()
    one.writer.close()

    path = only(runs)
    assert files(runs) == ["run-1", f"run-1/{path.name}"]
    assert path.name.startswith("rank0-")
    assert [stat.S_IMODE(p.stat().st_mode) for p in (runs, path.parent, path)] == [0o700, 0o700, 0o600]
    assert path.read_bytes()[18:20] == b"\x01\x01"  # no write-ahead log: opens from a read-only folder
    assert one.writer.size() == path.stat().st_size > 0


def test_journal_of_a_live_file_is_private_too(program: Callable[..., Program], runs: Path) -> None:
    """While the process runs, the journal beside its file is as private as the file."""
    one = program()
    one.span("a")
    one.flush()

    modes = {path.name.partition(".sqlite")[2]: stat.S_IMODE(path.stat().st_mode) for path in runs.rglob("*.sqlite*")}
    assert modes == {"": 0o600, "-wal": 0o600, "-shm": 0o600}


def test_process_row_says_who_wrote_and_how_it_ended(program: Callable[..., Program], runs: Path) -> None:
    """The process row has the run, the place and, after the goodbye, the outcome and the totals."""
    one = program(resource={"ml.run.attempt": 3})
    one.span("a")
    one.end("failed", totals={"steps": 7, "loss": math.nan}, exit_code=1)

    row = dict(zip(COLUMNS["process"], rows(only(runs), "process")[0], strict=True))
    said = {key: row[key] for key in ("run_id", "run_name", "attempt", "rank", "world_size", "outcome", "exit_code")}
    assert said == {
        "run_id": "run-1", "run_name": "digits", "attempt": 3, "rank": 0, "world_size": 2, "outcome": "failed",
        "exit_code": 1,
    }  # fmt: skip
    assert row["ended_unix_ns"] == 2_000_000_000
    assert repr(json.loads(row["totals"])) == "{'steps': 7, 'loss': nan}"
    assert json.loads(row["resource"])["service.name"] == "train"


def test_two_writers_of_one_process_have_a_file_each(program: Callable[..., Program], runs: Path) -> None:
    """A second writer for the same run does not touch the first one's file."""
    for _ in range(2):
        one = program()
        one.span("a")
        one.end()

    assert [rows(path, "spans", "name") for path in sorted(runs.rglob("*.sqlite"))] == [[("a",)], [("a",)]]


# --- the rows -------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 31, 32, 33, 200])
def test_rows_are_in_the_order_they_came(program: Callable[..., Program], runs: Path, count: int) -> None:
    """However many rows one export has, they are numbered from one in the order of their records."""
    one = program()
    for number in range(count):
        one.span(f"s{number}")
    one.end()

    assert rows(only(runs), "spans", "id", "name") == [(number + 1, f"s{number}") for number in range(count)]


def test_span_row_holds_its_columns_and_its_otlp_bytes(program: Callable[..., Program], runs: Path) -> None:
    """A span's columns and bytes tell the same, and resource and scope are stored once."""
    one = program()
    parent = trace.SpanContext(0xA1, 0xB2, is_remote=False, trace_flags=trace.TraceFlags(1))
    linked = trace.SpanContext(0xC3, 0xD4, is_remote=False)
    span = one.tracer.start_span(
        "ml.step",
        trace.set_span_in_context(trace.NonRecordingSpan(parent)),
        attributes={names.STEP_NUMBER: 412, "x": math.inf, "list": ["a", "b"]},
        links=[trace.Link(linked, {"why": "run"})],
        start_time=100,
    )
    span.add_event("half way", {"n": 1}, timestamp=150)
    span.set_status(trace.StatusCode.ERROR, "it broke")
    span.end(200)
    one.span("other")
    one.end()

    path = only(runs)
    columns = COLUMNS["spans"]
    row = dict(zip(columns, rows(path, "spans")[0], strict=True))
    sent = Span.FromString(row.pop("otlp"))
    assert {**row, "span_id": None} == {
        "resource_id": 1, "scope_id": 1, "trace_id": f"{0xA1:032x}", "span_id": None, "parent_span_id": f"{0xB2:016x}",
        "name": "ml.step", "kind": "internal", "start_unix_ns": 100, "end_unix_ns": 200, "status": "error",
        "status_message": "it broke", "step": 412,
        "attributes": '{"ml.step.number":412,"x":Infinity,"list":["a","b"]}',
        "links": f'[{{"trace_id":"{0xC3:032x}","span_id":"{0xD4:016x}","attributes":{{"why":"run"}}}}]',
        "events": '[{"name":"half way","time_unix_ns":150,"attributes":{"n":1}}]',
    }  # fmt: skip
    assert (sent.name, sent.span_id.hex(), sent.end_time_unix_nano) == ("ml.step", row["span_id"], 200)
    assert [a.key for a in sent.attributes] == ["ml.step.number", "x", "list"]
    ((schema_url, attributes, otlp),) = rows(path, "resources")
    assert schema_url == "https://example.test/schema"
    assert {
        a.key: a.value.string_value or a.value.int_value for a in Resource.FromString(otlp).attributes
    } == json.loads(attributes)
    assert rows(path, "scopes", "name", "version", "schema_url") == [("otel_ml", "1.0", "https://example.test/scope")]
    assert rows(path, "spans", "resource_id", "scope_id") == [(1, 1), (1, 1)]


def test_log_row_holds_its_columns_and_its_otlp_bytes(program: Callable[..., Program], runs: Path) -> None:
    """An event's name, step, ids and attributes are columns, and its bytes hold it whole."""
    one = program()
    with one.tracer.start_as_current_span("ml.step") as span:
        one.event(names.EVENT_STEP, {names.STEP_NUMBER: 3, "ml.training.loss": math.nan, "raw": b"\x01"}, at=99)
    one.logger.emit(observed_timestamp=7, body={"a": [1, None]})
    one.event(names.EVENT_STEPS, {names.STEP_NUMBER: [1, 2]})
    one.end()

    context = span.get_span_context()
    found = rows(only(runs), "logs", *COLUMNS["logs"][2:])
    assert [row[:-1] for row in found] == [
        (
            99, "ml.step", None, "ml.step happened", f"{context.trace_id:032x}", f"{context.span_id:016x}", 3,
            '{"ml.step.number":3,"ml.training.loss":NaN,"raw":"01"}',
        ),
        (7, None, None, '{"a":[1,null]}', None, None, None, "{}"),
        (1, "ml.steps", None, "ml.steps happened", None, None, None, '{"ml.step.number":[1,2]}'),
    ]  # fmt: skip
    assert [LogRecord.FromString(row[-1]).event_name for row in found] == ["ml.step", "", "ml.steps"]


def test_every_kind_of_point_has_a_row_with_one_point_in_its_bytes(program: Callable[..., Program], runs: Path) -> None:
    """Counters, gauges and both histograms are stored exactly, huge sums included."""
    one = program(views=[View(instrument_name="exp", aggregation=ExponentialBucketHistogramAggregation())])
    counter = one.meter.create_counter("count", "{step}")
    counter.add(2, {"ml.outcome": "ok"})
    counter.add(1, {"ml.outcome": "skipped"})
    one.meter.create_up_down_counter("updown").add(-3)
    one.meter.create_gauge("gauge").set(0.5)
    plain = one.meter.create_histogram("hist", "s", explicit_bucket_boundaries_advisory=[1.0, 2.0])
    for value in (0.5, 1.5, 9.0):
        plain.record(value)
    big = one.meter.create_histogram("big", explicit_bucket_boundaries_advisory=[1.0])
    big.record(1 << 62)
    big.record(1 << 62)
    exponential = one.meter.create_histogram("exp")
    for value in (0.0, 1.0, 4.0):
        exponential.record(value)
    one.flush()

    path = next(runs.rglob("*.sqlite"))
    found = rows(path, "points", *COLUMNS["points"][4:])
    table = {(row[0], row[4]): row[1:4] + row[5:-1] for row in found}
    assert {key: value[:-1] for key, value in table.items()} == {
        ("count", '{"ml.outcome":"ok"}'): ("counter", "{step}", "cumulative", 2, None, None, None, None),
        ("count", '{"ml.outcome":"skipped"}'): ("counter", "{step}", "cumulative", 1, None, None, None, None),
        ("updown", "{}"): ("up_down_counter", "", "cumulative", -3, None, None, None, None),
        ("gauge", "{}"): ("gauge", "", None, 0.5, None, None, None, None),
        ("hist", "{}"): ("histogram", "s", "cumulative", None, 3, 11.0, 0.5, 9.0),
        ("big", "{}"): ("histogram", "", "cumulative", None, 2, float(1 << 63), 1 << 62, 1 << 62),
        ("exp", "{}"): ("exponential_histogram", "", "cumulative", None, 3, 5.0, 0.0, 4.0),
    }
    buckets = {name: json.loads(value[-1]) for (name, _), value in table.items() if value[-1]}
    assert buckets["hist"] == {"bounds": [1.0, 2.0], "counts": [1, 1, 1]}
    assert (buckets["exp"]["zero_count"], sum(buckets["exp"]["positive"]["counts"])) == (1, 2)
    sent = [Metric.FromString(row[-1]) for row in found]
    assert [(m.name, len(getattr(m, m.WhichOneof("data") or "").data_points)) for m in sent] == [
        (row[0], 1) for row in found
    ]


def test_values_that_are_not_finite_are_stored_as_they_are(program: Callable[..., Program], runs: Path) -> None:
    """A NaN or an infinity in a collection is neither lost nor turned into nothing."""
    one = program()
    values = [math.nan, math.inf, -math.inf]
    point = [NumberDataPoint({"n": n}, 0, n + 1, value) for n, value in enumerate(values)]
    scope = ScopeMetrics(InstrumentationScope("test"), [SdkMetric("g", None, None, Gauge(point))], "")
    one.writer.metric_exporter.export(MetricsData([ResourceMetrics(SdkResource({}), [scope], "")]))
    one.end()

    assert rows(only(runs), "points", "value") == [("nan",), (math.inf,), (-math.inf,)]


def test_record_that_otlp_cannot_hold_costs_only_itself(program: Callable[..., Program], runs: Path) -> None:
    """One record with a lone surrogate or an instant out of range is counted; its neighbours are stored."""
    one = program()
    one.logger.emit(timestamp=1, body="good")
    one.logger.emit(timestamp=1, body="\ud800")
    one.logger.emit(timestamp=2, body="good too")
    one.span("a\ud800")
    one.span("early", start=1, end=(1 << 63) + 1)
    one.span("fine")
    one.meter.create_gauge("big").set(1 << 70)
    one.meter.create_gauge("fine").set(1)
    one.end()

    path = only(runs)
    assert rows(path, "logs", "body") == [("good",), ("good too",)]
    assert rows(path, "spans", "name") == [("fine",)]
    assert rows(path, "points", "DISTINCT name") == [("fine",)]
    lost = {key: n for key, n in one.writer.dropped().items() if not key.startswith("points")}
    assert lost == {"logs unencodable": 1, "spans unencodable": 2}
    assert set(one.writer.dropped()) - set(lost) == {"points unencodable"}


def test_three_threads_lose_nothing(program: Callable[..., Program], runs: Path) -> None:
    """Spans, logs and metrics exported at the same time are all there."""
    one = program()
    counter = one.meter.create_counter("c")

    def work(thing: Callable[[int], object], flush: Callable[[], object]) -> None:
        for number in range(200):
            thing(number)
            if number % 20 == 19:
                flush()

    threads = [
        threading.Thread(target=work, args=args)
        for args in (
            (lambda n: one.span(f"s{n}"), one.spans.force_flush),
            (lambda n: one.event(names.EVENT_STEP, {names.STEP_NUMBER: n}), one.logs.force_flush),
            (lambda _: counter.add(1), one.metrics.force_flush),
        )
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one.end()

    path = only(runs)
    assert sorted(int(name[1:]) for (name,) in rows(path, "spans", "name")) == list(range(200))
    assert [step for (step,) in rows(path, "logs", "step")] == list(range(200))
    assert rows(path, "points", "max(value)") == [(200,)]
    assert one.writer.dropped() == {}


# --- caps -----------------------------------------------------------------------------------


def test_capped_file_keeps_the_newest_rows_and_counts_the_others(program: Callable[..., Program], runs: Path) -> None:
    """At its cap a file stays below it, holds the newest rows, and every lost row is counted."""
    cap = 400_000
    one = program(run_bytes=cap)
    for number in range(40):
        for _ in range(50):
            one.span(f"s{number}", attributes={"pad": "x" * 100})
        one.spans.force_flush()
    highest = one.writer.size()
    one.end()

    path = only(runs)
    kept = [name for (name,) in rows(path, "spans", "name")]
    assert kept == [f"s{n}" for n in range(40) for _ in range(50)][-len(kept) :]
    assert rows(path, "drops") == [("spans", "run_bytes", 2000 - len(kept))]
    assert len(kept) > 200
    assert (
        max(highest, path.stat().st_size) <= cap + 32_768 + 2 * 50 * 1_000
    )  # index, a batch, what its trimming touched


def test_step_records_outlive_chatter_at_the_cap(program: Callable[..., Program], runs: Path) -> None:
    """When logs fill the file, the user's own lines go before the step records."""
    one = program(run_bytes=400_000)
    for number in range(100):
        one.step(number)
        for _ in range(20):
            one.logger.emit(timestamp=number, body="chatter " * 20)
        one.logs.force_flush()
    one.end()

    assert [step for (step,) in rows(only(runs), "logs", "step") if step is not None] == list(range(100))
    assert one.writer.dropped()["logs run_bytes"] > 0


def test_cap_below_an_empty_file_counts_everything(program: Callable[..., Program], runs: Path) -> None:
    """A cap too small for any row breaks nothing: all rows are counted as lost."""
    one = program(run_bytes=1000)
    one.span("a")
    one.event(names.EVENT_CONFIG)
    one.end()

    assert rows(only(runs), "drops") == [("logs", "run_bytes", 1), ("spans", "run_bytes", 1)]


def ended_run(program: Callable[..., Program], run_id: str, size: int) -> None:
    """A finished run of at least `size` bytes."""
    one = program(run_id)
    one.span("a", attributes={"pad": "x" * size})
    one.end()


def age(folder: Path, seconds: float) -> None:
    """Make a run's files look as if last written that long ago."""
    for path in folder.iterdir():
        os.utime(path, (time.time() - seconds,) * 2)


@pytest.mark.parametrize("prepared", [False, True])
def test_total_cap_deletes_the_oldest_finished_runs(
    program: Callable[..., Program], runs: Path, prepared: bool
) -> None:
    """Once it writes, a new run makes room by deleting the oldest finished runs, never a live one, and counts them."""
    for number, run_id in enumerate(["oldest", "older", "old"]):
        ended_run(program, run_id, 200_000)
        age(runs / run_id, 1000 - number)
    live = program("live")
    live.span("a", attributes={"pad": "x" * 200_000})
    live.flush()
    age(runs / "live", 5000)
    room = sum(path.stat().st_size for name in ("live", "old") for path in (runs / name).iterdir())
    one = program("new", total_bytes=room + 300_000, gate=False)
    if prepared:
        one.writer.prepare()
    assert sorted(path.name for path in runs.iterdir()) == ["live", "old", "older", "oldest"]
    one.writer.open_gate()
    one.span("a")
    one.end()

    assert sorted(path.name for path in runs.iterdir()) == ["live", "new", "old"]
    assert one.writer.dropped() == {"runs total_bytes": 2}


def test_age_cap_deletes_finished_runs_only(program: Callable[..., Program], runs: Path) -> None:
    """A finished run that is too old goes; what is not a run of ours stays, however old."""
    ended_run(program, "old", 10)
    (runs / "notes").mkdir()
    (runs / "notes" / "mine.txt").write_text("keep")
    (runs / "broken").mkdir()
    (runs / "broken" / "x.sqlite").write_bytes(b"not a database, but somebody's" * 100)
    for name in ("old", "notes", "broken"):
        age(runs / name, 1000)
    one = program("new", total_age_s=500)
    one.span("a")
    one.end()

    assert sorted(path.name for path in runs.iterdir()) == ["broken", "new", "notes"]
    assert one.writer.dropped() == {"runs run_age": 1}


# --- nothing of it reaches the program ------------------------------------------------------


def test_unwritable_folder_is_counted_and_said_once(
    program: Callable[..., Program],
    tmp_path: Path,
    unprivileged: Callable[[], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A read-only folder never raises: exports fail, the records are counted, one warning says what to do."""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    one = program(directory=locked / "runs")
    with unprivileged(), caplog.at_level(logging.WARNING, "otel_ml"):
        for _ in range(3):
            one.span("a")
            one.spans.force_flush()
        assert one.writer.span_exporter.export([]) is SpanExportResult.FAILURE
    one.spans.shutdown()

    assert one.writer.dropped() == {"spans write_failed": 3}
    (said,) = [record.getMessage() for record in caplog.records]
    assert "make it a folder that this user may write to" in said
    assert list(locked.iterdir()) == []


def test_writing_goes_on_once_the_folder_can_be_written(program: Callable[..., Program], tmp_path: Path) -> None:
    """A store that could not be opened is tried again, and the file then tells what was lost before."""
    blocked = tmp_path / "runs"
    blocked.write_text("a file is in the way")
    one = program()
    one.span("lost")
    one.flush()
    blocked.unlink()
    one.span("kept")
    one.end()

    path = only(tmp_path / "runs")
    assert rows(path, "spans", "name") == [("kept",)]
    assert rows(path, "drops") == [("spans", "write_failed", 1)]


def test_disk_that_fills_up_costs_only_what_does_not_fit(
    script: Callable[[str], subprocess.Popen[str]], runs: Path
) -> None:
    """When the disk refuses to grow the file, the program goes on, rows already written stay, the rest is counted."""
    child = script(
        """
import resource
one = Program(runs)
one.span("first"); one.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
for n in range(30):
    one.span("big", attributes={"pad": "x" * 50_000}); one.spans.force_flush()
lost = one.writer.dropped()["spans write_failed"]
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
one.end()
print(lost)
"""
    )
    out, err = child.communicate(timeout=60)

    assert (child.returncode, err.count("Traceback")) == (0, 0), err
    assert err.count("free some space") == 1
    path = next(runs.rglob("*.sqlite"))
    kept = [name for (name,) in rows(path, "spans", "name")]
    assert kept[0] == "first"
    assert len(kept) + int(out) == 31
    assert rows(path, "process", "run_id") == [("run-1",)]


def test_deleted_folder_starts_a_new_file(program: Callable[..., Program], runs: Path) -> None:
    """When somebody deletes the run's folder, what comes after is in a new file."""
    one = program()
    one.span("gone")
    one.flush()
    for path in (runs / "run-1").iterdir():
        path.unlink()
    (runs / "run-1").rmdir()
    one.span("here")
    one.end()

    assert rows(only(runs), "spans", "name") == [("here",)]
    assert rows(only(runs), "process", "run_name", "outcome") == [("digits", "finished")]


def test_overwritten_file_is_left_for_a_new_one(
    program: Callable[..., Program], runs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where others write over the file that SQLite still knows by heart, the next is in a new one; said once."""
    one = program()
    one.span("spoiled")
    one.flush()
    (path,) = (runs / "run-1").glob("*.sqlite")
    with path.open("r+b") as file:
        file.write(b"\xa5" * path.stat().st_size)
    for name in ("here", "there"):
        one.span(name)
        one.flush()
    one.end()

    (other,) = set((runs / "run-1").glob("*.sqlite")) - {path}
    assert rows(other, "spans", "name") == [("here",), ("there",)]
    assert rows(other, "process", "run_name", "outcome") == [("digits", "finished")]
    assert one.writer.dropped() == {}
    assert [record.getMessage().count("damaged, a new one is begun") for record in caplog.records] == [1]


def test_totals_so_far_ride_along(program: Callable[..., Program], runs: Path) -> None:
    """Totals that are told go into the file with the next records, or by themselves where none come, and only once."""
    one = program()
    one.writer.tell({"steps": 1})
    one.writer.settle()
    assert one.writer.path is None

    one.step(0)
    one.logs.force_flush()
    path = one.writer.path
    assert path is not None
    connection = sqlite3.connect(path)

    def noted() -> tuple[str, int]:
        """The totals in the file, and a number that each transaction of others changes."""
        (version,) = connection.execute("PRAGMA data_version").fetchone()
        return connection.execute("SELECT totals FROM process").fetchone()[0], version

    first = noted()
    one.writer.settle()
    assert (first[0], noted()) == ('{"steps":1}', first)
    one.writer.tell({"steps": 2})
    one.writer.settle()
    assert noted() == ('{"steps":2}', first[1] + 1)
    connection.close()
    one.end("finished", totals={"steps": 3})
    one.writer.settle()
    assert rows(path, "process", "totals") == [('{"steps":3}',)]


def test_exports_after_the_goodbye_are_counted(program: Callable[..., Program]) -> None:
    """A late export fails, is counted, and opens nothing again."""
    one = program()
    one.span("a")
    one.flush()
    one.writer.close()
    before = one.writer.size()
    one.span("late")
    one.spans.force_flush()

    assert one.writer.dropped() == {"spans closed": 1}
    assert one.writer.size() == before


def test_forked_child_writes_nothing_and_spoils_nothing(
    script: Callable[[str], subprocess.Popen[str]], runs: Path
) -> None:
    """A forked child that exports, says goodbye and ends normally leaves the parent's file as it was."""
    child = script(
        """
import time
from opentelemetry.sdk.trace.export import SpanExportResult
one = Program(runs)
one.span("parent before"); one.flush()
held = one.writer._lock  # as if another thread exported during the fork
held.acquire()
pid = os.fork()
if pid == 0:
    span = one.tracer.start_span("child"); span.end()
    assert one.writer.span_exporter.export([span]) is SpanExportResult.SUCCESS
    one.writer.open_gate(); one.writer.finish(totals=None, ended_unix_ns=1, outcome="finished", exit_code=0)
    one.writer.close()
    assert one.writer.size() == 0
    del one
    sys.exit(7)
held.release()
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
one.span("parent after"); one.end()
"""
    )
    _, err = child.communicate(timeout=60)

    assert child.returncode == 0, err
    path = only(runs)
    assert rows(path, "spans", "name") == [("parent before",), ("parent after",)]
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_id_that_leads_elsewhere_is_counted_not_followed(
    program: Callable[..., Program], runs: Path, tmp_path: Path
) -> None:
    """A link in the place of the run's folder gets no file; the program does not notice."""
    (tmp_path / "elsewhere").mkdir()
    runs.mkdir()
    (runs / "run-1").symlink_to(tmp_path / "elsewhere")
    one = program()
    one.span("a")
    one.end()

    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert one.writer.dropped() == {"spans write_failed": 1}


def test_newer_schema_in_the_way_is_no_trouble(program: Callable[..., Program], runs: Path) -> None:
    """Files of other processes in the run's folder are never opened for writing."""
    (runs / "run-1").mkdir(parents=True)
    other = runs / "run-1" / "rank0-other.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    before = other.read_bytes()
    one = program()
    one.span("a")
    one.end()

    assert other.read_bytes() == before


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("/home/me/runs", False),
        ("/data/runs", True),
        ("/data/local/runs", False),
        ("/my disk/runs", True),
        ("/ssh/x", True),
    ],
)
def test_network_filesystems_are_known_by_their_mount(folder: str, expected: bool) -> None:
    """The mount that a folder is on, the innermost one, decides whether several machines share it."""
    mounts = (
        "/dev/vda / ext4 rw 0 0\nnas:/data /data nfs4 rw 0 0\n/dev/vdb /data/local xfs rw 0 0\n"
        "//win/share /my\\040disk cifs rw 0 0\nme@host: /ssh fuse.sshfs rw 0 0\n"
    )

    assert is_network(Path(folder), mounts) is expected
    assert is_network(Path(folder), "") is False


def test_network_filesystem_gets_a_rollback_journal(
    program: Callable[..., Program], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where machines share the disk, no write-ahead log is used, and rows are there all the same."""
    monkeypatch.setattr(file_module, "_mounts", lambda: "nas:/ / nfs4 rw 0 0\n")
    one = program()
    one.span("a")
    one.flush()

    path = only(runs)
    assert path.read_bytes()[18:20] == b"\x01\x01"
    assert rows(path, "spans", "name") == [("a",)]


def test_writer_is_made_without_touching_the_disk(tmp_path: Path) -> None:
    """Making and closing a writer opens nothing, whatever the run is called."""
    writer = StoreWriter(tmp_path / "runs", "../../x", run_bytes=1, total_bytes=1, total_age_s=1)
    writer.close()

    assert files(tmp_path) == []


def test_importing_the_writer_loads_neither_sqlite_nor_protobuf(script: Callable[[str], subprocess.Popen[str]]) -> None:
    """What the first record needs is not paid for by a process that has none."""
    child = script(
        """
one = Program(runs, gate=False)
one.span("a"); one.flush()
print(sorted({"sqlite3", "google.protobuf"} & set(sys.modules)), flush=True)
os._exit(0)
"""
    )
    out, err = child.communicate(timeout=60)

    assert out == "[]\n", err


def test_what_is_prepared_is_not_imported_again(script: Callable[[str], subprocess.Popen[str]]) -> None:
    """After `prepare()` the first record of each signal imports nothing: no training step waits for it."""
    child = script(
        """
one = Program(runs, gate=False)
one.writer.prepare()
before = set(sys.modules)
one.writer.open_gate()
one.span("a"); one.event("ml.step"); one.meter.create_counter("c").add(1); one.flush()
print(sorted(name for name in set(sys.modules) - before if not name.startswith("encodings.")), flush=True)
os._exit(0)
"""
    )
    out, err = child.communicate(timeout=60)

    assert out == "[]\n", err


def test_without_signals_no_encoder_is_prepared(script: Callable[[str], subprocess.Popen[str]]) -> None:
    """Where no signal goes to the store, its encoders are not imported: no import of the program's waits for that."""
    child = script(
        """
one = Program(runs, gate=False)
one.writer.prepare(signals=False)
print([name for name in ("sqlite3", "opentelemetry.proto.common") if name in sys.modules], flush=True)
os._exit(0)
"""
    )
    out, err = child.communicate(timeout=60)

    assert out == "['sqlite3']\n", err
