"""What can be told of a run from its files alone: live, ended, killed, copied or damaged."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace

from otel_ml import names
from otel_ml.errors import NewerStoreError, StoreError
from otel_ml.store import opening, schema
from otel_ml.store.reader import RunReader
from otel_ml.store.runs import delete_run, find_run, list_runs
from otel_ml.totals import Distribution, LossCurve, RunTotals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.store.conftest import Program


def file_of(runs: Path, slug: str = "run-1") -> Path:
    """The one file of a run."""
    (path,) = (runs / slug).glob("*.sqlite")
    return path


def change(path: Path, statement: str) -> None:
    """Change a file behind its writer's back."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(statement)
    connection.close()


def ended(program: Callable[..., Program], run_id: str = "run-1", **options: Any) -> None:
    """A run of one step that ended well, or as told."""
    outcome, totals = options.pop("outcome", "finished"), options.pop("totals", None)
    one = program(run_id, **options)
    one.step(0)
    one.end(outcome, totals=totals)


# --- runs -----------------------------------------------------------------------------------


def test_finished_run_is_told_whole(program: Callable[..., Program], runs: Path) -> None:
    """A run that ended says its id, name, times, state, steps and size."""
    totals = RunTotals(steps=5, steps_skipped=1, started_unix_ns=1_000_000_000)
    ended(program, totals=totals.to_dict())

    (run,) = list_runs(runs)
    path = file_of(runs)
    assert {key: value for key, value in asdict(run).items() if key != "processes"} == {
        "id": "run-1", "slug": "run-1", "name": "digits", "path": path.parent, "started_unix_ns": 1_000_000_000,
        "ended_unix_ns": 2_000_000_000, "state": "finished", "size_by": path.stat().st_size, "steps": 6, "problems": (),
        "ending": None,
    }  # fmt: skip
    (process,) = run.processes
    assert (process.rank, process.world_size, process.pid, process.host) == (0, 2, os.getpid(), os.uname().nodename)
    assert (process.outcome, process.exit_code, process.drops, process.notes) == ("finished", 0, {}, ())
    assert RunReader(run).processes() == [process]
    assert RunReader(run).resource()["service.name"] == "train"


def test_no_folder_means_no_runs(tmp_path: Path) -> None:
    """A store that was never written lists nothing; files and folders that are not ours are no runs."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "x.txt").write_text("")
    (tmp_path / "y.sqlite").write_text("")

    assert list_runs(tmp_path / "absent") == []
    assert list_runs(tmp_path) == []


def test_runs_are_listed_newest_first(program: Callable[..., Program], runs: Path) -> None:
    """The order of runs is that of their starts, whatever they are called."""
    for run_id in ("c", "a", "b"):
        ended(program, run_id)

    assert [run.id for run in list_runs(runs)] == ["b", "a", "c"]


def test_live_run_is_running_and_shows_what_it_wrote(program: Callable[..., Program], runs: Path) -> None:
    """A run can be read while it is written, as far as it has come."""
    one = program()
    for number in range(3):
        one.step(number)
        one.flush()
        (run,) = list_runs(runs)
        assert (run.state, run.ended_unix_ns, run.steps) == ("running", None, number + 1)
    following = RunReader(run)
    one.step(3)
    one.flush()

    assert [log.step for log in following.logs(names.EVENT_STEP)] == [0, 1, 2, 3]
    assert [totals.outcome for totals in following.totals()] == ["running"]


def test_killed_process_leaves_a_file_that_opens(script: Callable[[str], subprocess.Popen[str]], runs: Path) -> None:
    """After SIGKILL everything exported before is there, and the run reads as killed."""
    child = script(
        """
one = Program(runs)
for n in range(50):
    one.step(n); one.span("ml.step")
one.meter.create_counter("ml.training.steps").add(50, {"ml.outcome": "ok"})
one.flush()
print("ready", flush=True)
sys.stdin.read()
"""
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    assert find_run(runs, None).state == "running"
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=30)

    run = find_run(runs, None)
    reader = RunReader(run)
    assert (run.state, run.steps, run.problems, reader.problems()) == ("killed", 50, (), [])
    assert [log.step for log in reader.logs("ml.step")] == list(range(50))
    assert len(reader.spans("ml.step")) == 50
    assert [(t.outcome, t.steps, t.exit_code, t.ended_unix_ns) for t in reader.totals()] == [("killed", 50, None, None)]
    assert file_of(runs).with_name(f"{file_of(runs).name}-wal").exists()  # reading took nothing away


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        (["finished", "finished"], "finished"),
        (["finished", "failed"], "failed"),
        (["finished", "interrupted"], "interrupted"),
        (["killed", "interrupted"], "killed"),
        (["failed", "killed"], "failed"),
        (["finished", None], "running"),
        (["finished", "strange"], "finished"),
    ],
)
def test_run_is_what_its_worst_rank_is(
    program: Callable[..., Program], runs: Path, outcomes: list[str | None], state: str
) -> None:
    """One rank that failed makes a failed run, one that lives a running one."""
    for rank, outcome in enumerate(outcomes):
        one = program(resource={"ml.rank": rank})
        one.step(0)
        one.flush()
        if outcome is not None:
            one.end(outcome)

    run = find_run(runs, "run-1")
    assert (run.state, [process.rank for process in run.processes]) == (state, [0, 1])


def test_run_is_what_its_last_attempt_is(program: Callable[..., Program], runs: Path) -> None:
    """A run that failed and then succeeded has succeeded; both attempts are there."""
    ended(program, resource={"ml.run.attempt": 1}, totals=RunTotals(steps=9).to_dict())
    ended(program, resource={"ml.run.attempt": 0}, outcome="failed", totals=RunTotals(steps=20).to_dict())

    run = find_run(runs, None)
    assert (run.state, run.steps, [process.attempt for process in run.processes]) == ("finished", 9, [0, 1])


def test_silent_run_of_another_machine_is_lost(program: Callable[..., Program], runs: Path) -> None:
    """Where the process cannot be asked, fresh rows mean running and old ones lost."""
    one = program()
    one.event(names.EVENT_CONFIG, at=time.time_ns())
    one.logs.force_flush()
    change(file_of(runs), "UPDATE process SET host = 'elsewhere'")
    fresh = find_run(runs, None).state
    change(file_of(runs), "UPDATE logs SET time_unix_ns = time_unix_ns - 3600000000000")

    assert (fresh, find_run(runs, None).state) == ("running", "lost")
    assert RunReader(find_run(runs, None)).totals()[0].outcome == "killed"


@pytest.mark.skipif(not schema.has_proc(), reason="needs /proc")
def test_pid_that_another_process_has_taken_is_not_alive(program: Callable[..., Program], runs: Path) -> None:
    """A run whose process id belongs to somebody else by now was killed."""
    one = program()
    one.step(0)
    one.logs.force_flush()
    change(file_of(runs), "UPDATE process SET kernel_start = 'another boot:1'")

    assert find_run(runs, None).state == "killed"


# --- finding --------------------------------------------------------------------------------


def test_run_is_found_by_id_beginning_slug_name_or_as_the_newest(program: Callable[..., Program], runs: Path) -> None:
    """Whatever names one run is enough; a name that several bear means the newest of them."""
    for run_id, name in (("2026-a", "digits"), ("2026-b", "digits"), ("job/7", "gpt"), ("2026", "other")):
        ended(program, run_id, resource={"ml.run.name": name})

    wanted = ["2026-a", "2026", "job/7", "job", schema.run_slug("job/7"), "digits", "gpt", None]
    assert [find_run(runs, each).id for each in wanted] == [
        "2026-a", "2026", "job/7", "job/7", "job/7", "2026-b", "job/7", "2026",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("2026-", r"several runs begin with '2026-': 2026-b \(digits\), 2026-a \(digits\); type more"),
        ("2026-c", r"no run '2026-c' in .*; did you mean 2026-[ab] \(digits\), 2026-[ab] \(digits\)\? `otel-ml runs`"),
        ("digit", r"did you mean 2026-b \(digits\)\?"),
        ("zzz", r"the newest is 2026-b \(digits\)\?"),
        ("", r"no run '' in"),
    ],
)
def test_wrong_or_vague_run_is_refused_with_what_to_type(
    program: Callable[..., Program], runs: Path, wanted: str, message: str
) -> None:
    """A run that does not exist, or could be several, is answered with the near ones."""
    for run_id in ("2026-a", "2026-b"):
        ended(program, run_id)

    with pytest.raises(StoreError, match=message):
        find_run(runs, wanted)


def test_empty_store_says_how_to_record_a_run(runs: Path) -> None:
    """Asking for a run before there is one tells the line to type."""
    with pytest.raises(StoreError, match=r"no run in .*; type `otel-ml run script.py`"):
        find_run(runs, None)


# --- rows -----------------------------------------------------------------------------------


def test_spans_come_back_whole_by_time_name_and_step(program: Callable[..., Program], runs: Path) -> None:
    """A span has its ids, times, status, step, attributes, links and events; ranks are told apart."""
    for rank in (1, 0):
        one = program(resource={"ml.rank": rank})
        span = one.tracer.start_span(
            "ml.step",
            attributes={names.STEP_NUMBER: 4},
            links=[trace.Link(trace.SpanContext(1, 2, is_remote=False))],
            start_time=10 + rank,
        )
        span.add_event("e", {"k": True}, timestamp=12)
        context = trace.set_span_in_context(span)
        one.tracer.start_span("forward", context, attributes={names.STEP_NUMBER: 5}, start_time=30).end(31)
        span.end(20)
        one.end()

    reader = RunReader(runs / "run-1")
    first, second = reader.spans("ml.step")
    assert {key: value for key, value in asdict(first).items() if key not in {"trace_id", "span_id"}} == {
        "rank": 0, "pid": os.getpid(), "parent_span_id": None, "name": "ml.step", "kind": "internal",
        "start_unix_ns": 10, "end_unix_ns": 20, "status": "unset", "status_message": None, "step": 4,
        "attributes": {"ml.step.number": 4},
        "links": [{"trace_id": f"{1:032x}", "span_id": f"{2:016x}", "attributes": {}}],
        "events": [{"name": "e", "time_unix_ns": 12, "attributes": {"k": True}}],
    }  # fmt: skip
    assert (second.rank, second.start_unix_ns) == (1, 11)
    assert [(s.name, s.parent_span_id) for s in reader.spans(step=5)] == [
        ("forward", first.span_id), ("forward", second.span_id),
    ]  # fmt: skip
    assert reader.spans("forward", step=4) == []
    assert [s.name for s in reader.spans()] == ["ml.step", "ml.step", "forward", "forward"]


def test_logs_come_back_whole_by_time_and_event(program: Callable[..., Program], runs: Path) -> None:
    """A log has its time, event name, body, ids, step and attributes, unknown entries as None."""
    one = program()
    one.event(names.EVENT_STEPS, {names.STEP_NUMBER: [1, 2], "ml.training.loss": [None, 0.5]}, at=9)
    one.step(3, ml__training__loss=0.25)
    one.end()

    reader = RunReader(find_run(runs, None))
    assert [asdict(log) for log in reader.logs()] == [
        {
            "rank": 0, "pid": os.getpid(), "time_unix_ns": 4, "event_name": "ml.step", "severity_number": None,
            "body": "ml.step happened", "trace_id": None, "span_id": None, "step": 3,
            "attributes": {"ml.step.number": 3, "ml.training.loss": 0.25},
        },
        {
            "rank": 0, "pid": os.getpid(), "time_unix_ns": 9, "event_name": "ml.steps", "severity_number": None,
            "body": "ml.steps happened", "trace_id": None, "span_id": None, "step": None,
            "attributes": {"ml.step.number": [1, 2], "ml.training.loss": [None, 0.5]},
        },
    ]  # fmt: skip
    assert [log.time_unix_ns for log in reader.logs("ml.steps")] == [9]


def test_points_come_back_whole_and_the_latest_of_each_series(program: Callable[..., Program], runs: Path) -> None:
    """Every collection is there; `latest` keeps the last point of each series of each rank."""
    for rank in (0, 1):
        one = program(resource={"ml.rank": rank})
        counter = one.meter.create_counter("c", "{step}")
        for number in (1, 2):
            counter.add(number, {"k": "a"})
            counter.add(10 * number, {"k": "b"})
            one.metrics.force_flush()
        one.meter.create_histogram("h", explicit_bucket_boundaries_advisory=[1.0]).record(0.5)
        one.metrics.force_flush()
        change(
            file_of(runs) if rank == 0 else max((runs / "run-1").glob("*.sqlite"), key=_mtime),
            "UPDATE points SET min = 'nan'",
        )

    reader = RunReader(runs / "run-1")
    latest = reader.points("c", latest=True)
    assert sorted((p.rank, p.attributes["k"], p.value, p.kind, p.unit, p.temporality) for p in latest) == [
        (rank, key, value, "counter", "{step}", "cumulative") for rank in (0, 1) for key, value in (("a", 3), ("b", 30))
    ]
    assert len(reader.points("c")) == 12
    histogram = reader.points("h", latest=True)[0]
    assert (histogram.count, histogram.sum, histogram.max, histogram.buckets) == (
        1,
        0.5,
        0.5,
        {"bounds": [1.0], "counts": [1, 0]},
    )
    assert histogram.min != histogram.min
    assert {p.name for p in reader.points(latest=True)} == {"c", "h"}


def _mtime(path: Path) -> float:
    return max(Path(f"{path}{tail}").stat().st_mtime for tail in ("", "-wal"))


# --- totals ---------------------------------------------------------------------------------


def test_totals_are_what_the_process_said(program: Callable[..., Program], runs: Path) -> None:
    """After a goodbye each rank's totals come back as they were, by rank."""
    told = [
        RunTotals(rank=rank, steps=7, losses={"": LossCurve(1.0, 0.5, 0.25, 6)}, phases={"forward": 0.5})
        for rank in (0, 1)
    ]
    for totals in reversed(told):
        ended(program, resource={"ml.rank": totals.rank}, totals=totals.to_dict())

    assert RunReader(find_run(runs, None)).totals() == told


def silent(program: Callable[..., Program]) -> Program:
    """A program with everything that a run without a goodbye is judged by, in its last collection."""
    one = program(resource={"ml.framework.name": "torch"})
    meter = one.meter
    steps = meter.create_counter(names.STEPS.name)
    steps.add(4, {names.OUTCOME: "ok"})
    steps.add(1, {names.OUTCOME: "skipped", names.SKIP_REASON: "gradient_overflow"})
    for metric, value in ((names.SAMPLES, 40), (names.TOKENS, 400), (names.MICRO_BATCHES, 5), (names.RECORD_COUNT, 90)):
        meter.create_counter(metric.name).add(value)
    meter.create_counter(names.RECORD_DROPPED.name).add(2)
    meter.create_counter(names.ERROR_COUNT.name).add(1)
    meter.create_counter(names.DRAIN_DURATION.name).add(0.125)
    time_spent = meter.create_counter(names.RUN_TIME.name)
    time_spent.add(3.0, {names.TIME_CATEGORY: "productive"})
    time_spent.add(1.0, {names.TIME_CATEGORY: "startup"})
    meter.create_counter(names.NONFINITE.name).add(1, {names.SCALAR_NAME: "loss"})
    meter.create_gauge(names.MEMORY_PEAK.name).set(1000)
    meter.create_counter(names.RECOMPILES.name).add(1, {names.FUNCTION_NAME: "f"})
    durations = meter.create_histogram(names.STEP_DURATION.name)
    for seconds in (0.5, 0.25, 0.25, 0.25, 0.25):
        durations.record(seconds)
    phases = meter.create_histogram(names.PHASE_DURATION.name)
    phases.record(0.5, {names.PHASE: "forward"})
    phases.record(0.25, {names.PHASE: "forward"})
    phases.record(0.125, {names.PHASE: "residual"})
    meter.create_histogram(names.EVALUATION_DURATION.name).record(1.0)
    meter.create_histogram(names.COMPILE_DURATION.name).record(1.0)
    inference = meter.create_histogram(names.INFERENCE_DURATION.name)
    inference.record(0.5, {names.MODEL_NAME: "A"})
    inference.record(0.25, {names.MODEL_NAME: "B"})
    batch = meter.create_histogram(names.INFERENCE_BATCH_SIZE.name)
    batch.record(8)
    batch.record(4)
    for event in (names.EVENT_CHECKPOINT_SAVED, names.EVENT_CHECKPOINT_SAVED, names.EVENT_CHECKPOINT_LOADED):
        one.event(event)
    told: dict[str, Any] = {names.EXCEPTION_TYPE: "ValueError", names.EXCEPTION_MESSAGE: "no"}
    one.event(names.EVENT_EXCEPTION, told)
    verdict: dict[str, Any] = {
        names.DIAGNOSIS_VERDICT: "input-bound",
        names.DIAGNOSIS_EVIDENCE: "60 %",
        names.DIAGNOSIS_ADVICE: "workers",
    }
    one.event(names.EVENT_DIAGNOSIS, verdict)
    return one


def rebuilt(runs: Path) -> RunTotals:
    """The totals of the one process, as if it had been killed two seconds after its start."""
    path = file_of(runs)
    change(path, "UPDATE process SET kernel_start = 'another boot:1', started_unix_ns = 1000000000")
    for table, column in (("logs", "time_unix_ns"), ("points", "time_unix_ns"), ("spans", "end_unix_ns")):
        change(path, f"UPDATE {table} SET {column} = 3000000000")
    (totals,) = RunReader(path).totals()
    return totals


def test_totals_without_a_goodbye_are_rebuilt_from_the_last_collection(
    program: Callable[..., Program], runs: Path
) -> None:
    """With no step record left, counters and histograms tell what they can, and quantiles are not guessed."""
    silent(program).flush()

    assert rebuilt(runs) == RunTotals(
        run_id="run-1", run_name="digits", rank=0, world_size=2, host=os.uname().nodename, pid=os.getpid(),
        framework="torch", started_unix_ns=1_000_000_000, outcome="killed", error="ValueError: no", duration_s=2.0,
        steps=4, steps_skipped=1, samples=40, tokens=400, micro_batches=5,
        step_time=Distribution(5, 1.5, max_s=0.5), phases={"forward": 0.75, "residual": 0.125},
        time={"productive": 3.0, "startup": 1.0}, evaluations=1, inference=Distribution(2, 0.75, max_s=0.5),
        inference_samples=12, compiles=1, recompiles=1, checkpoints_saved=2, checkpoints_loaded=1,
        nonfinite={"loss": 1}, memory_peak_by=1000, records=90, records_dropped=2, errors=1, drain_cpu_s=0.125,
        verdict="input-bound", evidence="60 %", advice="workers",
    )  # fmt: skip


@pytest.mark.parametrize("requests", [1, 2, 5])
def test_of_totals_so_far_and_points_the_newer_win(program: Callable[..., Program], runs: Path, requests: int) -> None:
    """Totals that a process noted while it served are no goodbye, and tell what points do not know yet."""
    one = silent(program)
    served = Distribution(requests, 1.0, 0.125, 0.25, 0.375)
    noted = RunTotals(inference=served, inference_failed=1, time={"productive": 5.0}, compiles=requests, steps=1)
    one.writer.tell(noted.to_dict())
    one.flush()

    totals = rebuilt(runs)
    newest = served if requests >= 2 else Distribution(2, 0.75, max_s=0.5)
    assert (totals.inference, totals.inference_failed) == (newest, int(requests >= 2))
    assert (totals.time, totals.compiles) == ({"productive": 5.0}, requests)
    assert (totals.outcome, totals.steps, find_run(runs, None).steps, find_run(runs, None).state) == (
        "killed", 4, 5, "killed",
    )  # fmt: skip


def test_requests_that_nobody_counted_are_no_missing_training(program: Callable[..., Program], runs: Path) -> None:
    """A run that has spans of requests served, also where it was killed before anything told how many they were."""
    one = program()
    one.span(names.SPAN_INFERENCE)
    one.flush()

    totals = rebuilt(runs)
    assert (totals.inference.count, totals.verdict, totals.drain_cpu_s) == (0, "serving", None)


def test_step_records_newer_than_the_last_collection_win(program: Callable[..., Program], runs: Path) -> None:
    """Step records are on disk sooner than counters: steps, times, phases and losses are then theirs, exactly."""
    one = silent(program)
    one.step(
        0, ml__outcome="ok", ml__step__duration=0.5, ml__training__loss=2.0, ml__step__samples=10,
        ml__step__phase__forward=0.25,
    )  # fmt: skip
    one.event(
        names.EVENT_STEPS,
        {
            names.STEP_STRIDE: 1,
            names.OUTCOME: ["ok", "ok", "skipped", "ok", "ok"],
            names.STEP_DURATION_S: [0.25, 0.25, 0.125, 0.25, 0.25],
            names.LOSS.name: [1.0, float("nan"), None, 0.5, 0.75],
            names.STEP_SAMPLES: [10, 10, None, 10, 10],
            f"{names.STEP_PHASE}.forward": [0.125] * 5,
            names.MEMORY_PEAK.name: [None, None, 2000, None, None],
            names.STEP_NUMBER: [1, 2, 3, 4, 5],
        },
    )
    one.step(6, ml__outcome="failed", ml__step__duration=1.0, ml__training__loss=0.625)
    one.flush()

    totals = rebuilt(runs)
    assert (totals.steps, totals.steps_skipped, totals.steps_failed) == (5, 1, 1)
    assert (totals.samples, totals.samples_time_s, totals.tokens_time_s) == (50, 1.5, None)
    assert totals.losses == {"": LossCurve(2.0, 0.625, 0.5, 4)}
    assert totals.step_time == Distribution(7, 2.625, 0.25, 1.0, 1.0)
    assert totals.phases == {"forward": 0.875}
    assert (totals.memory_peak_by, totals.thinned, find_run(runs, None).steps) == (2000, False, 7)


def test_thinned_step_records_are_weighed_and_say_so(program: Callable[..., Program], runs: Path) -> None:
    """An entry that stands for several steps counts as many; what it does not tell is left out."""
    one = program()
    one.event(
        names.EVENT_STEPS,
        {
            names.STEP_STRIDE: 4,
            names.OUTCOME: ["ok", "skipped"],
            names.STEP_DURATION_S: [0.25, 0.5],
            f"{names.STEP_DURATION_S}.min": [0.125, 0.25],
            f"{names.STEP_DURATION_S}.max": [0.75, 0.625],
            f"{names.STEP_LOSS}.Adam": [2.0, 1.0],
            f"{names.STEP_LOSS}.Adam.min": [1.5, 0.5],
            f"{names.STEP_LOSS}.Adam.max": [3.0, 1.5],
            names.STEP_SAMPLES: [40, 30],
            f"{names.STEP_PHASE}.backward": [0.125, 0.25],
            names.STEP_NUMBER: [0, 4],
        },
    )
    one.flush()

    totals = rebuilt(runs)
    assert (totals.steps, totals.steps_skipped, totals.samples, totals.thinned) == (7, 1, 70, True)
    assert totals.losses == {"Adam": LossCurve(2.0, 1.0, 0.5, None)}
    assert totals.step_time == Distribution(8, 3.0, None, None, 0.75)
    assert totals.phases == {"backward": 1.5}
    assert find_run(runs, None).steps == 8


def test_a_loss_that_was_told_without_a_name_is_its_optimizers(program: Callable[..., Program], runs: Path) -> None:
    """One optimizer's loss is one curve, also where it was told without a name until a second one was met."""
    one = program()
    one.step(0, ml__outcome="ok", ml__step__duration=0.5, ml__training__loss=2.0)
    one.step(1, ml__outcome="ok", ml__step__duration=0.5, ml__training__loss=1.0)
    one.event(
        names.EVENT_STEPS,
        {
            names.STEP_STRIDE: 1,
            names.STEP_DURATION_S: [0.5, 0.5],
            names.STEP_LOSS_BEFORE: ["SGD#2", None],
            f"{names.STEP_LOSS}.SGD": [7.0, 8.0],
            f"{names.STEP_LOSS}.SGD#2": [1.5, 3.0],
            names.STEP_NUMBER: [2, 3],
        },
    )
    one.flush()

    assert rebuilt(runs).losses == {"SGD#2": LossCurve(2.0, 3.0, 1.0, 1), "SGD": LossCurve(7.0, 8.0, 7.0, 2)}


# --- copied, damaged, old and new files -----------------------------------------------------


@pytest.fixture
def locked() -> Iterator[Path]:
    """A folder that others may look into; `lock()` takes away the right to write, also to what is in it."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
        Path(name).chmod(0o700)


def lock(folder: Path) -> None:
    """Leave everybody the right to read only."""
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)


def test_copied_file_opens_anywhere(
    program: Callable[..., Program], runs: Path, locked: Path, unprivileged: Callable[[], Any]
) -> None:
    """One file of an ended run, copied to a folder that cannot be written to, is read like the run."""
    ended(program)
    copy = Path(shutil.copy(file_of(runs), locked / "copy.sqlite"))
    lock(locked)
    expected = RunReader(runs / "run-1").logs()

    with unprivileged():
        reader = RunReader(copy)
        assert (reader.logs(), reader.problems()) == (expected, [])


def live_copy(program: Callable[..., Program], runs: Path, there: Path, *tails: str) -> Path:
    """A copy of a live run's file, with those of the files beside it."""
    one = program()
    one.step(0)
    one.flush()
    change(file_of(runs), "PRAGMA wal_checkpoint(TRUNCATE)")
    one.step(1)
    one.flush()
    there.mkdir(exist_ok=True)
    for tail in ("", *tails):
        shutil.copy(f"{file_of(runs)}{tail}", there / f"copy.sqlite{tail}")
    return there / "copy.sqlite"


def test_copy_without_its_journal_says_what_is_missing(
    program: Callable[..., Program], runs: Path, tmp_path: Path
) -> None:
    """A file copied from a live run without its -wal shows what it has and says that the newest is not there."""
    reader = RunReader(live_copy(program, runs, tmp_path / "there"))

    assert [log.step for log in reader.logs()] == [0]
    assert reader.problems() == [
        "copy.sqlite: copy.sqlite-wal is missing: if the file was copied without it, the newest rows are not here"
    ]


def test_copy_with_its_journal_is_whole(program: Callable[..., Program], runs: Path, tmp_path: Path) -> None:
    """A file copied together with its -wal has everything, and has nothing to complain about."""
    reader = RunReader(live_copy(program, runs, tmp_path / "there", "-wal"))

    assert ([log.step for log in reader.logs()], reader.problems()) == ([0, 1], [])


def test_journal_that_cannot_be_read_here_is_said(
    program: Callable[..., Program], runs: Path, locked: Path, unprivileged: Callable[[], Any]
) -> None:
    """In a folder that cannot be written to, a -wal is left out, and the reader says what to do."""
    copy = live_copy(program, runs, locked, "-wal")
    lock(locked)

    with unprivileged():
        reader = RunReader(copy)
        assert [log.step for log in reader.logs()] == [0]
        assert reader.problems() == [
            "copy.sqlite: copy.sqlite-wal could not be read here: copy both files to a folder you may write to"
        ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a database at all, whoever wrote it" * 100, r"cannot be read \(file is not a database\).*runs rm run-1"),
        (b"", r"is empty: its process ended before it wrote anything; delete the run"),
        (None, r"cannot be read \(.*\); if it stays so, `sqlite3 .* \.recover` may save"),
    ],
    ids=["foreign", "empty", "torn"],
)
def test_damaged_file_is_refused_with_what_to_do(
    program: Callable[..., Program], runs: Path, content: bytes | None, message: str
) -> None:
    """A file that is not readable raises with the way out; the run is still listed, and can be deleted."""
    one = program()
    for number in range(200):
        one.step(number)
    one.end()
    path = file_of(runs)
    whole = path.read_bytes()
    path.write_bytes(whole[:5000] + b"\xff" * (len(whole) - 5000) if content is None else content)

    with pytest.raises(StoreError, match=message):
        RunReader(runs / "run-1")
    (run,) = list_runs(runs)
    assert (run.slug, run.state, run.processes, len(run.problems)) == ("run-1", "lost", (), 1)
    delete_run(runs, run)
    assert list_runs(runs) == []


def test_damaged_file_of_one_rank_leaves_the_others_readable(program: Callable[..., Program], runs: Path) -> None:
    """What can be read of a run is shown, and what cannot is named."""
    ended(program, resource={"ml.rank": 0})
    ended(program, resource={"ml.rank": 1})
    broken = next((runs / "run-1").glob("rank1-*"))
    broken.write_bytes(b"x" * 9000)

    reader = RunReader(find_run(runs, None))
    assert [log.rank for log in reader.logs()] == [0]
    (problem,) = reader.problems()
    assert broken.name in problem


def test_file_of_a_newer_version_is_refused(program: Callable[..., Program], runs: Path) -> None:
    """A run of a later otel-ml is named as such, with what to type, and stays as it is."""
    ended(program)
    change(file_of(runs), "PRAGMA user_version = 999")
    before = file_of(runs).read_bytes()

    with pytest.raises(NewerStoreError, match=r"rank0-.*schema 999.*pip install --upgrade otel-ml"):
        RunReader(runs / "run-1")
    assert "schema 999" in find_run(runs, None).problems[0]
    assert file_of(runs).read_bytes() == before


def test_file_of_an_older_version_is_read_and_left_as_it_is(
    program: Callable[..., Program], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Migrations that a file lacks are made on a copy in memory."""

    def m002_renames(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE process SET run_name = 'migrated'")

    ended(program)
    before = file_of(runs).read_bytes()
    migrations = [*schema.MIGRATIONS, m002_renames]
    for module in (schema, opening):
        monkeypatch.setattr(module, "MIGRATIONS", migrations)

    assert find_run(runs, None).name == "migrated"
    assert file_of(runs).read_bytes() == before


def test_missing_run_is_refused(tmp_path: Path) -> None:
    """A folder without a run, or nothing at all, raises."""
    for path in (tmp_path, tmp_path / "absent.sqlite"):
        with pytest.raises(StoreError, match="holds no run"):
            RunReader(path)


# --- deleting -------------------------------------------------------------------------------


def test_delete_takes_a_run_and_nothing_else(program: Callable[..., Program], runs: Path) -> None:
    """A run's files go, and its folder unless somebody keeps something there."""
    for run_id in ("a", "b", "c"):
        ended(program, run_id)
    (runs / "b" / "mine.txt").write_text("keep")
    for run_id in ("a", "b"):
        delete_run(runs, find_run(runs, run_id))

    assert sorted(str(path.relative_to(runs)) for path in runs.rglob("*.*") if path.parent.name != "c") == [
        "b/mine.txt"
    ]
    assert [run.id for run in list_runs(runs)] == ["c"]


def test_live_run_is_not_deleted(program: Callable[..., Program], runs: Path) -> None:
    """A run whose process lives is refused, also when it began after it was looked up."""
    ended(program)
    looked_up = find_run(runs, None)
    one = program()
    one.step(0)
    one.flush()

    with pytest.raises(StoreError, match=rf"run run-1 is still running \(process {os.getpid()} on .*\); stop it first"):
        delete_run(runs, looked_up)
    assert len(list((runs / "run-1").glob("*.sqlite"))) == 2


@pytest.mark.parametrize("slug", ["..", ".", "", "../other", "/etc", "link"])
def test_delete_never_leaves_the_store(program: Callable[..., Program], runs: Path, tmp_path: Path, slug: str) -> None:
    """A run whose path is not directly in the store's folder is refused, symbolic links included."""
    ended(program, directory=tmp_path / "other")
    ended(program)
    (runs / "link").symlink_to(tmp_path / "other" / "run-1")
    run = replace(find_run(runs, None), slug=slug, path=runs / slug)
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(StoreError, match=r"is not a run of .*; nothing was deleted"):
        delete_run(runs, run)
    assert sorted(tmp_path.rglob("*")) == before


def test_reader_needs_neither_sdk_nor_framework(program: Callable[..., Program], runs: Path) -> None:
    """Reading a run loads the standard library and nothing of OpenTelemetry, protobuf, torch or jax."""
    ended(program)
    source = f"""
import sys
from pathlib import Path
from otel_ml.store.reader import RunReader
from otel_ml.store.runs import find_run
reader = RunReader(find_run(Path({str(runs)!r}), None))
assert [log.step for log in reader.logs("ml.step")] == [0] and len(reader.totals()) == 1
print(sorted({{"opentelemetry", "google", "torch", "jax", "numpy"}} & set(sys.modules)))
"""
    root = Path(names.__file__).parents[1]
    out = subprocess.run(
        [sys.executable, "-c", source],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert out.stdout == "[]\n"
