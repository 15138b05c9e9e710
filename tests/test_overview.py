"""The summary: whole pages at a fixed width, what a run is merged from, and the JSON's keys."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from rich.cells import cell_len

from otel_ml import overview
from otel_ml.overview import print_run, print_totals, to_json
from otel_ml.overview.merged import Merged, diagnosis, merged
from otel_ml.overview.words import literal, number, rate, size
from otel_ml.store.ending import Ending
from otel_ml.store.writer import StoreWriter
from otel_ml.totals import Distribution, LossCurve, RunTotals

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

TRAINED = RunTotals(
    run_id="20261121-124003-7f3a9c",
    run_name="train.py",
    host="box",
    pid=4242,
    framework="torch",
    started_unix_ns=1_795_264_803_000_000_000,
    ended_unix_ns=1_795_264_995_300_000_000,
    outcome="finished",
    exit_code=0,
    duration_s=192.3,
    steps=4000,
    samples=256_000,
    tokens=16_384_000,
    micro_batches=4000,
    losses={"": LossCurve(4.17441, 1.93412, 1.93121, 3812)},
    step_time=Distribution(4000, 140.2, 0.0182, 0.0249, 1.31),
    phases={"data_wait": 20.1, "forward": 48.2, "backward": 60.1, "optimizer": 9.2, "residual": 2.6},
    time={
        "productive": 120.1, "startup": 4.1, "data_wait": 20.1, "compile": 12.2, "checkpoint": 3.0,
        "evaluation": 25.0, "skipped": 0.3, "other": 7.5,
    },
    evaluations=10,
    compiles=3,
    checkpoints_saved=4,
    memory_peak_by=1_288_490_188,
    records=48_210,
    drain_cpu_s=0.412,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _a_plain_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """80 columns, no colour forced, and the clock in UTC."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def page(*totals: RunTotals, encoding: str = "utf-8") -> str:
    """What `print_totals` writes to a stream of that encoding."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_totals(totals, stream)
    stream.seek(0)
    return stream.read()


def shown(run: Merged | None) -> str:
    """What is written of a merged run, as the launcher's summary does."""
    stream = io.StringIO()
    overview._print(run, stream, whole=True)
    return stream.getvalue()


def stored(directory: Path, totals: RunTotals) -> None:
    """A process of a run on disk, through the writer itself; it says goodbye unless it is running."""
    writer = StoreWriter(directory, totals.run_id, run_bytes=10_000_000, total_bytes=100_000_000, total_age_s=1e9)
    provider = LoggerProvider(Resource({"ml.run.id": totals.run_id}), shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(writer.log_exporter))
    writer.open_gate()
    provider.get_logger("test").emit(event_name="ml.run.started", timestamp=totals.started_unix_ns)
    if totals.outcome != "running":
        ended = totals.ended_unix_ns or 0
        writer.finish(totals=totals.to_dict(), ended_unix_ns=ended, outcome=totals.outcome, exit_code=None)
    writer.close()


def line(text: str, start: str) -> str:
    """The one line of a page that starts so."""
    (found,) = [each.strip() for each in text.splitlines() if each.strip().startswith(start)]
    return found


def test_a_training_run_at_80_columns() -> None:
    """Everything a training run has to say fits one screen of 80 columns."""
    assert (
        page(TRAINED)
        == """
━━ train.py ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━ otel-ml ━━

  ✓ finished in 3m12s, exit code 0

  run         20261121-124003-7f3a9c · 2026-11-21 12:40:03

  steps       4,000
  throughput  1,826 samples/s · 117k tokens/s
  loss        4.174 → 1.934 · best 1.931 at step 3,812
  step time   18.2 ms p50 · 24.9 ms p95 · 1.31 s max
  also        10 evaluations · 4 checkpoints saved · 3 compilations
  memory      1.20 GiB peak

  the run's time  3m12s
  ███████████████████████████████████████████████▒▒▒▒▒▒▒▒▚▚▚▚▚▞▓▓▓▓▓▓▓▓▓▓░░···
  █ productive  2m00s  62%   ▒ data wait  20.1 s  10%   ▚ compile    12.2 s 6.3%
  ▞ checkpoint 3.00 s 1.6%   ▓ evaluation 25.0 s  13%   ░ startup    4.10 s 2.1%
  ▄ skipped    300 ms 0.2%   · other      7.50 s 3.9%

  a step's time  35.0 ms on average
  ▒▒▒▒▒▒▒▒▒▒▒██████████████████████████▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓░░░░░·
  ▒ data wait 5.03 ms  14%   █ forward   12.1 ms  34%   ▓ backward  15.0 ms  43%
  ░ optimizer 2.30 ms 6.6%   · residual   650 µs 1.9%

  verdict     compute-bound
              Forward, backward and optimizer are 84% of step time (29.4 ms of
              35.0 ms a step); the most is backward, 43%.
  try         Try torch.compile(model), then mixed precision (torch.autocast).

  our cost    412 ms of CPU (0.2% of the run), 48,210 records, none dropped
  next        otel-ml report 20261121-124003-7f3a9c
"""
    )


def test_two_losses_at_120_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GAN shows a loss for each optimizer; a wider terminal gets longer bars and fewer lines."""
    monkeypatch.setenv("COLUMNS", "120")
    gan = replace(
        TRAINED,
        run_name="gan.py",
        tokens=None,
        micro_batches=12_000,
        losses={"Adam 1": LossCurve(0.6931, 0.4121, 0.4011, 3999), "RMSprop": LossCurve(1.2, 2.31, 0.61, 120)},
        phases={"data_wait": 80.1, "forward": 20.2, "backward": 30.1, "optimizer": 5.0, "residual": 4.8},
    )
    assert (
        page(gan)
        == """
━━ gan.py ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━ otel-ml ━━

  ✓ finished in 3m12s, exit code 0

  run         20261121-124003-7f3a9c · 2026-11-21 12:40:03

  steps       4,000 · 3 backward passes each
  throughput  1,826 samples/s
  loss        Adam 1   0.6931 → 0.4121 · best 0.4011 at step 3,999
  loss        RMSprop  1.2 → 2.31 · best 0.61 at step 120
  step time   18.2 ms p50 · 24.9 ms p95 · 1.31 s max
  also        10 evaluations · 4 checkpoints saved · 3 compilations
  memory      1.20 GiB peak

  the run's time  3m12s
  ████████████████████████████████████████████████████████████████████████▒▒▒▒▒▒▒▒▒▒▒▒▒▚▚▚▚▚▚▚▞▞▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓░░·····
  █ productive  2m00s  62%   ▒ data wait  20.1 s  10%   ▚ compile    12.2 s 6.3%   ▞ checkpoint 3.00 s 1.6%
  ▓ evaluation 25.0 s  13%   ░ startup    4.10 s 2.1%   ▄ skipped    300 ms 0.2%   · other      7.50 s 3.9%

  a step's time  35.0 ms on average
  ▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒█████████████████▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓░░░░····
  ▒ data wait 20.0 ms  57%   █ forward   5.05 ms  14%   ▓ backward  7.53 ms  21%   ░ optimizer 1.25 ms 3.6%
  · residual  1.20 ms 3.4%

  verdict     input-bound
              Waiting for the next batch is 57% of step time (20.0 ms of 35.0 ms a step).
  try         Raise the DataLoader's num_workers (with persistent_workers=True) until data wait stops falling; with an
              accelerator, pin_memory=True as well.

  our cost    412 ms of CPU (0.2% of the run), 48,210 records, none dropped
  next        otel-ml report 20261121-124003-7f3a9c
"""
    )


def test_a_serving_process_in_ascii() -> None:
    """Requests and latency take the place of steps; a stream without Unicode gets ASCII alone."""
    served = RunTotals(
        run_id="20261121-124003-7f3a9c",
        run_name="serve_modèle.py",
        outcome="interrupted",
        signal=2,
        duration_s=195.8,
        inference=Distribution(1204, 3.8, 0.00031, 0.0042, 0.21),
        inference_samples=1204,
        time={"productive": 3.8, "startup": 12.0, "other": 180.0},
        records=2408,
        drain_cpu_s=0.02,
    )
    assert (
        page(served, encoding="ascii")
        == r"""
-- serve_mod\xe8le.py ----------------------------------------------- otel-ml --

  x interrupted by signal 2 (SIGINT) after 3m16s

  run         20261121-124003-7f3a9c

  requests    1,204 | 6.15 requests/s | 1 sample each
  latency     310 us p50 | 4.20 ms p95 | 210 ms max

  the run's time  3m16s
  #sssss......................................................................
  # productive 3.80 s 1.9%   s startup    12.0 s 6.1%   . other       3m00s  92%

  verdict     serving
              1,204 requests and no training step; half took at most 310 us,
              95% at most 4.20 ms; the model was busy 1.9% of the time; 1
              sample a request.
  try         Collect requests that arrive together into one batch: one
              forward pass then serves several.

  our cost    20.0 ms of CPU (<0.1% of the run), 2,408 records, none dropped
  next        otel-ml report 20261121-124003-7f3a9c
"""
    )


def test_requests_that_failed_are_told() -> None:
    """Of the requests, those that an exception ended are told; one request, or step, is not called several."""
    one = Distribution(1, 0.5, 0.5, 0.5, 0.5)
    served = Distribution(20, 1.0)
    shown_first = RunTotals(pid=1, duration_s=4.0, inference=served, inference_failed=2, inference_samples=36)
    text = page(shown_first, RunTotals(pid=2, inference=one), RunTotals(pid=3, steps=1, rank=1))
    assert [line(text, key) for key in ("requests", "20 requests", "others", "rank 1")] == [
        "requests    20 · 2 failed · 5.00 requests/s · 2 samples each",
        "20 requests (2 failed) and no training step; the model was busy",
        "others      pid 2   1 request · running",
        "rank 1  1 step · running",
    ]
    assert diagnosis(RunTotals(inference=one)).evidence.startswith("1 request and no training step;")


def test_what_the_program_named_is_shown_literally() -> None:
    """Markup, control characters and lone surrogates in names and errors never reach the terminal as such."""
    hostile = "[red]x[/red]\x1b[2J\n\x9b\u202e:smile:\udc80"
    text = page(replace(TRAINED, run_name=hostile, run_id="a b", outcome="failed", exit_code=1, error=hostile))
    escaped = r"[red]x[/red]\x1b[2J\n\x9b\u202e:smile:\udc80"
    assert escaped in line(text, "━━ ")
    assert line(text, "[red]") == escaped
    assert line(text, "next") == "next        otel-ml report 'a b'"
    assert text.replace("\n", "").isprintable()


def test_a_long_error_is_cut_and_a_long_name_too() -> None:
    """An error takes three lines at most, a name one, and no line is wider than the terminal."""
    text = page(replace(TRAINED, run_name="長" * 99, outcome="failed", exit_code=1, error="word " * 200))
    assert sum("word word" in each for each in text.splitlines()) == 3
    assert "…" in line(text, "━━")
    assert max(cell_len(each) for each in text.splitlines()) <= 80


def test_a_terminal_gets_colour_and_solid_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """With colour the parts of a bar differ by colour; NO_COLOR brings the patterns back."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = page(TRAINED)
    monkeypatch.setenv("NO_COLOR", "1")
    plain = page(TRAINED)
    assert ("\x1b[32m█" in coloured, "▒" in coloured) == (True, False)
    assert ("\x1b[32m" in plain, "▒▒▒" in plain) == (False, True)


def test_other_ranks_are_a_line_each_and_the_run_fails_by_its_worst() -> None:
    """Rank 0 is shown; a rank that failed makes the run fail and is named with its error."""
    ranks = [
        replace(TRAINED, rank=2, world_size=4, steps=3120, outcome="failed", exit_code=1, error="RuntimeError: closed"),
        replace(TRAINED, rank=0, world_size=4),
        replace(TRAINED, rank=1, world_size=4, step_time=Distribution(4000, 141.0, 0.0184, 0.025, 1.2)),
    ]
    text = shown(merged(ranks))
    head, rest = text.split("  steps  ")
    assert (
        head
        == """
━━ train.py ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━ otel-ml ━━

  ✗ failed after 3m12s: rank 2 failed
    rank 2: RuntimeError: closed

  run         20261121-124003-7f3a9c · rank 0 of 4 · 2026-11-21 12:40:03

"""
    )
    assert (
        """
  others      rank 1  4,000 steps · 18.4 ms p50 · finished
              rank 2  3,120 steps · 18.2 ms p50 · failed
"""
        in rest
    )
    assert line(text, "▲") == "▲ 1 of 4 ranks left no record in this folder."
    assert "▲" not in page(*ranks)  # a process that knows only itself misses no rank


def test_of_many_ranks_the_slow_ones_are_listed() -> None:
    """Eight lines at most, for those that differ, and one that sums up the rest."""
    ranks = [
        replace(TRAINED, rank=n, world_size=64, step_time=replace(TRAINED.step_time, p50_s=0.018 + n / 10_000))
        for n in range(64)
    ]
    ranks[5].outcome = "running"
    lines = page(*ranks).splitlines()
    start = next(n for n, each in enumerate(lines) if "others" in each)
    assert [each.strip() for each in lines[start : start + 9]] == [
        "others      rank 5   4,000 steps · 18.5 ms p50 · running",
        *(f"rank {n}  4,000 steps · {18 + n / 10:.1f} ms p50 · finished" for n in range(57, 64)),
        "and 55 more: finished, 18.1 ms to 23.6 ms p50",
    ]


def test_the_last_attempt_is_shown_and_the_one_before_listed() -> None:
    """After a restart the run is what its last attempt did; how the first one ended stays a line."""
    first = replace(TRAINED, rank=0, outcome="killed", signal=9, steps=90_000, error="lost")
    text = page(first, replace(TRAINED, rank=0, attempt=1))
    assert [line(text, key) for key in ("✓", "run  ", "others")] == [
        "✓ finished in 3m12s, exit code 0",
        "run         20261121-124003-7f3a9c · attempt 1 · 2026-11-21 12:40:03",
        "others      attempt 0, rank 0  90,000 steps · 18.2 ms p50 · SIGKILL",
    ]


@pytest.mark.parametrize(
    ("outcome", "exit_code", "signal", "first_line"),
    [
        ("running", None, 9, "✗ killed by signal 9 (SIGKILL) after 3m12s"),
        ("running", None, 15, "✗ killed by signal 15 (SIGTERM) after 3m12s"),
        ("interrupted", None, 2, "■ interrupted by signal 2 (SIGINT) after 3m12s"),
        ("running", None, 99, "✗ killed by signal 99 after 3m12s"),
        ("finished", 3, None, "✗ failed after 3m12s, exit code 3"),
        ("interrupted", 130, None, "■ interrupted after 3m12s, exit code 130"),
        ("running", 0, None, "✓ finished in 3m12s, exit code 0"),
        ("failed", 0, None, "✓ finished in 3m12s, exit code 0"),
    ],
)
def test_the_launcher_knows_how_its_child_ended(
    outcome: str, exit_code: int | None, signal: int | None, first_line: str
) -> None:
    """What the launcher saw of its child overrules what the program could say of itself."""
    text = shown(merged([replace(TRAINED, outcome=outcome, exit_code=None)], Ending(exit_code, signal, 0)))
    assert text.splitlines()[3].strip() == first_line


@pytest.mark.parametrize(
    ("outcome", "first_line"),
    [("running", "● running for 3m12s"), ("killed", "✗ killed after 3m12s (it ended without a word)")],
)
def test_a_run_that_has_not_said_how_it_ended(outcome: str, first_line: str) -> None:
    """No exit code is made up for a run that lives or died silently."""
    assert page(replace(TRAINED, outcome=outcome, exit_code=None)).splitlines()[3].strip() == first_line


def test_the_launcher_prints_what_the_store_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One page for all ranks of the run, ended as the launcher saw it; to stderr unless told otherwise."""
    for rank in (1, 0):
        stored(tmp_path, replace(TRAINED, rank=rank, world_size=2, exit_code=None, steps=4000 + rank))
    print_run(tmp_path, TRAINED.run_id, ending=Ending(3, None, 0))
    printed = capsys.readouterr()
    assert (line(printed.err, "✗"), line(printed.err, "others"), printed.out) == (
        "✗ failed after 3m12s, exit code 3",
        "others      rank 1  4,001 steps · 18.2 ms p50 · finished",
        "",
    )


def test_a_child_that_was_killed_left_only_its_rows(tmp_path: Path) -> None:
    """A process that never said goodbye is shown from its rows, killed by the signal that the launcher saw."""
    stored(tmp_path, replace(TRAINED, outcome="running"))
    stream = io.StringIO()
    print_run(tmp_path, TRAINED.run_id, ending=Ending(None, 9, 0), file=stream)
    assert line(stream.getvalue(), "✗").startswith("✗ killed by signal 9 (SIGKILL) after ")


@pytest.mark.parametrize("run_id", ["2026", "train.py", "other", "../x"])
def test_a_run_that_left_nothing_prints_nothing(
    tmp_path: Path, run_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program that never trained has no summary, and never gets another run's."""
    stored(tmp_path, TRAINED)
    print_run(tmp_path, run_id, ending=Ending(0, None, 0))
    print_run(tmp_path / "none", run_id, ending=Ending(0, None, 0))
    assert capsys.readouterr() == ("", "")


def test_warnings_are_a_sentence_each() -> None:
    """What casts doubt on the run or on our figures is said, each on its own line."""
    doubtful = replace(
        TRAINED,
        steps_skipped=3,
        steps_failed=1,
        nonfinite={"loss": 37, "grad_norm": 1, "other": 0},
        recompiles=7,
        thinned=True,
        records_dropped=12,
        errors=1,
        losses={"": LossCurve()},
    )
    text = shown(merged([doubtful], Ending(None, 9, 0)))
    assert [line(text, "steps"), line(text, "loss  "), line(text, "our cost")] == [
        "steps       4,000 · 3 skipped · 1 failed",
        "loss        never finite",
        "our cost    412 ms of CPU (0.2% of the run), 48,210 records, 12 dropped",
    ]
    warnings = text[text.index("  ▲") : text.index("  verdict")]
    assert (
        warnings
        == """\
  ▲ loss was NaN or infinite 37 times.
  ▲ grad_norm was NaN or infinite once.
  ▲ 3 of 4,004 steps changed nothing: the gradients overflowed.
  ▲ Compiled functions were compiled again 7 times.
  ▲ Unless someone sent SIGKILL, the kernel ran out of memory: see dmesg.
  ▲ Steps were too fast to keep each: the curve is thinned, counts and times
    are exact.
  ▲ 12 of our records were dropped: counts and times are too low.
  ▲ otel-ml met 1 error of its own; figures may miss.

"""
    )


def test_a_recorded_verdict_is_kept() -> None:
    """The report repeats the verdict that the run's own event carried."""
    text = page(replace(TRAINED, verdict="input-bound", evidence="As measured then.", advice="Do this."))
    assert (
        text[text.index("  verdict") : text.index("  our cost")]
        == """\
  verdict     input-bound
              As measured then.
  try         Do this.

"""
    )


def test_a_run_of_which_little_is_known() -> None:
    """Rows without a figure are left out rather than filled with zeros."""
    assert (
        page(RunTotals(run_id="r", outcome="running", duration_s=2.0))
        == """
━━ r ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━ otel-ml ━━

  ● running for 2.00 s

  run         r

  verdict     no training step seen
              No optimizer stepped and no backward pass came round in 2.00 s.
  try         If the program trains in a way that is not seen (torch.func, a
              custom engine), run `otel-ml doctor`.

  our cost    0 s of CPU (0% of the run), 0 records, none dropped
  next        otel-ml report r
"""
    )


def test_nothing_is_printed_where_there_is_nothing_or_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No totals, no text; a program without a stderr is left in peace."""
    assert page() == ""
    monkeypatch.setattr("sys.stderr", None)
    print_totals([TRAINED])


@pytest.mark.parametrize("columns", [20, 40, 60, 100, 300])
def test_every_width_is_drawn(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """No terminal is too narrow, and on a very wide one the page stays readable."""
    monkeypatch.setenv("COLUMNS", str(columns))
    widest = max(len(each) for each in page(TRAINED).splitlines())
    assert widest <= max(min(columns, 120), 72)


def test_unforeseen_categories_are_drawn_as_well() -> None:
    """A category that a newer otel-ml recorded has its place in the bar and the legend."""
    text = page(replace(TRAINED, time={"productive": 1.0, "lost_in_space": 1.0}))
    bar, legend = text[text.index("the run's time") :].splitlines()[1:3]
    assert (bar.strip(), legend.strip()) == (
        "█" * 38 + "▂" * 38,
        "█ productive    1.00 s 50%   ▂ lost in space 1.00 s 50%",
    )


def keys(value: Any) -> Any:
    """The keys of nested objects, without their values."""
    return {key: keys(each) for key, each in value.items()} if isinstance(value, dict) else None


def test_the_json_has_the_documented_keys_and_no_nan() -> None:
    """What `--json` prints is strict JSON: a value that was not finite is null."""
    ranks: Sequence[RunTotals] = [
        replace(TRAINED, rank=1, outcome="failed", error="E: x"),
        replace(TRAINED, rank=0, losses={"": LossCurve(float("nan"), 1.0, 1.0, 2)}),
    ]
    data = json.loads(to_json(ranks), parse_constant=pytest.fail)
    processes = data.pop("processes")
    assert data == {
        "schema": 1,
        "run": {
            "id": "20261121-124003-7f3a9c",
            "name": "train.py",
            "outcome": "failed",
            "exit_code": None,
            "signal": None,
            "error": "E: x",
            "started_unix_ns": 1_795_264_803_000_000_000,
            "ended_unix_ns": 1_795_264_995_300_000_000,
            "duration_s": 192.3,
        },
        "rates": {
            "samples_per_s": 256_000 / 140.2,
            "tokens_per_s": 16_384_000 / 140.2,
            "requests_per_s": None,
            "overhead": 0.412 / 192.3,
        },
        "diagnosis": {
            "verdict": "compute-bound",
            "evidence": "Forward, backward and optimizer are 84% of step time (29.4 ms of 35.0 ms a step); "
            "the most is backward, 43%.",
            "advice": "Try torch.compile(model), then mixed precision (torch.autocast).",
        },
    }
    assert [(p["rank"], p["outcome"], p["losses"][""]["first"]) for p in processes] == [
        (0, "finished", None),
        (1, "failed", 4.17441),
    ]
    assert keys(processes[0]) == keys(TRAINED.to_dict())


def test_rates_are_of_the_steps_that_know_their_samples() -> None:
    """Samples a second are of the time of the steps whose samples are known, not of all steps' time."""
    some = replace(TRAINED, samples=1000, samples_time_s=0.5, tokens=2000, tokens_time_s=0.25)
    rates = json.loads(to_json([some]))["rates"]
    assert (rates["samples_per_s"], rates["tokens_per_s"]) == (2000.0, 8000.0)
    assert "2,000 samples/s" in page(some)


def test_the_json_of_no_process_has_the_same_keys() -> None:
    """A run that left nothing is null, not an error."""
    assert json.loads(to_json([])) == {"schema": 1, "run": None, "rates": None, "diagnosis": None, "processes": []}


def test_figures_read_as_people_write_them() -> None:
    """Sizes, rates and losses have three or four digits and a unit that fits."""
    assert [size(v) for v in (0, 512, 1000, 98_304, 1_288_490_188, 5 * 1024**4)] == [
        "0 B", "512 B", "0.977 KiB", "96.0 KiB", "1.20 GiB", "5.00 TiB",
    ]  # fmt: skip
    assert [rate(v) for v in (0.05, 1.25, 48.2, 117, 1204, 9999.4, 78_300, 999_600, 1.25e6)] == [
        "0.0500", "1.25", "48.2", "117", "1,204", "9,999", "78.3k", "1.00M", "1.25M",
    ]  # fmt: skip
    assert [number(v) for v in (1.93412, 0.0123, 12_345.6, 1.23e-5, -3.0, 2e12)] == [
        "1.934", "0.0123", "12,346", "1.23e-05", "-3", "2e+12",
    ]  # fmt: skip


def test_literal_text_fits_its_encoding() -> None:
    """What an encoding lacks is an escape; what it has stays."""
    assert [literal("é模\t", encoding) for encoding in ("utf-8", "latin-1", "ascii")] == [
        "é模\\t", "é\\u6a21\\t", "\\xe9\\u6a21\\t",
    ]  # fmt: skip
