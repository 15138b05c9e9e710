"""What the page says of a run, from its name to the line to type next."""

from __future__ import annotations

import shlex
import signal as signals
from datetime import datetime
from typing import TYPE_CHECKING

from otel_ml.overview.merged import diagnosis, over, while_training
from otel_ml.overview.page import CATEGORIES, KEY_WIDTH, PHASES
from otel_ml.overview.words import number, rate, size
from otel_ml.watch.diagnosis import percent, seconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.text import Text

    from otel_ml.overview.merged import Merged
    from otel_ml.overview.page import Page
    from otel_ml.totals import LossCurve, RunTotals

__all__ = ["draw"]

VALUES_SHOWN = 8  # lines for what the program recorded, likewise
LOSSES_SHOWN = 8  # lines for optimizers, before the rest is one line
OTHERS_SHOWN = 8  # lines for other processes before the rest is one line
ERROR_LINES = 3
CALM_VERDICTS = ("compute-bound", "no bottleneck found", "serving")


def draw(page: Page, run: Merged, *, whole: bool, also: Sequence[tuple[str, str]] = ()) -> None:
    """The whole page, from the run's name to the line to type next."""
    shown = run.shown
    page.blank()
    _heading(page, shown)
    page.blank()
    _outcome(page, run)
    page.blank()
    _training(page, shown)
    _values(page, shown)
    _serving(page, shown)
    _around(page, shown)
    _others(page, run)
    page.bar(
        page.text(("the run's time", "bold"), (f"  {seconds(sum(shown.time.values()))}", "dim")),
        shown.time,
        CATEGORIES,
    )
    count = shown.step_time.count
    if count:
        mean = seconds(shown.step_time.total_s / count)
        title = page.text(("a step's time", "bold"), (f"  {mean} on average", "dim"))
        page.bar(title, shown.phases, PHASES, parts=count)
    warnings = [*((sentence, "") for sentence in _warnings(run, whole=whole)), *also]
    if warnings:
        page.blank()
    for warning, command in warnings:
        page.sentence(page.signs.warning, page.text(warning), "yellow")
        if command:  # never wrapped: it is there to be copied
            page.lines.append(page.text("    ", (command, "cyan")))
    page.blank()
    verdict = diagnosis(shown)
    style = "bold green" if verdict.verdict in CALM_VERDICTS else "bold yellow"
    page.row("verdict", page.text((verdict.verdict, style)))
    page.row("", page.text(verdict.evidence))
    page.row("try", page.text(verdict.advice))
    page.blank()
    _footer(page, shown)


def _heading(page: Page, shown: RunTotals) -> None:
    from rich.cells import cell_len, set_cell_size

    signs = page.signs
    name, room = page.safe(shown.run_name or shown.run_id or "run"), page.width - 20
    if cell_len(name) > room:
        name = set_cell_size(name, room - len(signs.cut)).rstrip() + signs.cut
    line = page.text((signs.rule * 2, "dim"), " ", (name, "bold"), " ")
    line.append(signs.rule * (page.width - cell_len(name) - 15), "dim")
    page.lines.append(line.append(" otel-ml ").append(signs.rule * 2, "dim"))


def _outcome(page: Page, run: Merged) -> None:
    shown, signs = run.shown, page.signs
    took = seconds(run.duration_s)
    by_signal = f" by {_signal(run.signal)}" if run.signal is not None else ""
    sign, style, words = {
        "finished": (signs.good, "green", f"finished in {took}"),
        "failed": (signs.bad, "red", f"failed after {took}"),
        "interrupted": (signs.stopped, "yellow", f"interrupted{by_signal} after {took}"),
        "killed": (signs.bad, "red", f"killed{by_signal} after {took}"),
        "running": (signs.live, "cyan", f"running for {took}"),
    }.get(run.outcome, (signs.stopped, "yellow", f"{run.outcome} after {took}"))
    if run.exit_code is not None:
        words += f", exit code {run.exit_code}"
    elif run.culprit is not None:
        words += f": {_whose(run.culprit)} {run.culprit.outcome}"
    elif run.outcome == "killed" and run.signal is None:
        words += " (it ended without a word)"
    page.sentence(sign, page.text((words, f"bold {style}")), f"bold {style}")
    if run.error is not None:
        whose = f"{_whose(run.error_from)}: " if run.error_from else ""
        page.sentence(" ", page.text(whose, (run.error, "red")), "", at_most=ERROR_LINES)
    page.blank()
    started = datetime.fromtimestamp(run.started_unix_ns / 1e9).astimezone()
    about = (
        shown.run_id,
        f"attempt {shown.attempt}" if shown.attempt else "",
        f"rank {shown.rank} of {shown.world_size}" if shown.world_size and shown.world_size > 1 else "",
        f"{started:%Y-%m-%d %H:%M:%S}" if run.started_unix_ns else "",
    )
    if any(about):
        page.row("run", page.facts(*((part, "") for part in about), style=""))


def _training(page: Page, shown: RunTotals) -> None:
    seen = shown.steps + shown.steps_skipped + shown.steps_failed
    if not seen:
        return
    backwards = shown.micro_batches / seen
    steps = (
        (f"{shown.steps:,}", ""),
        (f"{shown.steps_skipped:,}" if shown.steps_skipped else "", "skipped"),
        (f"{shown.steps_failed:,}" if shown.steps_failed else "", "failed"),
        (f"{backwards:.3g}" if backwards >= 1.5 else "", "backward passes each"),
    )
    page.row("steps", page.facts(*steps))
    samples = while_training(shown, shown.samples, shown.samples_time_s)
    tokens = while_training(shown, shown.tokens, shown.tokens_time_s)
    if samples is not None or tokens is not None:
        throughput = (
            (rate(samples) if samples is not None else "", "samples/s"),
            (rate(tokens) if tokens is not None else "", "tokens/s"),
        )
        page.row("throughput", page.facts(*throughput))
    names = max((len(page.safe(optimizer)) for optimizer in shown.losses), default=0)
    for optimizer, curve in list(shown.losses.items())[:LOSSES_SHOWN]:
        name = f"{page.safe(optimizer).ljust(names)}  " if names else ""
        page.row("loss", page.text(name).append_text(_loss(page, curve)))
    if len(shown.losses) > LOSSES_SHOWN:
        page.row("", page.text((f"and {len(shown.losses) - LOSSES_SHOWN:,} more", "dim")))
    _spread(page, "step time", shown.step_time.p50_s, shown.step_time.p95_s, shown.step_time.max_s)


def _values(page: Page, shown: RunTotals) -> None:
    """What the program recorded, a line a name: the last value, and between what it was."""
    names = max((len(page.safe(name)) for name in list(shown.scalars)[:VALUES_SHOWN]), default=0)
    for name, curve in list(shown.scalars.items())[:VALUES_SHOWN]:
        line = page.text(
            f"{page.safe(name).ljust(names)}  ", ("?" if curve.last is None else number(curve.last), "bold")
        )
        if curve.low is not None and curve.high is not None and curve.low < curve.high:
            line.append(page.signs.dot, "dim").append(f"{number(curve.low)} to {number(curve.high)}")
        page.row("value", line)
    if len(shown.scalars) > VALUES_SHOWN:
        page.row("", page.text((f"and {len(shown.scalars) - VALUES_SHOWN:,} more", "dim")))


def _loss(page: Page, curve: LossCurve) -> Text:
    if curve.first is None or curve.last is None:
        return page.text("never finite")
    line = page.text((number(curve.first), "bold"), f" {page.signs.arrow} ", (number(curve.last), "bold"))
    if curve.best is not None:
        line.append(page.signs.dot, "dim").append("best ").append(number(curve.best), "bold")
        line.append(f" at step {curve.best_step:,}" if curve.best_step is not None else "")
    return line


def _spread(page: Page, key: str, p50_s: float | None, p95_s: float | None, max_s: float | None) -> None:
    figures = [("" if v is None else seconds(v), w) for v, w in ((p50_s, "p50"), (p95_s, "p95"), (max_s, "max"))]
    if any(figure for figure, _ in figures):
        page.row(key, page.facts(*figures))


def _serving(page: Page, shown: RunTotals) -> None:
    inference = shown.inference
    if not inference.count:
        return
    per_s = over(inference.count, shown.duration_s)
    batch = over(shown.inference_samples, inference.count - shown.inference_failed)
    requests = (
        (f"{inference.count:,}", ""),
        (f"{shown.inference_failed:,}" if shown.inference_failed else "", "failed"),
        (rate(per_s) if per_s is not None else "", "requests/s"),
        (f"{batch:.3g}" if batch is not None else "", "sample each" if batch == 1 else "samples each"),
    )
    page.row("requests", page.facts(*requests))
    _spread(page, "latency", inference.p50_s, inference.p95_s, inference.max_s)


def _around(page: Page, shown: RunTotals) -> None:
    done = (
        (shown.evaluations, "evaluation", "evaluations"),
        (shown.checkpoints_saved, "checkpoint saved", "checkpoints saved"),
        (shown.checkpoints_loaded, "checkpoint loaded", "checkpoints loaded"),
        (shown.compiles, "compilation", "compilations"),
        (shown.cache_hits, "compilation from the cache", "compilations from the cache"),
    )
    if any(count for count, _, _ in done):
        page.row("also", page.facts(*((f"{n:,}" if n else "", one if n == 1 else many) for n, one, many in done)))
    if shown.memory_peak_by is not None:
        page.row("memory", page.facts((size(shown.memory_peak_by), "peak")))


def _others(page: Page, run: Merged) -> None:
    """One line for each other process; of many, those that went wrong or were slow, and one line for the rest."""
    if not run.others:
        return
    by_concern = sorted(
        run.others, key=lambda t: (t.outcome == run.shown.outcome, t.outcome == "finished", -(t.step_time.p50_s or 0.0))
    )
    listed = by_concern[:OTHERS_SHOWN]
    key, rest = "others", by_concern[OTHERS_SHOWN:]
    names = {id(t): _whose(t, of=run.shown) for t in listed}
    width = max(len(name) for name in names.values())
    for each in (t for t in run.others if t in listed):
        figures = (
            (f"{each.steps:,}" if each.steps else "", _plural(each.steps, "step")),
            (f"{each.inference.count:,}" if each.inference.count else "", _plural(each.inference.count, "request")),
            (seconds(each.step_time.p50_s) if each.step_time.p50_s is not None else "", "p50"),
        )
        line = page.text(names[id(each)].ljust(width) + "  ").append_text(page.facts(*figures))
        ended = each.outcome if each.signal is None else _signal_name(each.signal)
        line.append(page.signs.dot, "dim")
        line.append(page.safe(ended), "" if each.outcome in ("finished", "running") else "red")
        page.row(key, line)
        key = ""
    if rest:
        p50s = [t.step_time.p50_s for t in rest if t.step_time.p50_s is not None]
        outcomes = ", ".join(sorted({t.outcome for t in rest}))
        steps = f", {seconds(min(p50s))} to {seconds(max(p50s))} p50" if p50s else ""
        page.row("", page.text(f"and {len(rest):,} more: {outcomes}{steps}"))


def _whose(process: RunTotals, of: RunTotals | None = None) -> str:
    """A process's name beside the run's others: its rank, else its pid; its attempt where that differs."""
    name = f"rank {process.rank}" if process.rank is not None else f"pid {process.pid}"
    return name if of is None or of.attempt == process.attempt else f"attempt {process.attempt}, {name}"


_LEFT_OUT = {
    "span": "{count:,} span{s} of the program's own beyond our limit were only counted.",
    "event": "{count:,} event{s} of the program's own beyond our limit were only counted.",
    "scalar": "{count:,} recorded value{s} under a 201st name or later were left out.",
    "value": "{count:,} recorded value{s} could not be read as a number.",
}


def _warnings(run: Merged, *, whole: bool) -> Iterable[str]:
    """What the reader should not miss, a sentence each."""
    shown = run.shown
    for name, count in shown.nonfinite.items():
        if count:
            yield f"{name} was NaN or infinite {_times(count)}."
    steps = shown.steps + shown.steps_skipped + shown.steps_failed
    if shown.steps_skipped:
        yield f"{shown.steps_skipped:,} of {steps:,} steps changed nothing: the gradients overflowed."
    if shown.recompiles:
        yield f"Compiled functions were compiled again {_times(shown.recompiles)}."
    if run.signal == signals.SIGKILL:
        yield "Unless someone sent SIGKILL, the kernel ran out of memory: see dmesg."
    missing = (shown.world_size or 1) - len({t.rank for t in (shown, *run.others) if t.attempt == shown.attempt})
    if whole and missing > 0:
        yield f"{missing:,} of {shown.world_size:,} ranks left no record in this folder."
    for kind, count in shown.left_out.items():
        if kind in _LEFT_OUT:
            yield _LEFT_OUT[kind].format(count=count, s="" if count == 1 else "s")
    if shown.thinned:
        yield "Steps were too fast to keep each: the curve is thinned, counts and times are exact."
    if shown.records_dropped:
        yield f"{shown.records_dropped:,} of our records were dropped: counts and times are too low."
    if shown.errors:
        yield f"otel-ml met {shown.errors:,} {'error' if shown.errors == 1 else 'errors'} of its own; figures may miss."


def _footer(page: Page, shown: RunTotals) -> None:
    if shown.drain_cpu_s is not None:
        share = over(shown.drain_cpu_s, shown.duration_s)
        own = f"{seconds(shown.drain_cpu_s)} of CPU" + (f" ({percent(share)} of the run)" if share is not None else "")
        dropped = f"{shown.records_dropped:,} dropped" if shown.records_dropped else "none dropped"
        page.row("our cost", page.text((f"{own}, {shown.records:,} records, {dropped}", "dim")))
    if shown.run_id:
        # Never wrapped: it is there to be copied.
        command = page.text(("  next".ljust(KEY_WIDTH), "dim"))
        page.lines.append(command.append(f"otel-ml report {shlex.quote(page.safe(shown.run_id))}", "cyan"))


def _plural(count: int, word: str) -> str:
    return word if count == 1 else f"{word}s"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _signal(value: int) -> str:
    name = _signal_name(value)
    return name if name.startswith("signal") else f"signal {value} ({name})"


def _signal_name(value: int) -> str:
    try:
        return signals.Signals(value).name
    except ValueError:
        return f"signal {value}"
