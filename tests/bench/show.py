"""Shows the figures: rich tables in a terminal, the same cells as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

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


def _surely(spread: Spread) -> str:
    between = TOO_FEW if spread.interval is None else "[{:.2f} to {:.2f}]".format(*spread.interval)
    return f"{spread.median:.2f} {between}"


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


def _notes(found: Sequence[Row], absent: Mapping[str, str], judged: Sequence[Target]) -> list[str]:
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
        said = ", ".join(f"{row.title} {_surely(row.figures['added_probe_us'])}" for row in probed)
        notes.append(f"the probe, µs over plain's {by['plain'].figures['probe_us'].median:.1f}: {said}")
    if beside := [row for row in by.values() if row.condition != "plain"]:
        said = ", ".join(f"{row.title} {_surely(row.figures['added_wait_us'])}" for row in beside)
        notes.append(f"waits of the program's thread, µs a step over plain's: {said}")
    notes += [f"{t.promise}: {t.measured}, {t.verdict}" for t in judged]
    notes += [f"failed: {row.title}: {words}" for row in found for words in row.failed]
    notes += [f"NOT the same work: {row.title} ended at another loss than plain" for row in found if not row.same_work]
    notes += [f"not measured: {title}: {why}" for title, why in absent.items()]
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
        console.print(Text(f"  {note}", style="red" if "NOT" in note or note.startswith("failed") else ""))


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
    return "\n".join([*lines, "", *(f"- {note}" for note in _notes(found, absent, judged)), ""])
