"""Shows the figures: rich tables in a terminal, the same cells as Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.bench.figures import TOO_FEW, resolution

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tests.bench.figures import Row, Spread, Target

__all__ = ["COST", "CURVE", "console", "markdown", "table"]

Column = tuple[str, "Callable[[Row, Row | None], str]"]

_width = Console().width
console = Console(width=None if Console().is_terminal else max(_width, 220))


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
    ("steps/s", _median("rate")),
    ("step CPU + µs, main thread", _median("added_main_cpu_us")),
    ("background CPU %", _median("background", 100)),
    ("CPU + µs", _median("added_cpu_us")),
    ("spans/s sent", _median("spans_per_s")),
    ("B/s sent", _median("sent_bytes_per_s")),
    ("B/s on disk", _median("left_bytes_per_s")),
    ("dropped", lambda row, _: "not said" if row.dropped is None else f"{row.dropped:,}"),
    ("n", lambda row, _: str(row.rounds)),
)


def _cells(found: Sequence[Row], columns: Sequence[Column]) -> list[list[str]]:
    control = next((row for row in found if row.condition == "plain2" and row.figures), None)
    return [[row.title, *(text(row, control) for _, text in columns)] for row in found]


@dataclass(frozen=True)
class Note:
    """A line under a table; what is wrong stands out."""

    text: str
    kind: Literal["told", "wrong"] = "told"


STYLES = {"told": "", "wrong": "red"}


def _notes(found: Sequence[Row], absent: Mapping[str, str], judged: Sequence[Target]) -> list[Note]:
    notes = [Note(text) for text in _against_plain(found)]
    notes += [Note(f"{t.promise}: {t.measured}, {t.verdict}", "wrong" if t.holds is False else "told") for t in judged]
    if received := [f"{row.title} {_received(row)}" for row in found if row.recorded]:
        notes.append(Note(f"what the sink received a step: {'; '.join(received)}"))
    notes += [Note(f"left behind: {row.title}: {row.lingered} processes a run") for row in found if row.lingered]
    notes += [Note(f"failed: {row.title}: {words}", "wrong") for row in found for words in row.failed]
    notes += [
        Note(f"NOT the same work: {row.title} ended at another loss than plain", "wrong")
        for row in found
        if not row.same_work
    ]
    notes += [Note(f"not measured: {title}: {why}") for title, why in absent.items()]
    return notes


def _received(row: Row) -> str:
    return ", ".join(f"{count:.4g} {kind}" for kind, count in row.recorded.items())


def _against_plain(found: Sequence[Row]) -> list[str]:
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
    return notes


def table(
    title: str,
    found: Sequence[Row],
    columns: Sequence[Column],
    absent: Mapping[str, str],
    judged: Sequence[Target] = (),
) -> None:
    """Print a table and what must be said with it."""
    drawn = Table(title=title, title_justify="left", row_styles=["", "dim"])
    for name in ("", *(name for name, _ in columns)):
        text = name in {"", "user writes"}
        drawn.add_column(name, justify="left" if text else "right", no_wrap="[" in name or not name)
    for row, cells in zip(found, _cells(found, columns), strict=True):
        drawn.add_row(*cells, style="bold" if row.ours else None)
    console.print(drawn)
    for note in _notes(found, absent, judged):
        console.print(Text(f"  {note.text}", style=STYLES[note.kind]))


def markdown(
    title: str,
    found: Sequence[Row],
    columns: Sequence[Column],
    absent: Mapping[str, str],
    judged: Sequence[Target] = (),
) -> str:
    """Write the same table and notes as Markdown."""
    head = ["", *(name for name, _ in columns)]
    lines = [f"### {title}", "", f"| {' | '.join(head)} |", f"|---{'|---:' * (len(head) - 1)}|"]
    for row, cells in zip(found, _cells(found, columns), strict=True):
        first, *rest = cells
        lines.append(f"| {' | '.join([f'**{first}**' if row.ours else first, *rest])} |")
    return "\n".join([*lines, "", *(f"- {note.text}" for note in _notes(found, absent, judged)), ""])
