"""How a run ended: what its launcher saw, and what that makes of what its processes said.

A killed process says no goodbye, so the launcher, its parent, leaves a note in the run's
folder: one small file of JSON. `report` and `runs` then say what the summary said.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from signal import SIGINT
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["FILE", "WORST", "Ending", "State", "how_it_ended", "read_ending", "write_ending"]

State = Literal["running", "finished", "failed", "interrupted", "killed", "lost"]

FILE = "ending.json"
WORST: tuple[State, ...] = ("running", "failed", "killed", "interrupted", "lost", "finished")


@dataclass(frozen=True)
class Ending:
    """The exit code or the signal that a program ended by, when, in Unix nanoseconds, and which process it was."""

    exit_code: int | None
    signal: int | None
    at_unix_ns: int
    pid: int | None = None


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
    known = {field.name for field in fields(Ending)}
    try:
        told = json.loads((folder / FILE).read_text(encoding="ascii"))
        return Ending(**{key: value for key, value in told.items() if key in known})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def how_it_ended(said: Sequence[tuple[int | None, str]], ending: Ending | None = None) -> State:
    """What became of a run, by the rank and the end of each process of its last attempt, the first started first.

    The launcher's word counts: what it started finished, whatever became of others. Without it a job is as good as
    its worst rank; where there are no ranks, who came first has started the others.
    """
    ends = [(rank, next((state for state in WORST if state == end), WORST[-1])) for rank, end in said]
    if ending is not None and ending.signal is not None:
        return "interrupted" if ending.signal == SIGINT else "killed"
    if ending is not None and ending.exit_code == 0:
        return "finished"
    if ending is not None:
        # Alone, a process without a goodbye that has an exit code left by `os._exit`: nobody killed it.
        bad = {"failed", "interrupted", *(("killed",) if len(ends) > 1 else ())}
        return min((end for _, end in ends if end in bad), key=WORST.index, default="failed")
    if any(end == "running" for _, end in ends):
        return "running"
    return min([end for rank, end in ends if rank is not None] or [ends[0][1]], key=WORST.index)
