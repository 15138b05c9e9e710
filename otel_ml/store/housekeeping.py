"""Deletes finished runs that are too old, then the oldest ones while all runs together hold too much.

Called by the writer every ten minutes, on an exporter's thread. The first survey is made early: it takes several system
calls a run, and after each of them our thread asks a program that trains for the interpreter.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from otel_ml.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Runs", "make_room", "survey"]

Runs = list[tuple[float, int, "Path"]]  # when last written, bytes, folder


def survey(directory: Path) -> Runs:
    """All runs in `directory`.

    Raises:
        OSError: it cannot be read, or a run went while we looked.
    """
    runs: Runs = []
    for folder in sorted(path for path in directory.iterdir() if path.is_dir() and not path.is_symlink()):
        stats = [entry.stat() for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)]
        runs.append((max((s.st_mtime for s in stats), default=0.0), sum(s.st_size for s in stats), folder))
    return runs


def make_room(
    directory: Path, own: str, runs: Runs | None = None, *,
    total_bytes: int, total_age_s: float, deleted: Callable[[str], None],
) -> Exception | None:  # fmt: skip
    """Delete what is over the caps; what the disk refused is returned.

    Args:
        directory: the folder that holds all runs.
        own: the name of the caller's run, which stays.
        runs: what a survey found a moment ago.
        total_bytes: what all runs together may hold.
        total_age_s: runs last written longer ago than this go.
        deleted: told the reason for each run that is gone, `run_age` or `total_bytes`.
    """
    from otel_ml.store.runs import delete_run, read_run

    try:
        runs = survey(directory) if runs is None else runs
        total = sum(size for _, size, _ in runs)
        for written, size, folder in sorted(runs):
            old = time.time() - written > total_age_s
            if folder.name == own or not (old or total > total_bytes):
                continue
            run = read_run(folder)
            # What cannot be read is left to a person, what lives to itself.
            if run is not None and not run.problems and run.state != "running":
                delete_run(directory, run)
                total -= size
                deleted("run_age" if old else "total_bytes")
    except FileNotFoundError:
        pass  # another rank was tidying up as well
    except (OSError, StoreError) as error:
        return error
    return None
