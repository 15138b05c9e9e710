"""Options of the commands here: what cannot be measured is refused with a reason before anything runs."""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tests.bench.conditions import registry

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["STDOUT", "above_zero", "at_least", "conditions", "interrupted", "rates", "write"]

STDOUT = Path("-")


def at_least(least: int) -> Callable[[str], int]:
    """Read a whole number, no less than that."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            message = f"{text!r} is not a whole number from {least} on"
            raise ArgumentTypeError(message)
        return number

    return read


def above_zero(text: str) -> float:
    """Read a number above zero."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not number > 0 or not isfinite(number):
        message = f"{text!r} is not a number above zero"
        raise ArgumentTypeError(message)
    return number


def rates(text: str) -> list[float]:
    """Read comma-separated numbers above zero, each once."""
    return list(dict.fromkeys(above_zero(part) for part in text.split(",")))


def conditions(text: str) -> list[str]:
    """Read comma-separated names of conditions; `plain`, against which all are told, comes first."""
    known = registry()
    names = ["plain", *text.split(",")]
    if unknown := [name for name in names if name not in known]:
        message = f"unknown condition {', '.join(map(repr, unknown))}; there are {', '.join(known)}"
        raise ArgumentTypeError(message)
    return list(dict.fromkeys(names))


def interrupted() -> NoReturn:
    """End as one who was interrupted, once what was measured is written."""
    print("interrupted: what is shown and written was measured before", file=sys.stderr)
    sys.exit(130)


def write(path: Path | None, text: str) -> None:
    """Write a text to where an option says: a file, standard output for `-`, nowhere without one."""
    if path == STDOUT:
        sys.stdout.write(text)
        sys.stdout.flush()
    elif path is not None:
        path.write_text(text, encoding="utf-8")
