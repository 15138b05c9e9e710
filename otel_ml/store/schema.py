"""The shape of a run on disk: folders, tables and their numbered migrations.

A run is a folder `<dir>/<slug>/` with one SQLite file a process. A row holds the columns
that are searched *and* the OTLP bytes of its record, so that one file is the local
default, the spool that can be sent later, and what the viewer reads. The bytes are one
`Span`, `LogRecord` or `Metric` message; its resource and scope stand once in tables of
their own, so that rows can be grouped into a request again.

Called by the writer (on the exporters' threads) and by the reader (in any process).
Standard library only.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from otel_ml.errors import NewerStoreError, StoreError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

__all__ = [
    "COLUMNS", "EXTRAS", "MIGRATIONS", "SUFFIX", "TAILS", "boot_and_start", "extra_folder", "insert", "migrate",
    "migration", "run_folder", "run_slug",
]  # fmt: skip

SUFFIX = ".sqlite"
TAILS = ("", "-wal", "-shm", "-journal")  # what SQLite calls a file, and those beside it
EXTRAS = ("profiles", "jax")  # folders beside the files: what profilers captured, what JAX dumped
MAX_SLUG = 80
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}")
_MADE = re.compile(r"\.h[0-9a-f]{12}")

COLUMNS: dict[str, tuple[str, ...]] = {
    "process": (
        "run_id", "run_name", "attempt", "rank", "world_size", "host", "pid", "kernel_start", "resource",
        "started_unix_ns", "ended_unix_ns", "outcome", "exit_code", "totals",
    ),
    "resources": ("schema_url", "attributes", "otlp"),
    "scopes": ("name", "version", "schema_url", "attributes", "otlp"),
    "spans": (
        "resource_id", "scope_id", "trace_id", "span_id", "parent_span_id", "name", "kind", "start_unix_ns",
        "end_unix_ns", "status", "status_message", "step", "attributes", "links", "events", "otlp",
    ),
    "logs": (
        "resource_id", "scope_id", "time_unix_ns", "event_name", "severity_number", "body", "trace_id", "span_id",
        "step", "attributes", "otlp",
    ),
    "points": (
        "resource_id", "scope_id", "time_unix_ns", "start_unix_ns", "name", "kind", "unit", "temporality",
        "attributes", "value", "count", "sum", "min", "max", "buckets", "otlp",
    ),
    "drops": ("signal", "reason", "count"),
    "deliveries": ("signal", "state", "first", "last", "reason"),
}  # fmt: skip
"""The columns of each table at the newest version, without the row's own id."""

MIGRATIONS: list[Callable[[sqlite3.Connection], None]] = []
"""What makes version n of version n-1, in order; `PRAGMA user_version` says how many a file has had."""


def migration(function: Callable[[sqlite3.Connection], None]) -> Callable[[sqlite3.Connection], None]:
    """Append a migration; its place in the file is its number, and a released one is never edited."""
    MIGRATIONS.append(function)
    return function


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a file to the newest version, each step whole or not at all.

    The connection must be in autocommit mode (`isolation_level=None`).

    Raises:
        NewerStoreError: the file was written by a newer otel-ml.
    """
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > len(MIGRATIONS):
        message = (
            f"the file has schema {version}, this otel-ml knows {len(MIGRATIONS)}: "
            "it was written by a newer one; type `pip install --upgrade otel-ml`"
        )
        raise NewerStoreError(message)
    for number, step in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            step(connection)
            connection.execute(f"PRAGMA user_version = {number:d}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


@migration
def m001_records(connection: sqlite3.Connection) -> None:
    """The process, its resources and scopes, the three signals, and what was lost.

    `value`, `sum`, `min` and `max` have no type: SQLite turns a NaN into NULL, so a NaN
    is stored as the text 'nan', and whole numbers stay whole.
    """
    for statement in (
        """CREATE TABLE process (
            id INTEGER PRIMARY KEY CHECK (id = 1), run_id TEXT NOT NULL, run_name TEXT NOT NULL,
            attempt INTEGER NOT NULL, rank INTEGER, world_size INTEGER, host TEXT NOT NULL, pid INTEGER NOT NULL,
            kernel_start TEXT, resource TEXT NOT NULL, started_unix_ns INTEGER NOT NULL, ended_unix_ns INTEGER,
            outcome TEXT, exit_code INTEGER, totals TEXT)""",
        """CREATE TABLE resources (
            id INTEGER PRIMARY KEY, schema_url TEXT, attributes TEXT NOT NULL, otlp BLOB NOT NULL)""",
        """CREATE TABLE scopes (
            id INTEGER PRIMARY KEY, name TEXT NOT NULL, version TEXT, schema_url TEXT, attributes TEXT NOT NULL,
            otlp BLOB NOT NULL)""",
        """CREATE TABLE spans (
            id INTEGER PRIMARY KEY, resource_id INTEGER NOT NULL, scope_id INTEGER NOT NULL, trace_id TEXT NOT NULL,
            span_id TEXT NOT NULL, parent_span_id TEXT, name TEXT NOT NULL, kind TEXT NOT NULL,
            start_unix_ns INTEGER NOT NULL, end_unix_ns INTEGER NOT NULL, status TEXT NOT NULL, status_message TEXT,
            step INTEGER, attributes TEXT NOT NULL, links TEXT NOT NULL, events TEXT NOT NULL, otlp BLOB NOT NULL)""",
        "CREATE INDEX spans_by_trace ON spans (trace_id)",
        "CREATE INDEX spans_by_name ON spans (name, step)",
        """CREATE TABLE logs (
            id INTEGER PRIMARY KEY, resource_id INTEGER NOT NULL, scope_id INTEGER NOT NULL,
            time_unix_ns INTEGER NOT NULL, event_name TEXT, severity_number INTEGER, body TEXT, trace_id TEXT,
            span_id TEXT, step INTEGER, attributes TEXT NOT NULL, otlp BLOB NOT NULL)""",
        "CREATE INDEX logs_by_event ON logs (event_name, time_unix_ns)",
        """CREATE TABLE points (
            id INTEGER PRIMARY KEY, resource_id INTEGER NOT NULL, scope_id INTEGER NOT NULL,
            time_unix_ns INTEGER NOT NULL, start_unix_ns INTEGER, name TEXT NOT NULL, kind TEXT NOT NULL,
            unit TEXT NOT NULL, temporality TEXT, attributes TEXT NOT NULL, value, count INTEGER, sum, min, max,
            buckets TEXT, otlp BLOB NOT NULL)""",
        "CREATE INDEX points_by_name ON points (name, time_unix_ns)",
        """CREATE TABLE drops (
            signal TEXT NOT NULL, reason TEXT NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (signal, reason)
            ) WITHOUT ROWID""",
    ):
        connection.execute(statement)


@migration
def m002_deliveries(connection: sqlite3.Connection) -> None:
    """What became of records on their way to an endpoint: ranges of row ids by signal and state (`outbox.py`).

    Ranges, not a column: to acknowledge a record costs a share of one small row, and not
    its own row written once more.
    """
    connection.execute(
        """CREATE TABLE deliveries (
            signal TEXT NOT NULL, state TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, reason TEXT,
            PRIMARY KEY (signal, state, first)) WITHOUT ROWID"""
    )


@functools.cache
def insert(table: str, *, numbered: bool = False, rows: int = 1) -> str:
    """The INSERT for rows of `table`, values in the order of `COLUMNS`; `numbered`, each row's own id comes first."""
    columns = (*(("id",) if numbered else ()), *COLUMNS[table])
    values = ", ".join([f"({', '.join('?' * len(columns))})"] * rows)
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {values}"  # noqa: S608 - constants


def run_slug(run_id: str) -> str:
    """The run's folder name: the id itself where it is plain, else cleaned and told apart by a hash.

    Always `[A-Za-z0-9._-]{1,80}` and never hidden, `.` or `..`. Two ids never share one:
    a name that ends like a hashed one is hashed as well.
    """
    if _PLAIN.fullmatch(run_id) and not _MADE.fullmatch(run_id[-14:]):
        return run_id
    digest = hashlib.sha256(run_id.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    tail = f".h{digest}"
    head = re.sub(r"[^A-Za-z0-9._-]+", "-", run_id).lstrip(".-")[: MAX_SLUG - len(tail)]
    return f"{head or 'run'}{tail}"


def extra_folder(directory: Path, run_id: str, name: str) -> Path:
    """Make, for this user alone, a folder of `EXTRAS` in the run's: what is not telemetry but belongs to the run."""
    folder = run_folder(directory, run_id)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for part in (folder, folder / name):
        part.mkdir(mode=0o700, exist_ok=True)
    return folder / name


def run_folder(directory: Path, run_id: str) -> Path:
    """The run's folder in `directory`, which need not exist yet.

    Raises:
        StoreError: the folder leads out of `directory` (a symbolic link put there).
    """
    base = directory.resolve()
    folder = base / run_slug(run_id)
    if folder.resolve().parent != base or folder.is_symlink():
        message = f"{folder} leads out of {base}; remove that link or choose another run id"
        raise StoreError(message)
    return folder


def boot_and_start(pid: int) -> str | None:
    """What tells this process from a later one with the same pid; None where it is gone or there is no /proc.

    The machine's boot id and the process's start in clock ticks since. A zombie is gone.
    """
    try:
        stat = Path(f"/proc/{pid:d}/stat").read_bytes()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None
    state, *rest = stat[stat.rindex(b")") + 2 :].split()  # the command's name may hold spaces and brackets
    return None if state in b"ZX" else f"{boot}:{int(rest[18])}"


def has_proc() -> bool:
    """Whether this machine tells about processes under /proc."""
    return os.path.exists("/proc/self/stat")  # noqa: PTH110 - one stat, no object
