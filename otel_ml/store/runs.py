"""What runs there are, and how each ended.

Called by `otel-ml runs`, `report`, `view` and the summary, in any process, also while a
run is being written. It opens read-only and changes nothing but what `delete_run()` is asked
to delete.

A run that never said goodbye is judged by its process: alive on this machine means
`running`, gone means `killed`; on another machine it is `running` while its rows are
fresh and `lost` after that.
"""

from __future__ import annotations

import difflib
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otel_ml import names
from otel_ml.errors import StoreError
from otel_ml.store.ending import FILE, WORST, Ending, State, how_it_ended, read_ending
from otel_ml.store.opening import attempt, opened, select
from otel_ml.store.records import last_event, points_of
from otel_ml.store.schema import EXTRAS, SUFFIX, TAILS, boot_and_start, has_proc
from otel_ml.totals import RunTotals

if TYPE_CHECKING:
    import sqlite3

__all__ = [
    "Process", "Run", "State", "by_rank", "delete_run", "files_of", "find_run", "list_runs", "process_of", "read_run",
]  # fmt: skip

FRESH_S = 60.0  # rows younger than this say that a process on another machine lives; points come every 10 s


@dataclass(frozen=True)
class Process:
    """One process of a run: the row it wrote about itself, and what was lost."""

    path: Path
    run_id: str
    run_name: str
    attempt: int
    rank: int | None
    world_size: int | None
    host: str
    pid: int
    kernel_start: str | None
    resource: dict[str, Any]
    started_unix_ns: int
    ended_unix_ns: int | None
    outcome: str | None
    exit_code: int | None
    totals: dict[str, Any] | None
    state: State
    last_unix_ns: int  # its end, as it or its launcher told it, else of its newest row
    drops: dict[str, int]  # "signal reason" -> records
    notes: tuple[str, ...] = ()  # what to know about the file: a missing -wal, records not kept

    @property
    def goodbye(self) -> RunTotals | None:
        """The totals that it left at its end; before that `totals` are those that it had come to so far."""
        return None if self.ended_unix_ns is None or self.totals is None else RunTotals.from_dict(self.totals)


@dataclass(frozen=True)
class Run:
    """A run: its folder and what its processes say together; `problems` names the files that cannot be read."""

    id: str
    slug: str
    name: str
    path: Path
    started_unix_ns: int
    ended_unix_ns: int | None
    state: State
    processes: tuple[Process, ...]
    size_by: int
    steps: int
    problems: tuple[str, ...] = field(default=())
    ending: Ending | None = None  # what its launcher saw, where it had one and nothing began since


def list_runs(directory: Path) -> list[Run]:
    """All runs in `directory`, the newest first; none where it does not exist."""
    if not directory.is_dir():
        return []
    found = (read_run(path) for path in directory.iterdir() if path.is_dir() and not path.is_symlink())
    return sorted((run for run in found if run is not None), key=lambda run: (-run.started_unix_ns, run.slug))


def find_run(directory: Path, wanted: str | None) -> Run:
    """The run that `wanted` means: its id, a beginning of it that fits one run only, or its name.

    A name that several runs bear means the newest of them; None means the newest of all.

    Raises:
        StoreError: none fits or several do; the message says what to type.
    """
    runs = list_runs(directory)
    if not runs:
        message = f"no run in {directory} yet; type `otel-ml run script.py` to record one"
        raise StoreError(message)
    if wanted is None:
        return runs[0]
    same = [run for run in runs if wanted in (run.id, run.slug)] or [run for run in runs if run.name == wanted]
    if same:
        return same[0]
    begun = [run for run in runs if wanted and (run.id.startswith(wanted) or run.slug.startswith(wanted))]
    if len(begun) == 1:
        return begun[0]
    if begun:
        message = f"several runs begin with {wanted!r}: {_listed(begun)}; type more of the one you mean"
        raise StoreError(message)
    words = {word: run for run in reversed(runs) for word in (run.name, run.slug, run.id) if word}
    close = difflib.get_close_matches(wanted, words, n=5, cutoff=0.5) or [w for w in words if wanted in w][:5]
    near = list({run.slug: run for run in (words[word] for word in close)}.values())
    hint = f"did you mean {_listed(near)}" if near else f"the newest is {_listed(runs[:1])}"
    message = f"no run {wanted!r} in {directory}; {hint}? `otel-ml runs` lists them all"
    raise StoreError(message)


def _listed(runs: list[Run]) -> str:
    return ", ".join(f"{run.id} ({run.name})" if run.name else run.id for run in runs)


def read_run(folder: Path) -> Run | None:
    """The run in `folder`; None where the folder holds no file of ours."""
    paths = files_of(folder)
    if not paths:
        return None
    read = [attempt(process_of, path) for path in paths]
    processes = sorted((found for found in read if isinstance(found, Process)), key=by_rank)
    problems = tuple(str(found) for found in read if isinstance(found, StoreError))
    stats = [stat for path in paths for stat in _stats(path)]
    if not processes:
        written = int(max(stat.st_mtime for stat in stats) * 1e9) if stats else 0
        size = sum(stat.st_size for stat in stats)
        return Run(folder.name, folder.name, "", folder, written, None, "lost", (), size, 0, problems)
    last = [process for process in processes if process.attempt == max(p.attempt for p in processes)]
    ending, running = read_ending(folder), any(process.state == "running" for process in last)
    if ending is not None and (running or max(p.started_unix_ns for p in processes) > ending.at_unix_ns):
        ending = None
    state = how_it_ended([(p.rank, p.state) for p in sorted(last, key=lambda p: p.started_unix_ns)], ending)
    return Run(
        id=processes[0].run_id,
        slug=folder.name,
        name=next((process.run_name for process in processes if process.run_name), ""),
        path=folder,
        started_unix_ns=min(process.started_unix_ns for process in processes),
        ended_unix_ns=None if running else ending.at_unix_ns if ending else max(p.last_unix_ns for p in last),
        state=state,
        processes=tuple(processes),
        size_by=sum(stat.st_size for stat in stats),
        steps=_steps_of_run(processes),
        problems=problems,
        ending=ending,
    )


def delete_run(directory: Path, run: Run) -> None:
    """Delete a run's files, and its folder if nothing else is in it.

    Raises:
        StoreError: the run is alive, or its folder is not one of `directory`.
    """
    folder = directory.resolve() / run.slug
    if run.path.is_symlink() or run.path.resolve() != folder or folder.parent != directory.resolve():
        message = f"{run.path} is not a run of {directory}; nothing was deleted"
        raise StoreError(message)
    current = read_run(folder)
    if current is not None and any(process.state == "running" for process in current.processes):
        pids = ", ".join(f"{p.pid} on {p.host}" for p in current.processes if p.state == "running")
        message = f"run {run.id} is still running (process {pids}); stop it first, then delete it"
        raise StoreError(message)
    try:
        for path in files_of(folder):
            for tail in reversed(TAILS):  # the file itself last, so that a failure leaves a run to see
                Path(f"{path}{tail}").unlink(missing_ok=True)
        (folder / FILE).unlink(missing_ok=True)
        for extra in EXTRAS:
            if (folder / extra).is_dir() and not (folder / extra).is_symlink():
                shutil.rmtree(folder / extra)
        if not any(folder.iterdir()):
            folder.rmdir()
    except OSError as error:
        message = f"cannot delete {folder}: {error}"
        raise StoreError(message) from error


def files_of(folder: Path) -> list[Path]:
    """The files of a run's processes."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == SUFFIX and path.is_file())
    except OSError:
        return []


def _stats(path: Path) -> list[os.stat_result]:
    stats = []
    for tail in TAILS:
        with suppress(FileNotFoundError):
            stats.append(Path(f"{path}{tail}").stat())
    return stats


def by_rank(process: Process) -> tuple[int, bool, int, int]:
    """The order of a run's processes: by attempt, then rank, those without one last."""
    return (process.attempt, process.rank is None, process.rank or 0, process.started_unix_ns)


# --- a process ------------------------------------------------------------------------------


def process_of(path: Path) -> Process:
    """Who wrote a file, and what became of it.

    Raises:
        StoreError: the file cannot be read.
    """
    with opened(path) as (connection, notes):
        rows = select(connection, "process")
        if not rows:
            message = f"{path} does not say whose it is: its process ended at its start; `otel-ml runs rm` deletes it"
            raise StoreError(message)
        drops = {f"{signal} {reason}": n for signal, reason, n in connection.execute("SELECT * FROM drops")}
        row = rows[0]
        if row["totals"] is not None:
            row["started_unix_ns"] = row["totals"].get("started_unix_ns") or row["started_unix_ns"]
        last = row["ended_unix_ns"] or _newest(connection) or row["started_unix_ns"]
        state = _state(row, last)
        ending = None if row["ended_unix_ns"] or state == "running" else read_ending(path.parent)
        if ending is not None and ending.pid == row["pid"] and ending.at_unix_ns >= row["started_unix_ns"]:
            last = ending.at_unix_ns
        return Process(path=path, **row, state=state, last_unix_ns=last, drops=drops, notes=notes + _unkept(drops))


def _unkept(drops: dict[str, int]) -> tuple[str, ...]:
    """The records that the file lacks, in words."""
    parts = [(*key.split(" "), n) for key, n in drops.items()]
    return tuple(f"{n:,} {signal} were not kept ({reason})" for signal, reason, n in parts if signal != "runs")


def _newest(connection: sqlite3.Connection) -> int | None:
    """When the newest row is from, by the last row of each table."""
    found = [
        connection.execute(f"SELECT {column} FROM {table} ORDER BY id DESC LIMIT 1").fetchone()  # noqa: S608 - constants
        for table, column in (("spans", "end_unix_ns"), ("logs", "time_unix_ns"), ("points", "time_unix_ns"))
    ]
    return max((int(row[0]) for row in found if row), default=None)


def _state(row: dict[str, Any], last_unix_ns: int) -> State:
    if row["ended_unix_ns"] is not None:
        outcome = row["outcome"]
        return next((state for state in WORST[1:] if state == outcome), "finished")
    if row["host"] != os.uname().nodename:
        return "running" if time.time_ns() - last_unix_ns < FRESH_S * 1e9 else "lost"
    return "running" if _alive(row["pid"], row["kernel_start"]) else "killed"


def _alive(pid: int, kernel_start: str | None) -> bool:
    """Whether this very process still lives on this machine."""
    if kernel_start is not None and has_proc():
        return boot_and_start(pid) == kernel_start
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _steps_of_run(processes: list[Process]) -> int:
    """How many steps the run's last attempt made: the most that one of its ranks knows of."""
    attempt = max(process.attempt for process in processes)
    return max(_steps_of(process) for process in processes if process.attempt == attempt)


def _steps_of(process: Process) -> int:
    """How many steps a process made, without reading its whole curve."""
    totals = process.goodbye
    if totals is not None:
        return totals.steps + totals.steps_skipped + totals.steps_failed
    with opened(process.path) as (connection, _):
        counted = sum(point.value or 0 for point in points_of(connection, process, names.STEPS.name, latest=True))
        one = int(last_event(connection, names.EVENT_STEP).get(names.STEP_NUMBER, -1))
        many = last_event(connection, names.EVENT_STEPS)
    last = (many.get(names.STEP_NUMBER) or [-1])[-1]  # the first of the steps behind the entry
    return max(int(counted), one + 1, int(last + many.get(names.STEP_STRIDE, 1)) if many else 0)
