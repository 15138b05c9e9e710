"""Reads runs back from disk: what there is, how each ended, its rows and its totals.

Called by `otel-ml runs`, `report`, `view` and the summary, in any process, also while a
run is being written. It opens read-only, changes nothing but what `delete_run()` is asked
to delete, and needs neither the SDK nor a framework, so a copied file opens at once.

A run that never said goodbye is judged by its process: alive on this machine means
`running`, gone means `killed`; on another machine it is `running` while its rows are
fresh and `lost` after that.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import shutil
import sqlite3
import time
from collections import defaultdict
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGINT
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import quote

from otel_ml import names
from otel_ml.errors import StoreError
from otel_ml.store import outbox
from otel_ml.store.ending import FILE, Ending, read_ending
from otel_ml.store.schema import COLUMNS, EXTRAS, MIGRATIONS, SUFFIX, boot_and_start, has_proc, migrate
from otel_ml.totals import Distribution, LossCurve, RunTotals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = [
    "LogRow", "PointRow", "Process", "Run", "RunReader", "SpanRow", "State", "Undelivered", "delete_run", "find_run",
    "list_runs", "read_run", "undelivered",
]  # fmt: skip

T = TypeVar("T")
State = Literal["running", "finished", "failed", "interrupted", "killed", "lost"]

FRESH_S = 60.0  # rows younger than this say that a process on another machine lives; points come every 10 s
BATCH_BYTES = 1 << 20
BATCH_ROWS = 512
TAILS = ("", "-wal", "-shm", "-journal")
WAL_MODE = 2  # bytes 18 and 19 of a file whose newest rows are in a -wal beside it


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
    last_unix_ns: int  # of its newest row, or its end
    drops: dict[str, int]  # "signal reason" -> records
    notes: tuple[str, ...] = ()  # what to know about the file: a missing -wal, records not kept


@dataclass(frozen=True)
class SpanRow:
    """A span; ids are hex, links and events plain data."""

    rank: int | None
    pid: int
    trace_id: str
    span_id: str
    parent_span_id: str | None
    name: str
    kind: str
    start_unix_ns: int
    end_unix_ns: int
    status: str
    status_message: str | None
    step: int | None
    attributes: dict[str, Any]
    links: list[dict[str, Any]]
    events: list[dict[str, Any]]


@dataclass(frozen=True)
class LogRow:
    """A log record, or an event where `event_name` is set."""

    rank: int | None
    pid: int
    time_unix_ns: int
    event_name: str | None
    severity_number: int | None
    body: str | None
    trace_id: str | None
    span_id: str | None
    step: int | None
    attributes: dict[str, Any]


@dataclass(frozen=True)
class PointRow:
    """One point of a metric: a `value`, or count, sum, min, max and buckets of a histogram."""

    rank: int | None
    pid: int
    time_unix_ns: int
    start_unix_ns: int | None
    name: str
    kind: str
    unit: str
    temporality: str | None
    attributes: dict[str, Any]
    value: float | None
    count: int | None
    sum: float | None
    min: float | None
    max: float | None
    buckets: dict[str, Any] | None


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


# --- finding runs ---------------------------------------------------------------------------


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
    paths = _files(folder)
    if not paths:
        return None
    read = [_attempt(_process, path) for path in paths]
    processes = sorted((found for found in read if isinstance(found, Process)), key=_by_rank)
    problems = tuple(str(found) for found in read if isinstance(found, StoreError))
    stats = [stat for path in paths for stat in _stats(path)]
    if not processes:
        written = int(max(stat.st_mtime for stat in stats) * 1e9) if stats else 0
        size = sum(stat.st_size for stat in stats)
        return Run(folder.name, folder.name, "", folder, written, None, "lost", (), size, 0, problems)
    last = [process for process in processes if process.attempt == max(p.attempt for p in processes)]
    state = min((process.state for process in last), key=_WORST.index)
    ending = read_ending(folder)
    if ending is not None and (state == "running" or max(p.started_unix_ns for p in processes) > ending.at_unix_ns):
        ending = None
    if ending is not None and state in ("killed", "lost"):
        state = _state_by(ending, alone=len(last) == 1)
    return Run(
        id=processes[0].run_id,
        slug=folder.name,
        name=next((process.run_name for process in processes if process.run_name), ""),
        path=folder,
        started_unix_ns=min(process.started_unix_ns for process in processes),
        ended_unix_ns=None if state == "running" else max(process.last_unix_ns for process in last),
        state=state,
        processes=tuple(processes),
        size_by=sum(stat.st_size for stat in stats),
        steps=_steps_of_run(processes),
        problems=problems,
        ending=ending,
    )


def _state_by(ending: Ending, *, alone: bool) -> State:
    """What became of a program without a goodbye; of several processes, one may have been killed all the same."""
    if ending.signal is not None:
        return "interrupted" if ending.signal == SIGINT else "killed"
    if not alone:
        return "killed"
    return "finished" if ending.exit_code == 0 else "failed"


_WORST: tuple[State, ...] = ("running", "failed", "killed", "interrupted", "lost", "finished")


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
        for path in _files(folder):
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


def _files(folder: Path) -> list[Path]:
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


def _attempt(read: Callable[[Path], T], path: Path) -> T | StoreError:
    """What `read` finds in a file, or why it cannot."""
    try:
        return read(path)
    except StoreError as error:
        return error


def _by_rank(process: Process) -> tuple[int, bool, int, int]:
    return (process.attempt, process.rank is None, process.rank or 0, process.started_unix_ns)


# --- opening a file -------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[tuple[sqlite3.Connection, tuple[str, ...]]]:
    """A read-only connection to a file at the newest version, and what to know about it.

    Raises:
        StoreError: the file is missing, damaged, not ours, or (NewerStoreError) too new.
    """
    try:
        connection, notes = _connect(path)
        try:
            version = int(connection.execute("PRAGMA user_version").fetchone()[0])
            if version != len(MIGRATIONS):
                connection = _migrated(connection)
            yield connection, notes
        finally:
            connection.close()
    except (sqlite3.Error, ValueError) as error:
        message = (
            f"{path} cannot be read ({error}); if it stays so, `sqlite3 {path.name} .recover` may save what is left, "
            f"and `otel-ml runs rm {path.parent.name}` deletes it"
        )
        raise StoreError(message) from error
    except StoreError as error:
        if str(path) in str(error):
            raise
        message = f"{path}: {error}"
        raise type(error)(message) from error


def _connect(path: Path) -> tuple[sqlite3.Connection, tuple[str, ...]]:
    try:
        with path.open("rb") as file:
            head = file.read(20)
    except OSError as error:
        message = f"{path} cannot be opened ({error.strerror}); `otel-ml runs` lists what is there"
        raise StoreError(message) from error
    if not head:
        message = f"{path} is empty: its process ended before it wrote anything; delete the run with `otel-ml runs rm`"
        raise StoreError(message)
    wal = Path(f"{path}-wal")
    url = f"file:{quote(str(path.resolve()))}?mode=ro"
    if head[18:19] == bytes([WAL_MODE]) and not wal.exists():
        # Opened as what it is, SQLite would make an empty -wal beside it.
        note = f"{wal.name} is missing: if the file was copied without it, the newest rows are not here"
        return sqlite3.connect(f"{url}&immutable=1", uri=True, isolation_level=None), (note,)
    connection = sqlite3.connect(url, uri=True, timeout=2.0, isolation_level=None)
    try:
        connection.execute("SELECT name FROM sqlite_master LIMIT 1").fetchall()
    except sqlite3.OperationalError as error:
        connection.close()
        if "unable to open" not in str(error) and "readonly" not in str(error):
            raise
        # A folder that cannot be written to has no place for the shared index of a -wal.
        connection = sqlite3.connect(f"{url}&immutable=1", uri=True, isolation_level=None)
        if wal.exists() and wal.stat().st_size:
            return connection, (f"{wal.name} could not be read here: copy both files to a folder you may write to",)
    return connection, ()


def _migrated(connection: sqlite3.Connection) -> sqlite3.Connection:
    """A copy in memory at the newest version, since the file itself is not ours to change."""
    copy = sqlite3.connect(":memory:", isolation_level=None)
    try:
        connection.backup(copy)
        connection.close()
        migrate(copy)
    except BaseException:
        copy.close()
        raise
    return copy


def _rows(connection: sqlite3.Connection, table: str, *, where: str = "", values: Iterable[Any] = ()) -> list[Any]:
    """The rows of a table, as dicts with JSON columns decoded."""
    columns = [column for column in COLUMNS[table] if column not in _LEFT_OUT]
    cursor = connection.execute(f"SELECT {', '.join(columns)} FROM {table} {where}", tuple(values))  # noqa: S608 - constants
    return [
        {
            column: json.loads(value) if column in _JSON and value is not None else value
            for column, value in zip(columns, row, strict=True)
        }
        for row in cursor
    ]


_LEFT_OUT = frozenset({"otlp", "resource_id", "scope_id"})
_JSON = frozenset({"attributes", "links", "events", "buckets", "resource", "totals"})


# --- a process ------------------------------------------------------------------------------


def _process(path: Path) -> Process:
    with _opened(path) as (connection, notes):
        rows = _rows(connection, "process")
        if not rows:
            message = f"{path} does not say whose it is: its process ended at its start; `otel-ml runs rm` deletes it"
            raise StoreError(message)
        drops = {f"{signal} {reason}": n for signal, reason, n in connection.execute("SELECT * FROM drops")}
        row = rows[0]
        if row["totals"] is not None:
            row["started_unix_ns"] = row["totals"].get("started_unix_ns") or row["started_unix_ns"]
        last = row["ended_unix_ns"] or _newest(connection) or row["started_unix_ns"]
        return Process(
            path=path, **row, state=_state(row, last), last_unix_ns=last, drops=drops, notes=notes + _unkept(drops)
        )


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
        return next((state for state in _WORST[1:] if state == outcome), "finished")
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


@dataclass(frozen=True)
class Undelivered:
    """Of a file's spans, logs and points: how many an endpoint lacks, how many it refuses for good, and why."""

    left: dict[str, int]
    refused: dict[str, int]
    reasons: dict[str, str]


def undelivered(path: Path, *, unasked: bool = False, again: bool = False) -> Undelivered:
    """What an endpoint does not have of a file (`outbox.py`).

    Args:
        path: the file.
        unasked: count what was recorded while no endpoint was set as left, too.
        again: count what was refused for good as left, too.

    Raises:
        StoreError: the file cannot be read.
    """
    with _opened(path) as (connection, _):
        left = outbox.left(connection, unasked=unasked, again=again)
        return Undelivered(left, outbox.refused(connection), outbox.reasons(connection))


# --- a run's rows ---------------------------------------------------------------------------


class RunReader:
    """Everything in a run; each call reads the disk anew, so a live run can be followed."""

    def __init__(self, run: Run | Path) -> None:
        """Open a run, a run's folder, or one file (copied from anywhere).

        Raises:
            StoreError: nothing in it can be read.
        """
        where = run.path if isinstance(run, Run) else run
        self._paths = [where] if where.is_file() else _files(where)
        if not self._paths:
            message = f"{where} holds no run; `otel-ml runs` lists them"
            raise StoreError(message)
        self._read(lambda _connection, _process: [])

    def processes(self) -> list[Process]:
        """The run's processes as they are now, by attempt and rank."""
        return self._read(lambda _connection, process: [process])

    def problems(self) -> list[str]:
        """What cannot be read, and what to know about what can: a missing -wal, records that were not kept."""
        notes = [f"{process.path.name}: {note}" for process in self.processes() for note in process.notes]
        return self._failed + notes

    def resource(self) -> dict[str, Any]:
        """The resource of the first process: rank 0's where there are ranks."""
        return self.processes()[0].resource

    def spans(self, name: str | None = None, step: int | None = None) -> list[SpanRow]:
        """The spans by start time: those named `name`, those of `step`, or all."""
        where, values = _where(name=name, step=step)

        def read(connection: sqlite3.Connection, process: Process) -> list[SpanRow]:
            rows = _rows(connection, "spans", where=where, values=values)
            return [SpanRow(process.rank, process.pid, **row) for row in rows]

        return sorted(self._read(read), key=lambda span: (span.start_unix_ns, span.end_unix_ns))

    def logs(self, event: str | None = None) -> list[LogRow]:
        """The log records by time: those whose event name is `event`, or all."""
        where, values = _where(event_name=event)

        def read(connection: sqlite3.Connection, process: Process) -> list[LogRow]:
            rows = _rows(connection, "logs", where=where, values=values)
            return [LogRow(process.rank, process.pid, **row) for row in rows]

        return sorted(self._read(read), key=lambda log: log.time_unix_ns)

    def points(self, name: str | None = None, *, latest: bool = False) -> list[PointRow]:
        """The metric points by time: those of metric `name`, or all; `latest` keeps each series' last."""
        points = self._read(lambda connection, process: _points(connection, process, name, latest=latest))
        return sorted(points, key=lambda point: (point.time_unix_ns, point.name))

    def batches(self, signal: str) -> Iterator[outbox.Batch]:
        """The rows of `spans`, `logs` or `points` as their OTLP bytes, some hundred at a time, by attempt and rank."""
        for process in self.processes():
            last = 0
            with _opened(process.path) as (connection, _):
                while True:
                    batch = outbox.read(
                        connection, signal, [(last + 1, outbox.END)], most_bytes=BATCH_BYTES, most_rows=BATCH_ROWS
                    )
                    if not batch.records:
                        break
                    last = batch.ids[-1]
                    yield batch

    def totals(self) -> list[RunTotals]:
        """Each process's totals: what it said at its end, else what can be told from its rows."""

        def read(connection: sqlite3.Connection, process: Process) -> list[RunTotals]:
            if process.totals is not None:
                return [RunTotals.from_dict(process.totals)]
            return [_rebuilt(connection, process)]

        return self._read(read)

    def _read(self, read: Callable[[sqlite3.Connection, Process], list[Any]]) -> list[Any]:
        """Gather from every file that can be read, by attempt and rank."""

        def one(path: Path) -> tuple[Process, list[Any]]:
            process = _process(path)
            with _opened(path) as (connection, _):
                return process, read(connection, process)

        found = [_attempt(one, path) for path in self._paths]
        errors = [part for part in found if isinstance(part, StoreError)]
        parts = [part for part in found if not isinstance(part, StoreError)]
        if not parts:
            raise errors[0]
        self._failed = [str(error) for error in errors]
        return [item for _, items in sorted(parts, key=lambda part: _by_rank(part[0])) for item in items]


def _where(**equal: object) -> tuple[str, list[object]]:
    wanted = {column: value for column, value in equal.items() if value is not None}
    clause = " AND ".join(f"{column} = ?" for column in wanted)
    return f"WHERE {clause} ORDER BY id" if clause else "ORDER BY id", list(wanted.values())


def _points(
    connection: sqlite3.Connection, process: Process, name: str | None = None, *, latest: bool = False
) -> list[PointRow]:
    where, values = _where(name=name)
    if latest:
        groups = "SELECT max(id) FROM points GROUP BY name, attributes, scope_id, resource_id"
        where = where.replace("ORDER BY", f"{'AND' if values else 'WHERE'} id IN ({groups}) ORDER BY")
    rows = _rows(connection, "points", where=where, values=values)
    for row in rows:
        for column in ("value", "sum", "min", "max"):
            if isinstance(row[column], str):  # a NaN is stored as text
                row[column] = float(row[column])
    return [PointRow(process.rank, process.pid, **row) for row in rows]


# --- totals of a run that never said goodbye ------------------------------------------------


@dataclass
class _Steps:
    """What a process's step records say; several steps stand behind each entry of a thinned one."""

    outcomes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    durations: list[tuple[float, float, int]] = field(default_factory=list)  # mean, longest, steps
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # by attribute
    losses: dict[str, LossCurve] = field(default_factory=dict)
    memory_peak_by: int | None = None
    thinned: bool = False

    @property
    def count(self) -> int:
        return sum(self.outcomes.values())

    def add(self, record: dict[str, Any], weight: int) -> None:
        """Take one entry, whose times are the mean and whose samples are the sum of `weight` steps."""
        self.thinned |= weight > 1
        outcome = record.get(names.OUTCOME) or "ok"
        self.outcomes[outcome] += 1  # a bin that holds one that is not ok does not say how many
        self.outcomes["ok"] += weight - 1
        for key, value in record.items():
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                continue
            optimizer = key.removeprefix(f"{names.STEP_LOSS}.")
            if key == names.LOSS.name or (optimizer != key and not key.endswith((".min", ".max"))):
                self._loss("" if key == names.LOSS.name else optimizer, key, record, weight)
            elif key == names.STEP_DURATION_S:
                self.durations.append((value, record.get(f"{key}.max") or value, weight))
            elif key == names.MEMORY_PEAK.name:
                self.memory_peak_by = max(self.memory_peak_by or 0, int(value))
            elif key in _SUMMED:
                self.sums[key] += value
            elif key.startswith(f"{names.STEP_PHASE}."):
                self.sums[key] += value * weight

    def _loss(self, optimizer: str, key: str, record: dict[str, Any], weight: int) -> None:
        value = record[key]
        if not math.isfinite(value):
            return
        curve = self.losses.setdefault(optimizer, LossCurve(first=value))
        curve.last = value
        lowest = record.get(f"{key}.min", value)
        if curve.best is None or (lowest is not None and lowest < curve.best):
            curve.best = lowest
            curve.best_step = record.get(names.STEP_NUMBER) if weight == 1 else None

    def time(self) -> Distribution:
        """How long the steps took; quantiles only where every step has its own record."""
        if not self.durations:
            return Distribution()
        total = sum(value * weight for value, _, weight in self.durations)
        longest = max(longest for _, longest, _ in self.durations)
        count = sum(weight for _, _, weight in self.durations)
        if self.thinned:
            return Distribution(count=count, total_s=total, max_s=longest)
        values = sorted(value for value, _, _ in self.durations)
        return Distribution(count, total, _rank_of(values, 0.5), _rank_of(values, 0.95), longest)

    def phases(self) -> dict[str, float]:
        """Seconds by phase."""
        prefix = f"{names.STEP_PHASE}."
        return {
            key[len(prefix) :]: value
            for key, value in self.sums.items()
            if key.startswith(prefix) and not key.endswith((".min", ".max"))
        }


_SUMMED = frozenset({str(names.STEP_SAMPLES), str(names.STEP_TOKENS), str(names.STEP_MICRO_BATCHES)})


def _rank_of(ordered: list[float], share: float) -> float:
    """The value that `share` of the values do not exceed."""
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def _step_records(connection: sqlite3.Connection) -> _Steps:
    """Every step record of a process, whether it stands alone or in the columns of a batch."""
    steps = _Steps()
    where, values = "WHERE event_name IN (?, ?) ORDER BY id", (names.EVENT_STEP, names.EVENT_STEPS)
    for row in _rows(connection, "logs", where=where, values=values):
        attributes = row["attributes"]
        columns = {key: value for key, value in attributes.items() if isinstance(value, list)}
        if row["event_name"] == names.EVENT_STEP:
            steps.add(attributes, 1)
            continue
        for index in range(max(map(len, columns.values()), default=0)):
            entry = {key: column[index] for key, column in columns.items() if index < len(column)}
            steps.add(entry, int(attributes.get(names.STEP_STRIDE, 1)))
    return steps


class _Series:
    """The last point of each of a process's series, summed and looked up by metric."""

    def __init__(self, points: list[PointRow]) -> None:
        self._points: dict[str, list[PointRow]] = defaultdict(list)
        for point in points:
            self._points[point.name].append(point)

    def of(self, metric: names.Metric) -> list[PointRow]:
        return self._points.get(metric.name, [])

    def total(self, metric: names.Metric) -> float | None:
        """A counter's sum, or a histogram's, over its attributes; None where it was never recorded."""
        values = [v for point in self.of(metric) for v in (point.value, point.sum) if v is not None]
        return sum(values) if values else None

    def count(self, metric: names.Metric) -> int:
        """How many values a histogram has seen."""
        return sum(point.count or 0 for point in self.of(metric))

    def by(self, metric: names.Metric, attribute: str) -> dict[str, float]:
        """A counter's value, or a histogram's sum, by one attribute."""
        found: dict[str, float] = defaultdict(float)
        for point in self.of(metric):
            found[str(point.attributes.get(attribute, ""))] += point.value or point.sum or 0
        return dict(found)

    def spread(self, metric: names.Metric) -> Distribution:
        """A histogram's count, total and maximum; its buckets do not tell exact quantiles."""
        points = [point for point in self.of(metric) if point.count]
        highest = max((point.max for point in points if point.max is not None), default=None)
        return Distribution(sum(p.count or 0 for p in points), sum(p.sum or 0.0 for p in points), max_s=highest)


def _rebuilt(connection: sqlite3.Connection, process: Process) -> RunTotals:
    """A process's totals from its rows.

    Step records are on disk a second after the step, points every ten: whichever knows of
    more steps tells the steps, their times and what they were made of. Categories of time
    are as of the last collection.
    """
    steps, series = _step_records(connection), _Series(_points(connection, process, latest=True))
    counted = {key: int(value) for key, value in series.by(names.STEPS, names.OUTCOME).items()}
    fresh = steps.count >= sum(counted.values())
    made = steps.count if fresh else sum(counted.values())
    skipped, failed = (max(counted.get(key, 0), steps.outcomes.get(key, 0)) for key in ("skipped", "failed"))
    step_time, phases = steps.time(), steps.phases()
    if not fresh:
        step_time, phases = series.spread(names.STEP_DURATION), series.by(names.PHASE_DURATION, names.PHASE)

    def summed(attribute: str, metric: names.Metric) -> int | None:
        found = steps.sums.get(attribute) if fresh else series.total(metric)
        return None if found is None else round(found)

    def whole(metric: names.Metric) -> int:
        return int(series.total(metric) or 0)

    peaks = [int(point.value) for point in series.of(names.MEMORY_PEAK) if point.value is not None]
    peaks += [] if steps.memory_peak_by is None else [steps.memory_peak_by]
    diagnosis = _last_event(connection, names.EVENT_DIAGNOSIS)
    exception = _last_event(connection, names.EVENT_EXCEPTION)
    samples = series.spread(names.INFERENCE_BATCH_SIZE)
    end = time.time_ns() if process.state == "running" else process.last_unix_ns
    return RunTotals(
        run_id=process.run_id,
        run_name=process.run_name,
        attempt=process.attempt,
        rank=process.rank,
        world_size=process.world_size,
        host=process.host,
        pid=process.pid,
        framework=_framework(process, series),
        started_unix_ns=process.started_unix_ns,
        ended_unix_ns=process.ended_unix_ns,
        outcome="killed" if process.state == "lost" else process.state,
        exit_code=process.exit_code,
        error=_error(exception),
        duration_s=max(0.0, (end - process.started_unix_ns) / 1e9),
        steps=made - skipped - failed,
        steps_skipped=skipped,
        steps_failed=failed,
        samples=summed(names.STEP_SAMPLES, names.SAMPLES),
        tokens=summed(names.STEP_TOKENS, names.TOKENS),
        micro_batches=summed(names.STEP_MICRO_BATCHES, names.MICRO_BATCHES) or 0,
        losses=steps.losses,
        step_time=step_time,
        phases=phases,
        time=series.by(names.RUN_TIME, names.TIME_CATEGORY),
        evaluations=series.count(names.EVALUATION_DURATION),
        inference=series.spread(names.INFERENCE_DURATION),
        inference_samples=int(samples.total_s) if samples.count else None,
        compiles=series.count(names.COMPILE_DURATION),
        recompiles=max(whole(names.RECOMPILES), _events(connection, names.EVENT_RECOMPILED)),
        checkpoints_saved=_events(connection, names.EVENT_CHECKPOINT_SAVED),
        checkpoints_loaded=_events(connection, names.EVENT_CHECKPOINT_LOADED),
        nonfinite={key: int(value) for key, value in series.by(names.NONFINITE, names.SCALAR_NAME).items()},
        memory_peak_by=max(peaks, default=None),
        records=whole(names.RECORD_COUNT),
        records_dropped=whole(names.RECORD_DROPPED),
        errors=whole(names.ERROR_COUNT),
        drain_cpu_s=series.total(names.DRAIN_DURATION),
        thinned=steps.thinned,
        verdict=diagnosis.get(names.DIAGNOSIS_VERDICT),
        evidence=diagnosis.get(names.DIAGNOSIS_EVIDENCE),
        advice=diagnosis.get(names.DIAGNOSIS_ADVICE),
    )


def _framework(process: Process, series: _Series) -> str:
    points = series.of(names.STEP_DURATION) + series.of(names.COMPILE_DURATION)
    told = [process.resource.get(names.FRAMEWORK_NAME), *(p.attributes.get(names.FRAMEWORK_NAME) for p in points)]
    return next((str(name) for name in told if name), "")


def _error(exception: dict[str, Any]) -> str | None:
    if names.EXCEPTION_TYPE not in exception:
        return None
    message = exception.get(names.EXCEPTION_MESSAGE)
    return f"{exception[names.EXCEPTION_TYPE]}: {message}" if message else str(exception[names.EXCEPTION_TYPE])


def _last_event(connection: sqlite3.Connection, event: str) -> dict[str, Any]:
    where = "WHERE event_name = ? ORDER BY id DESC LIMIT 1"
    rows = _rows(connection, "logs", where=where, values=(event,))
    return dict(rows[0]["attributes"]) if rows else {}


def _events(connection: sqlite3.Connection, event: str) -> int:
    return int(connection.execute("SELECT count(*) FROM logs WHERE event_name = ?", (event,)).fetchone()[0])


def _steps_of_run(processes: list[Process]) -> int:
    """How many steps the run's last attempt made: the most that one of its ranks knows of."""
    attempt = max(process.attempt for process in processes)
    return max(_steps_of(process) for process in processes if process.attempt == attempt)


def _steps_of(process: Process) -> int:
    """How many steps a process made, without reading its whole curve."""
    if process.totals is not None:
        totals = RunTotals.from_dict(process.totals)
        return totals.steps + totals.steps_skipped + totals.steps_failed
    with _opened(process.path) as (connection, _):
        counted = sum(point.value or 0 for point in _points(connection, process, names.STEPS.name, latest=True))
        one = int(_last_event(connection, names.EVENT_STEP).get(names.STEP_NUMBER, -1))
        many = _last_event(connection, names.EVENT_STEPS)
    last = (many.get(names.STEP_NUMBER) or [-1])[-1]  # the first of the steps behind the entry
    return max(int(counted), one + 1, int(last + many.get(names.STEP_STRIDE, 1)) if many else 0)
