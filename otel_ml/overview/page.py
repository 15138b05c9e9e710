"""A page as wide as the console: rows, sentences and bars, in Unicode and colour where there are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from otel_ml.overview.words import literal
from otel_ml.watch.diagnosis import percent, seconds

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = ["CATEGORIES", "PHASES", "Page"]

MAX_WIDTH = 120
KEY_WIDTH = 14  # the column of the rows' names, indent included


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
class Fill:
    """How a part of a bar is drawn: in colour, as a pattern without colour, as a letter without Unicode."""

    label: str
    style: str
    pattern: str
    letter: str


CATEGORIES = {
    "productive": Fill("productive", "green", "█", "#"),
    "data_wait": Fill("data wait", "yellow", "▒", "d"),
    "compile": Fill("compile", "magenta", "▚", "c"),
    "checkpoint": Fill("checkpoint", "cyan", "▞", "k"),
    "evaluation": Fill("evaluation", "blue", "▓", "e"),
    "startup": Fill("startup", "bright_blue", "░", "s"),
    "skipped": Fill("skipped", "red", "▄", "x"),
    "other": Fill("other", "dim", "·", "."),
}
PHASES = {
    "data_wait": CATEGORIES["data_wait"],
    "h2d": Fill("h2d", "bright_yellow", "▀", "h"),
    "forward": Fill("forward", "bright_green", "█", "F"),
    "backward": Fill("backward", "green", "▓", "B"),
    "optimizer": Fill("optimizer", "bright_cyan", "░", "O"),
    "host": Fill("host", "green", "▓", "H"),
    "wait": Fill("wait", "bright_green", "█", "W"),
    "collective": Fill("collective", "bright_magenta", "▄", "C"),
    "compile": CATEGORIES["compile"],
    "checkpoint": CATEGORIES["checkpoint"],
    "evaluation": CATEGORIES["evaluation"],
    "residual": Fill("residual", "dim", "·", "."),
}
UNFORESEEN = Fill("", "bright_white", "▂", "?")


class Page:
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

    def bar(self, title: Text, amounts: dict[str, float], fills: dict[str, Fill], parts: float = 1) -> None:
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

    def _legend(self, entries: list[tuple[str, Fill, str, str]]) -> None:
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
