"""How a run's program ended, as the launcher saw it.

A killed process says no goodbye, so the launcher, its parent, leaves a note in the run's
folder: one small file of JSON. `report` and `runs` then say what the summary said.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FILE", "Ending", "read_ending", "write_ending"]

FILE = "ending.json"


@dataclass(frozen=True)
class Ending:
    """The exit code or the signal that a program ended by, and when, in Unix nanoseconds."""

    exit_code: int | None
    signal: int | None
    at_unix_ns: int


def write_ending(folder: Path, ending: Ending) -> None:
    """Leave the note where a run has a folder; a disk that is full costs the note and no more."""
    if not folder.is_dir():
        return
    path = folder / FILE
    with suppress(OSError):
        descriptor = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            json.dump(asdict(ending), file)


def read_ending(folder: Path) -> Ending | None:
    """The note in a run's folder; None where there is none that can be read."""
    try:
        return Ending(**json.loads((folder / FILE).read_text(encoding="ascii")))
    except (OSError, ValueError, TypeError):
        return None
