"""Draws one picture: a bar a condition, ours beside the others, as SVG that fits light and dark pages."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.figures import Row

__all__ = ["bars"]

WIDTH, LABELS, BAR, GAP, TOP = 900, 290, 18, 10, 58
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-size: 15px; font-weight: 600 }
.quiet { fill: #6e7781 }
.ours { font-weight: 600 }
rect { fill: #9aa4af }
rect.ours { fill: #e4572e }
line { stroke: #24292f; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .quiet { fill: #8b949e } rect { fill: #57606a } line { stroke: #e6edf3 }
}
""".strip()


def bars(title: str, found: Sequence[Row]) -> str:
    """Draw the microseconds that each condition adds to a step, least first, quartiles as whiskers."""
    kept = [row for row in found if row.figures and not row.condition.startswith("plain")]
    kept.sort(key=lambda row: row.figures["added_wall_us"].median)
    longest = max((row.figures["added_wall_us"].q3 for row in kept), default=1.0) or 1.0
    room = WIDTH - LABELS - 130

    def x(value: float) -> float:
        return round(LABELS + max(0.0, value) / longest * room, 1)

    step = next((row.figures["wall_us"].median for row in found if row.condition == "plain" and row.figures), None)
    under = "" if step is None else f"a plain step takes {step:,.0f} µs; "
    height = TOP + len(kept) * (BAR + GAP) + GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<text class="title" x="12" y="24">{escape(title)}</text>',
        f'<text class="quiet" x="12" y="43">{under}median over fresh processes, whiskers are quartiles</text>',
    ]
    for i, row in enumerate(kept):
        added = row.figures["added_wall_us"]
        y = TOP + i * (BAR + GAP)
        middle, kind = y + BAR / 2, ' class="ours"' if row.ours else ""
        name = f"{row.title} (sees no training)" if row.blind else row.title
        length = max(1.0, x(added.median) - LABELS)
        value = f"{added.median:+,.0f} µs · \N{MULTIPLICATION SIGN}{row.figures['ratio'].median:.2f}"
        parts += [
            f'<text{kind} x="{LABELS - 10}" y="{middle + 4.5}" text-anchor="end">{escape(name)}</text>',
            f'<rect{kind} x="{LABELS}" y="{y}" width="{length:.1f}" height="{BAR}" rx="3"/>',
            f'<line x1="{x(added.q1)}" x2="{x(added.q3)}" y1="{middle}" y2="{middle}"/>',
            f'<text{kind} x="{max(x(added.q3), x(added.median)) + 8:.1f}" y="{middle + 4.5}">{value}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])
