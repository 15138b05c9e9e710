"""Shows the figures: rich tables in a terminal, the same cells as Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tests.bench.figures import TOO_FEW, resolution

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tests.bench.figures import Row, Spread, Target

__all__ = ["Note", "Sheet", "console", "cost", "curve", "progress"]

Column = tuple[str, "Callable[[Row, Row | None], str]"]


def console(*, stderr: bool = False) -> Console:
    """Where to show tables: as wide as the terminal, or as a table where there is none."""
    made = Console(stderr=stderr)
    return made if made.is_terminal else Console(stderr=stderr, width=max(made.width, 220))


def progress(on: Console) -> Progress:
    """How far it is, while it lasts."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=on, transient=True)


def _figure(value: float) -> str:
    """Write a number with as many digits as a reader can use."""
    return f"{value:,.1f}" if abs(value) < 20 else f"{value:,.0f}"


def _quartiles(key: str) -> Callable[[Row, Row | None], str]:
    def cell(row: Row, control: Row | None) -> str:
        if not row.figures or row.condition == "plain":
            return ""
        spread: Spread = row.figures[key]
        beneath = control is not None and row is not control and abs(spread.median) <= resolution(control, key)
        return f"{'≤ ' if beneath else ''}{_figure(spread.median)} [{_figure(spread.q1)}..{_figure(spread.q3)}]"

    return cell


def _median(key: str, scale: float = 1) -> Callable[[Row, Row | None], str]:
    return lambda row, _: _figure(row.figures[key].median * scale) if row.figures else ""


def _surely(beside: Sequence[Row], key: str) -> str:
    """Each row's figure with its interval, or that some have too few rounds for one."""
    spreads = {row.title: row.figures[key] for row in beside}
    said = (
        f"{title} {spread.median:.2f}" + (" [{:.2f} to {:.2f}]".format(*spread.interval) if spread.interval else "")
        for title, spread in spreads.items()
    )
    few = any(spread.interval is None for spread in spreads.values())
    return f"{', '.join(said)}{f'; {TOO_FEW}' if few else ''}"


COST: tuple[Column, ...] = (
    ("step + µs [quartiles]", _quartiles("added_wall_us")),
    ("evened + µs", _quartiles("even_wall_us")),
    ("ratio to plain", lambda row, _: f"{row.figures['ratio'].median:.3f}" if row.figures else ""),
    ("median + µs", _median("added_median_us")),
    ("wait + µs", _median("added_wait_us")),
    ("p99 µs", _median("p99_us")),
    ("p99.9 µs", lambda row, _: f"{row.p999_pooled_us:,.0f}" if row.figures else ""),
    ("max µs", lambda row, _: f"{row.max_pooled_us:,.0f}" if row.figures else ""),
    ("CPU + µs", _median("added_cpu_us")),
    ("background CPU %", _median("background", 100)),
    ("RSS + MB", _median("added_rss_mb")),
    ("B/step", _median("added_bytes")),
    ("start + ms", _median("added_startup_ms")),
    ("exit + ms", _median("added_exit_ms")),
    ("full GCs +", _median("added_gen2")),
    ("user writes", lambda row, _: row.asks),
    ("n", lambda row, _: str(row.rounds)),
)

CURVE: tuple[Column, ...] = (
    ("steps/s asked", lambda row, _: f"{row.asked:,g}"),
    ("reached", _median("rate")),
    ("step CPU + µs, main thread", _median("added_main_cpu_us")),
    ("background CPU %", _median("background", 100)),
    ("spans/s sent", _median("spans_per_s")),
    ("B/s sent", _median("sent_bytes_per_s")),
    ("B/s on disk", _median("left_bytes_per_s")),
    ("dropped", lambda row, _: "not said" if row.dropped is None else f"{row.dropped:,}"),
    ("n", lambda row, _: str(row.rounds)),
)


@dataclass(frozen=True)
class Note:
    """A line under a table; what is wrong stands out."""

    text: str
    kind: Literal["told", "wrong"] = "told"


STYLES = {"told": "", "wrong": "red"}


def _about_runs(found: Sequence[Row], absent: Mapping[str, str]) -> list[Note]:
    """What the runs sent, left behind and failed at, and what there was no run of."""
    notes: list[Note] = []
    if received := [f"{_named(row)} {_received(row)}" for row in found if row.recorded]:
        notes.append(Note(f"what the sink received a step: {'; '.join(received)}"))
    if lingered := [f"{_named(row)} {row.lingered}" for row in found if row.lingered]:
        notes.append(Note(f"processes that outlived the program: {', '.join(lingered)}"))
    notes += [Note(f"failed: {_named(row)}: {words}", "wrong") for row in found for words in row.failed]
    notes += [
        Note(f"NOT the same work: {_named(row)} ended at another loss than plain", "wrong")
        for row in found
        if not row.same_work
    ]
    notes += [Note(f"not measured: {title}: {why}") for title, why in absent.items()]
    return notes


def _named(row: Row) -> str:
    return row.title if row.asked is None else f"{row.title} at {row.asked:,g} steps/s"


def _received(row: Row) -> str:
    return ", ".join(f"{count:.4g} {kind}" for kind, count in row.recorded.items())


def _against_plain(found: Sequence[Row]) -> list[Note]:
    """How long a plain step is, what can be resolved, and where the added time goes."""
    notes: list[str] = []
    by = {row.condition: row for row in found if row.figures}
    if plain := by.get("plain"):
        step = plain.figures["wall_us"]
        notes.append(f"plain: {step.median:,.1f} µs a step [{step.q1:,.1f}..{step.q3:,.1f}]")
    if control := by.get("plain2"):
        raw, even = (resolution(control, key) for key in ("added_wall_us", "even_wall_us"))
        notes.append(
            f"resolution (plain against plain): {raw:,.1f} µs a step, {even:,.1f} evened; “≤” marks what is no larger"
        )
    if probed := [row for row in by.values() if row.condition != "plain" and row.figures["probe_us"].median]:
        usual = by["plain"].figures["probe_us"].median
        notes.append(f"the probe, µs over plain's {usual:.1f}: {_surely(probed, 'added_probe_us')}")
    if beside := [row for row in by.values() if row.condition != "plain"]:
        said = _surely(beside, "added_wait_us")
        notes.append(f"waits of the program's thread, µs a step over plain's: {said}")
    return [Note(text) for text in notes]


@dataclass(frozen=True)
class Sheet:
    """A table, and what must be said with it."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[bool, list[str]]]
    """Whether it is ours, and its cells."""
    notes: list[Note]

    def print(self, on: Console) -> None:
        """Draw it in a terminal."""
        drawn = Table(title=self.title, title_justify="left", row_styles=["", "dim"])
        for place, name in enumerate(self.head):
            text = name in {"", "user writes"}
            whole = not place or any("[" in cells[place] for _, cells in self.rows)
            drawn.add_column(name, justify="left" if text else "right", no_wrap=whole)
        for ours, cells in self.rows:
            drawn.add_row(*cells, style="bold" if ours else None)
        on.print(drawn)
        for note in self.notes:
            on.print(Text(f"  {note.text}", style=STYLES[note.kind]))

    def markdown(self) -> str:
        """Write the same as Markdown."""
        lines = [f"### {self.title}", "", f"| {' | '.join(self.head)} |", f"|---{'|---:' * (len(self.head) - 1)}|"]
        for ours, (first, *rest) in self.rows:
            lines.append(f"| {' | '.join([f'**{first}**' if ours else first, *rest])} |")
        return "\n".join([*lines, "", *(f"- {note.text}" for note in self.notes), ""])


def cost(title: str, found: Sequence[Row], absent: Mapping[str, str], judged: Sequence[Target]) -> Sheet:
    """What each condition adds to a workload, and which promises hold."""
    promised = [
        Note(f"{t.promise}: {t.measured}, {t.verdict}", "wrong" if t.holds is False else "told") for t in judged
    ]
    found = _ordered(found)
    return _sheet(title, found, COST, [*_against_plain(found), *promised, *_about_runs(found, absent)])


def curve(title: str, found: Sequence[Row], absent: Mapping[str, str]) -> Sheet:
    """What each condition adds to the synthetic loop, rate by rate."""
    found = sorted(_ordered(found), key=lambda row: row.asked or 0.0)
    return _sheet(title, found, CURVE, _about_runs(found, absent))


def _ordered(found: Sequence[Row]) -> list[Row]:
    """Plain and its control first, then what adds least; last what has no figures."""

    def place(row: Row) -> tuple[bool, bool, bool, float]:
        added = row.figures["added_wall_us"].median if row.figures else 0.0
        return row.condition != "plain", row.condition != "plain2", not row.figures, added

    return sorted(found, key=place)


def _sheet(title: str, found: Sequence[Row], columns: Sequence[Column], notes: list[Note]) -> Sheet:
    control = next((row for row in found if row.condition == "plain2" and row.figures), None)
    rows = [(row.ours, [row.title, *(text(row, control) for _, text in columns)]) for row in found]
    return Sheet(title, ("", *(name for name, _ in columns)), rows, notes)
