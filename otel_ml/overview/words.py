"""Figures and names as people read them; what comes from a program is shown literally."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["console_for", "literal", "number", "rate", "size"]


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
