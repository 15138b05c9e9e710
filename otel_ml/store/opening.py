"""Opens a process's file to read it: also one that is being written, was copied without its journal, or is older.

Nothing of the file is changed, whatever its version. Standard library only.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from otel_ml.errors import StoreError
from otel_ml.store.schema import COLUMNS, MIGRATIONS, migrate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["attempt", "opened", "select"]

T = TypeVar("T")
WAL_MODE = 2  # bytes 18 and 19 of a file whose newest rows are in a -wal beside it


def attempt(read: Callable[[Path], T], path: Path) -> T | StoreError:
    """What `read` finds in a file, or why it cannot."""
    try:
        return read(path)
    except StoreError as error:
        return error


@contextmanager
def opened(path: Path) -> Iterator[tuple[sqlite3.Connection, tuple[str, ...]]]:
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


def select(connection: sqlite3.Connection, table: str, *, where: str = "", values: Iterable[Any] = ()) -> list[Any]:
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
