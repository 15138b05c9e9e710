"""A run in one screen of text, or as JSON: what happened, where the time went, what to try next.

Exists so that the end of a program, the launcher and `otel-ml report` say the same thing in
the same words. It only reads totals (`otel_ml/totals.py`): called at exit in the user's
process (`print_totals`), by the launcher once the child is gone and by the report
(`print_run`), each time on the main thread. rich is imported only when something is drawn.

Whatever comes from the user's program (names, errors) is shown literally: no markup is
read, characters that would steer a terminal are written as escapes, and what the stream's
encoding lacks as well. A stream that is not Unicode gets plain ASCII; one without colour
gets bars in patterns.
"""

from __future__ import annotations

import json
import math
import shlex
import signal as signals
import sys
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, TextIO

from otel_ml.watch.diagnosis import Diagnosis, diagnose, percent, seconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from rich.console import Console
    from rich.text import Text

    from otel_ml.store.ending import Ending
    from otel_ml.totals import LossCurve, RunTotals

__all__ = [
    "console_for",
    "literal",
    "number",
    "print_run",
    "print_totals",
    "size",
    "to_json",
    "undelivered_in",
    "unkept_in",
]

MAX_WIDTH = 120
KEY_WIDTH = 14  # the column of the rows' names, indent included
VALUES_SHOWN = 8  # lines for what the program recorded, likewise
LOSSES_SHOWN = 8  # lines for optimizers, before the rest is one line
OTHERS_SHOWN = 8  # lines for other processes before the rest is one line
ERROR_LINES = 3


def print_run(directory: Path, run_id: str, *, ending: Ending, file: TextIO | None = None) -> None:
    """Print what the store holds of a run, or nothing where it holds no such run.

    `ending` is what the launcher saw of its child; it overrules what the program could say of its own end.
    """
    from otel_ml.store.reader import RunReader
    from otel_ml.store.runs import read_run
    from otel_ml.store.schema import run_folder

    run = read_run(run_folder(directory, run_id))
    if run is not None:
        ended = [process.path for process in run.processes if process.state != "running"]
        also = [*unkept_in(ended), *undelivered_in(run.id, ended)]
        _print(_merged(RunReader(run).totals(), ending), file, whole=True, also=also)


def undelivered_in(run_id: str, paths: Iterable[Path]) -> list[tuple[str, str]]:
    """What the endpoint lacks of a run whose processes have ended: sentences, each with the command to type."""
    from otel_ml.errors import StoreError
    from otel_ml.store.reader import undelivered

    left: dict[str, int] = {}
    refused: dict[str, int] = {}
    reasons: dict[str, str] = {}
    for path in paths:
        try:
            found = undelivered(path)
        except StoreError:  # what cannot be read, the reader tells of
            continue
        for counts, more in ((left, found.left), (refused, found.refused)):
            counts.update({signal: counts.get(signal, 0) + count for signal, count in more.items()})
        reasons.update(found.reasons)
    command = f"otel-ml replay {shlex.quote(literal(run_id))}"
    sentences: list[tuple[str, str]] = []
    if any(left.values()):
        sentences.append((f"The endpoint has not acknowledged {_counted(left)}. They are kept; to send them:", command))
    if any(refused.values()):
        reason = next(iter(reasons.values()), "")
        why = f" ({literal(reason)})" if reason else ""
        sentences.append((f"The endpoint refuses {_counted(refused)}{why}. To try again:", f"{command} --again"))
    return sentences


def unkept_in(paths: Iterable[Path]) -> list[tuple[str, str]]:
    """What the local store lacks of what these processes recorded, and why: sentences, without a command."""
    from otel_ml.errors import StoreError
    from otel_ml.store.runs import process_of

    lost: dict[str, dict[str, int]] = {}
    for path in paths:
        try:
            drops = process_of(path).drops
        except StoreError:  # as above
            continue
        for key, count in drops.items():
            signal, _, reason = key.partition(" ")
            if signal in _WORDS:
                counts = lost.setdefault(reason, {})
                counts[signal] = counts.get(signal, 0) + count
    return [
        (f"Not in the local store: {_counted(counts)}, {_UNKEPT.get(reason, reason)}.", "")
        for reason, counts in lost.items()
    ]


_WORDS = {"spans": "span", "logs": "log record", "points": "metric point"}
_UNKEPT = {
    "queue_full": "which came faster than they could be written",
    "before_gate": "from before the first step or request was seen",
    "run_bytes": "the oldest, for the file had reached its size",
    "unsent": "the oldest, for the file had reached its size; the endpoint had not acknowledged them",
    "unencodable": "which OTLP cannot express",
    "write_failed": "which could not be written",
    "closed": "from after the end",
}


def _counted(counts: dict[str, int]) -> str:
    parts = [f"{count:,} {_WORDS[signal]}{'s' * (count != 1)}" for signal, count in counts.items() if count]
    return ", ".join(parts[:-1]) + (" and " if parts[1:] else "") + parts[-1]


def print_totals(
    totals: Sequence[RunTotals],
    file: TextIO | None = None,
    *,
    whole: bool = False,
    ending: Ending | None = None,
    also: Sequence[tuple[str, str]] = (),
) -> None:
    """Print the totals of a run's processes, to stderr unless told otherwise; nothing where there are none.

    `ending` is what the launcher saw of the program's end, if it had one; `also` are sentences that
    the reader should not miss, each with a command to type.

    `whole` says that `totals` are all that is to be had, so that a rank that is not among them is missing;
    a process that prints its own at exit knows nothing of the others.
    """
    _print(_merged(totals, ending), file, whole=whole, also=also)


def to_json(totals: Sequence[RunTotals], ending: Ending | None = None) -> str:
    """A run as JSON text. The keys are stable; a new one may come, none goes or changes its meaning.

    `schema`: 1.
    `run`: `id`, `name`, `outcome` (running, finished, failed, interrupted, killed), `exit_code`, `signal`, `error`,
    `started_unix_ns`, `ended_unix_ns`, `duration_s`: of the whole run.
    `rates`: `samples_per_s` and `tokens_per_s` while training, `requests_per_s` over the process's life, `overhead`
    (the background thread's CPU time as a share of the duration): of the process that the summary shows.
    `diagnosis`: `verdict`, `evidence`, `advice`: of that process.
    `processes`: one object a process, the one that the summary shows first; keys in `otel_ml/totals.py`.
    What is not known is null.
    """
    run = _merged(totals, ending)
    if run is None:
        return json.dumps({"schema": 1, "run": None, "rates": None, "diagnosis": None, "processes": []}, indent=2)
    shown = run.shown
    data = {
        "schema": 1,
        "run": {
            "id": shown.run_id,
            "name": shown.run_name,
            "outcome": run.outcome,
            "exit_code": run.exit_code,
            "signal": run.signal,
            "error": run.error,
            "started_unix_ns": shown.started_unix_ns,
            "ended_unix_ns": shown.ended_unix_ns,
            "duration_s": shown.duration_s,
        },
        "rates": {
            "samples_per_s": _while_training(shown, shown.samples),
            "tokens_per_s": _while_training(shown, shown.tokens),
            "requests_per_s": _over(shown.inference.count or None, shown.duration_s),
            "overhead": _over(shown.drain_cpu_s, shown.duration_s),
        },
        "diagnosis": asdict(_diagnosis(shown)),
        "processes": [each.to_dict() for each in (shown, *run.others)],
    }
    return json.dumps(_finite(data), indent=2, allow_nan=False)


def console_for(file: TextIO) -> Console:
    """A console on `file` that interprets nothing in what it is given, however narrow the terminal is."""
    from rich.console import Console

    return Console(file=file, highlight=False, markup=False, emoji=False, force_jupyter=False, soft_wrap=True)


def literal(text: str, encoding: str = "utf-8") -> str:
    """`text` with everything that would steer a terminal, or that `encoding` lacks, written as an escape."""
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return safe.encode(encoding, "backslashreplace").decode(encoding)


def number(value: float) -> str:
    """A value in four digits: 1.934, 0.0123, 12,345, 1.23e-05."""
    if 10_000 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def size(value_by: float) -> str:
    """Bytes as people write them: 512 B, 96.0 KiB, 1.20 GiB."""
    value = float(value_by)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 999.5:
            return f"{value:.0f} B" if unit == "B" else f"{value:#.3g} {unit}".replace(". ", " ")
        value /= 1024
    return f"{value:#.3g} TiB"


def rate(value: float) -> str:
    """A rate in three digits: 1.25, 48.2, 1,204, 78.3k, 1.25M."""
    for unit, scale, digits in (("", 1.0, 9_999.5), ("k", 1e3, 999.5), ("M", 1e6, 999.5)):
        scaled = value / scale
        if scaled < digits:
            return f"{scaled:,.0f}" if scaled >= 999.5 else f"{scaled:#.3g}".rstrip(".") + unit
    return f"{value:.3g}"


# --- many processes → one run -------------------------------------------------------------


@dataclass(frozen=True)
class _Merged:
    """A run's processes, the one that is shown apart, and how the run as a whole ended."""

    shown: RunTotals
    others: tuple[RunTotals, ...]
    outcome: str
    exit_code: int | None
    signal: int | None
    culprit: RunTotals | None  # another process, that the run failed by
    error: str | None
    error_from: RunTotals | None  # where it is another process's


def _merged(totals: Sequence[RunTotals], ending: Ending | None = None) -> _Merged | None:
    """Choose the process to show: the last attempt's lowest rank; of several, the last one that trained or served."""
    if not totals:
        return None
    shown, *rest = sorted(
        totals,
        key=lambda t: (-t.attempt, t.rank or 0, not t.steps, not t.inference.count, -t.started_unix_ns, t.pid),
    )
    rest.sort(key=lambda t: (-t.attempt, t.rank or 0, t.started_unix_ns, t.pid))
    now = [t for t in (shown, *rest) if t.attempt == shown.attempt]
    outcome, culprit = shown.outcome, None
    exit_code, signal = (ending.exit_code, ending.signal) if ending is not None else (None, None)
    if signal is not None:
        outcome, exit_code = "interrupted" if signal == signals.SIGINT else "killed", None
    elif exit_code is not None:
        # Alone, a process without a goodbye that has an exit code left by `os._exit`: nobody killed it.
        ended_badly = outcome in ("failed", "interrupted") or (outcome == "killed" and bool(rest))
        outcome = "finished" if exit_code == 0 else outcome if ended_badly else "failed"
    else:
        exit_code, signal = shown.exit_code, shown.signal
        if outcome == "finished":  # but a job is as good as its worst rank
            culprit = next((t for t in now if t.rank is not None and t.outcome in ("failed", "killed")), None)
    if culprit is not None:
        outcome, exit_code = "failed", None
    failed = next((t for t in now if t.error), None)
    return _Merged(
        shown=shown,
        others=tuple(rest),
        outcome=outcome,
        exit_code=exit_code,
        signal=signal,
        culprit=culprit,
        error=failed.error if failed else None,
        error_from=failed if failed is not shown else None,
    )


def _diagnosis(totals: RunTotals) -> Diagnosis:
    """The verdict that was recorded, else one made now (a killed process recorded none)."""
    if totals.verdict is not None:
        return Diagnosis(totals.verdict, totals.evidence or "", totals.advice or "")
    return diagnose(totals)


def _over(amount: float | None, duration_s: float) -> float | None:
    return None if amount is None or duration_s <= 0 else amount / duration_s


def _while_training(totals: RunTotals, amount: int | None) -> float | None:
    return _over(amount, totals.step_time.total_s)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- drawing ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Signs:
    """The characters that the page is drawn with."""

    rule: str
    good: str
    bad: str
    stopped: str
    live: str
    warning: str
    arrow: str
    dot: str
    cut: str


UNICODE = _Signs(rule="━", good="✓", bad="✗", stopped="■", live="●", warning="▲", arrow="→", dot=" · ", cut="…")
ASCII = _Signs(rule="-", good="+", bad="x", stopped="x", live="*", warning="!", arrow="->", dot=" | ", cut="...")


@dataclass(frozen=True)
class _Fill:
    """How a part of a bar is drawn: in colour, as a pattern without colour, as a letter without Unicode."""

    label: str
    style: str
    pattern: str
    letter: str


CATEGORIES = {
    "productive": _Fill("productive", "green", "█", "#"),
    "data_wait": _Fill("data wait", "yellow", "▒", "d"),
    "compile": _Fill("compile", "magenta", "▚", "c"),
    "checkpoint": _Fill("checkpoint", "cyan", "▞", "k"),
    "evaluation": _Fill("evaluation", "blue", "▓", "e"),
    "startup": _Fill("startup", "bright_blue", "░", "s"),
    "skipped": _Fill("skipped", "red", "▄", "x"),
    "other": _Fill("other", "dim", "·", "."),
}
PHASES = {
    "data_wait": CATEGORIES["data_wait"],
    "h2d": _Fill("h2d", "bright_yellow", "▀", "h"),
    "forward": _Fill("forward", "bright_green", "█", "F"),
    "backward": _Fill("backward", "green", "▓", "B"),
    "optimizer": _Fill("optimizer", "bright_cyan", "░", "O"),
    "host": _Fill("host", "green", "▓", "H"),
    "wait": _Fill("wait", "bright_green", "█", "W"),
    "collective": _Fill("collective", "bright_magenta", "▄", "C"),
    "compile": CATEGORIES["compile"],
    "checkpoint": CATEGORIES["checkpoint"],
    "evaluation": CATEGORIES["evaluation"],
    "residual": _Fill("residual", "dim", "·", "."),
}
CALM_VERDICTS = ("compute-bound", "no bottleneck found", "serving")
UNFORESEEN = _Fill("", "bright_white", "▂", "?")


def _print(run: _Merged | None, file: TextIO | None, *, whole: bool, also: Sequence[tuple[str, str]] = ()) -> None:
    file = file or sys.stderr
    if run is None or file is None:  # a program without a console has no stderr
        return
    console = console_for(file)
    page = _Page(console)
    _draw(page, run, whole=whole, also=also)
    with console.capture() as capture:
        for line in page.lines:
            console.print(line)
    file.write(capture.get())  # one write: other processes print to the same terminal
    file.flush()


class _Page:
    """Lines of styled text as wide as the console, and what may be drawn on it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.encoding = console.encoding
        self.unicode = not console.options.ascii_only
        self.colour = console.color_system is not None and not console.no_color
        self.width = min(console.width, MAX_WIDTH)
        self.signs = UNICODE if self.unicode else ASCII
        self.lines: list[Text] = []

    def text(self, *parts: tuple[str, str] | str) -> Text:
        """Styled text from `(text, style)` pairs and plain strings, made safe to show."""
        from rich.text import Text

        text = Text()
        for part in parts:
            words, style = (part, "") if isinstance(part, str) else part
            text.append(self.safe(words), style)
        return text

    def safe(self, words: str) -> str:
        """Make `words` literal and writable; without Unicode a micro sign is a u."""
        return literal(words if self.unicode else words.replace("µ", "u"), self.encoding)

    def facts(self, *parts: tuple[str, str], style: str = "bold") -> Text:
        """Figures with a word on each and a dot between them; an empty figure is left out."""
        line = self.text()
        for figure, word in parts:
            if figure:
                line.append(self.signs.dot if line else "", "dim")
                line.append(self.safe(figure), style)
                line.append(f" {self.safe(word)}" if word else "")
        return line

    def row(self, key: str, value: Text) -> None:
        """Add a row: its name, then its value wrapped beside it."""
        self._beside(self.text((f"  {key}".ljust(KEY_WIDTH), "dim")), value, None)

    def sentence(self, sign: str, value: Text, style: str, *, at_most: int | None = None) -> None:
        """Add a sentence behind a sign, cut after `at_most` lines."""
        self._beside(self.text((f"  {sign} ", style)), value, at_most)

    def _beside(self, start: Text, value: Text, at_most: int | None) -> None:
        indent = len(start)
        lines = list(value.wrap(self.console, max(self.width - indent - 2, 20)))
        if at_most is not None and len(lines) > at_most:
            lines = lines[:at_most]
            lines[-1].rstrip()
            lines[-1].append(self.signs.cut)
        for line in lines:
            line.rstrip()
            self.lines.append(start.append_text(line))
            start = self.text(" " * indent)

    def blank(self) -> None:
        """Add an empty line, unless there is one."""
        if not self.lines or self.lines[-1].plain:
            self.lines.append(self.text())

    def bar(self, title: Text, amounts: dict[str, float], fills: dict[str, _Fill], parts: float = 1) -> None:
        """Add a bar of `amounts` in seconds, its title above and its legend, each amount over `parts`, below."""
        known = {key: amounts[key] for key in fills if amounts.get(key, 0) > 0}
        known |= {key: value for key, value in amounts.items() if key not in fills and value > 0}
        total = sum(known.values())
        if not total:
            return
        self.blank()
        self.lines.append(self.text("  ").append_text(title))
        bar, legend = self.text("  "), []
        cells, upto = self.width - 4, 0.0
        for key, amount in known.items():
            fill = fills.get(key) or replace(UNFORESEEN, label=key.replace("_", " "))
            sign = "█" if self.colour and self.unicode else fill.pattern if self.unicode else fill.letter
            start, upto = round(upto / total * cells), upto + amount
            bar.append(sign * (round(upto / total * cells) - start), fill.style)
            legend.append((sign, fill, self.safe(seconds(amount / parts)), percent(amount / total)))
        self.lines.append(bar)
        self._legend(legend)

    def _legend(self, entries: list[tuple[str, _Fill, str, str]]) -> None:
        """Add the legend as columns that line up."""
        widths = [
            max(len(entry) for entry in column) for column in zip(*((e[1].label, *e[2:]) for e in entries), strict=True)
        ]
        columns = max(1, (self.width - 2) // (sum(widths) + 6))
        for start in range(0, len(entries), columns):
            line = self.text("  ")
            for sign, fill, took, share in entries[start : start + columns]:
                line.append(sign, fill.style).append(f" {self.safe(fill.label).ljust(widths[0])} ")
                line.append(took.rjust(widths[1]), "bold").append(f" {share.rjust(widths[2])}   ", "dim")
            line.rstrip()
            self.lines.append(line)


def _draw(page: _Page, run: _Merged, *, whole: bool, also: Sequence[tuple[str, str]] = ()) -> None:
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
    verdict = _diagnosis(shown)
    style = "bold green" if verdict.verdict in CALM_VERDICTS else "bold yellow"
    page.row("verdict", page.text((verdict.verdict, style)))
    page.row("", page.text(verdict.evidence))
    page.row("try", page.text(verdict.advice))
    page.blank()
    _footer(page, shown)


def _heading(page: _Page, shown: RunTotals) -> None:
    from rich.cells import cell_len, set_cell_size

    signs = page.signs
    name, room = page.safe(shown.run_name or shown.run_id or "run"), page.width - 20
    if cell_len(name) > room:
        name = set_cell_size(name, room - len(signs.cut)).rstrip() + signs.cut
    line = page.text((signs.rule * 2, "dim"), " ", (name, "bold"), " ")
    line.append(signs.rule * (page.width - cell_len(name) - 15), "dim")
    page.lines.append(line.append(" otel-ml ").append(signs.rule * 2, "dim"))


def _outcome(page: _Page, run: _Merged) -> None:
    shown, signs = run.shown, page.signs
    took = seconds(shown.duration_s)
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
    started = datetime.fromtimestamp(shown.started_unix_ns / 1e9).astimezone()
    about = (
        shown.run_id,
        f"attempt {shown.attempt}" if shown.attempt else "",
        f"rank {shown.rank} of {shown.world_size}" if shown.world_size and shown.world_size > 1 else "",
        f"{started:%Y-%m-%d %H:%M:%S}" if shown.started_unix_ns else "",
    )
    if any(about):
        page.row("run", page.facts(*((part, "") for part in about), style=""))


def _training(page: _Page, shown: RunTotals) -> None:
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
    samples, tokens = _while_training(shown, shown.samples), _while_training(shown, shown.tokens)
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


def _values(page: _Page, shown: RunTotals) -> None:
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


def _loss(page: _Page, curve: LossCurve) -> Text:
    if curve.first is None or curve.last is None:
        return page.text("never finite")
    line = page.text((number(curve.first), "bold"), f" {page.signs.arrow} ", (number(curve.last), "bold"))
    if curve.best is not None:
        line.append(page.signs.dot, "dim").append("best ").append(number(curve.best), "bold")
        line.append(f" at step {curve.best_step:,}" if curve.best_step is not None else "")
    return line


def _spread(page: _Page, key: str, p50_s: float | None, p95_s: float | None, max_s: float | None) -> None:
    figures = [("" if v is None else seconds(v), w) for v, w in ((p50_s, "p50"), (p95_s, "p95"), (max_s, "max"))]
    if any(figure for figure, _ in figures):
        page.row(key, page.facts(*figures))


def _serving(page: _Page, shown: RunTotals) -> None:
    inference = shown.inference
    if not inference.count:
        return
    per_s = _over(inference.count, shown.duration_s)
    batch = _over(shown.inference_samples, inference.count)
    requests = (
        (f"{inference.count:,}", ""),
        (rate(per_s) if per_s is not None else "", "requests/s"),
        (f"{batch:.3g}" if batch is not None else "", "sample each" if batch == 1 else "samples each"),
    )
    page.row("requests", page.facts(*requests))
    _spread(page, "latency", inference.p50_s, inference.p95_s, inference.max_s)


def _around(page: _Page, shown: RunTotals) -> None:
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


def _others(page: _Page, run: _Merged) -> None:
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
            (f"{each.steps:,}" if each.steps else "", "step" if each.steps == 1 else "steps"),
            (f"{each.inference.count:,}" if each.inference.count else "", "requests"),
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


def _warnings(run: _Merged, *, whole: bool) -> Iterable[str]:
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


def _footer(page: _Page, shown: RunTotals) -> None:
    if shown.drain_cpu_s is not None:
        share = _over(shown.drain_cpu_s, shown.duration_s)
        own = f"{seconds(shown.drain_cpu_s)} of CPU" + (f" ({percent(share)} of the run)" if share is not None else "")
        dropped = f"{shown.records_dropped:,} dropped" if shown.records_dropped else "none dropped"
        page.row("our cost", page.text((f"{own}, {shown.records:,} records, {dropped}", "dim")))
    if shown.run_id:
        # Never wrapped: it is there to be copied.
        command = page.text(("  next".ljust(KEY_WIDTH), "dim"))
        page.lines.append(command.append(f"otel-ml report {shlex.quote(page.safe(shown.run_id))}", "cyan"))


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
