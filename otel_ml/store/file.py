"""One process's SQLite file while it is being written: made for this user alone, watched for harm, closed as one file.

What SQLite holds in memory hides what others do to the file: a write can succeed after the
file was deleted, moved or overwritten. So it is looked at before each write. Called by the
writer under its lock; imports SQLite at the first open only.

Every system call and every statement lets go of the interpreter lock and has to wait for it
again, while the program runs into us. So there are few of them.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otel_ml import names
from otel_ml.errors import StoreError
from otel_ml.store.rows import json_of, text_of
from otel_ml.store.schema import SUFFIX, TAILS, boot_and_start, insert, migrate, run_folder

if TYPE_CHECKING:
    import sqlite3

__all__ = ["BUSY_S", "StoreFile", "bytes_of", "empty", "is_damaged", "is_network"]

BUSY_S = 1.0  # how long a write waits for a reader of a rollback-journal file
MAGIC = b"SQLite format 3\0"
NETWORK = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "pvfs2", "smb3",
        "smbfs", "virtiofs",
    }
)  # fmt: skip


class StoreFile:
    """An open file of a run, with its one `process` row."""

    def __init__(
        self, directory: Path, run_id: str, *, attributes: dict[str, Any], started_unix_ns: int, wal_bytes: int
    ) -> None:
        """Make the run's folder and a new file in it.

        Args:
            directory: the folder that holds all runs.
            run_id: the run that the file belongs to.
            attributes: of the process's resource; they name the file and fill its `process` row.
            started_unix_ns: when the process began.
            wal_bytes: what the write-ahead log may hold.

        Raises:
            OSError: the disk or folder refuses it.
            sqlite3.Error: SQLite does.
            StoreError: the run's folder leads elsewhere, or is full of this process's files.
        """
        import sqlite3

        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = run_folder(directory, run_id)
        folder.mkdir(mode=0o700, exist_ok=True)
        self.path = _create(folder, attributes.get(names.RANK), started_unix_ns)
        self._name = str(self.path)
        self.connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            _immortal(self.connection)
            self.connection.execute(f"PRAGMA journal_mode = {'DELETE' if is_network(folder, _mounts()) else 'WAL'}")
            self.connection.execute("PRAGMA synchronous = NORMAL")
            self._page = int(self.connection.execute("PRAGMA page_size").fetchone()[0])
            self.connection.execute(f"PRAGMA wal_autocheckpoint = {max(1, wal_bytes // self._page)}")
            self.connection.execute(f"PRAGMA journal_size_limit = {wal_bytes}")
            empty().backup(self.connection)
            _introduce(self.connection, run_id, attributes, started_unix_ns)
            # Kept open as long as the connection: closing any descriptor of a file gives up the process's locks on it.
            self._descriptor = os.open(self.path, os.O_RDONLY)
        except BaseException:
            self.connection.close()
            for tail in TAILS:
                Path(f"{self.path}{tail}").unlink(missing_ok=True)
            raise

    def is_there(self) -> bool:
        """Whether it is still where it was."""
        return os.path.exists(self._name)  # noqa: PTH110 - asked before each write

    def is_whole(self) -> bool:
        """Whether it still begins as such a file does."""
        return os.pread(self._descriptor, len(MAGIC), 0) == MAGIC

    def bytes_held(self) -> int:
        """What its pages hold that are in use."""
        pages = "SELECT page_count - freelist_count FROM pragma_page_count, pragma_freelist_count"
        return int(self.connection.execute(pages).fetchone()[0]) * self._page

    def roll_back(self) -> bool:
        """Undo what was begun; False where the file cannot even do that."""
        import sqlite3

        try:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
        except sqlite3.Error:
            return False
        return os.pread(self._descriptor, len(MAGIC), 0) == MAGIC

    def shrink_journal(self) -> bool:
        """Bring the journal into the file, and empty it; whether that could be done."""
        import sqlite3

        try:
            ((busy, *_),) = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except (OSError, sqlite3.Error):
            return False
        return not busy

    def abandon(self) -> None:
        """Leave the file as it is, for good."""
        os.close(self._descriptor)

    def close(self) -> Exception | None:
        """Bring the journal into the file so that one file is left; what went wrong is returned."""
        import sqlite3

        complaint: Exception | None = None
        try:
            # Not in WAL mode any more: such a file opens from a folder that nobody can write to.
            self.connection.execute("PRAGMA journal_mode = DELETE").fetchall()
        except (OSError, sqlite3.Error) as error:
            # A reader that has the file open is no trouble: its journal stays beside it, whole.
            complaint = None if "locked" in str(error) else error
        self.connection.close()
        os.close(self._descriptor)
        return complaint


@functools.cache
def empty() -> sqlite3.Connection:
    """A database in memory that has all tables: copied in one go, where to make them takes a hundred steps."""
    import sqlite3

    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    _immortal(connection)
    migrate(connection)
    return connection


def bytes_of(path: Path) -> int:
    """What a file and its journal hold; 0 where there is none."""
    return sum(_size(f"{path}{tail}") for tail in TAILS)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - called on every collection
    except OSError:
        return 0


def is_damaged(error: Exception) -> bool:
    """Whether SQLite says that somebody wrote into its file."""
    return "malformed" in str(error) or "not a database" in str(error)


def is_network(folder: Path, mounts: str) -> bool:
    """Whether `folder` is on a filesystem shared by machines, where a write-ahead log does not work.

    `mounts` is the text of `/proc/mounts`; empty where there is none, then nothing counts as shared.
    """
    best, kind = -1, ""
    mounted = [line.split(" ") for line in mounts.splitlines()]
    if not any(_is_shared(fields[2]) for fields in mounted if len(fields) > 2):
        return False
    for fields in mounted:
        if len(fields) > 2:
            point = Path(re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), fields[1]))  # a space is \040
            if len(point.parts) >= best and folder.is_relative_to(point):
                best, kind = len(point.parts), fields[2]
    return _is_shared(kind)


def _is_shared(kind: str) -> bool:
    return kind in NETWORK or kind.startswith("fuse.")


def _mounts() -> str:
    try:
        return Path("/proc/mounts").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def _create(folder: Path, rank: Any, started_unix_ns: int) -> Path:
    """A new empty file that only this user may read, named after the rank where there is one."""
    pid = os.getpid()
    who = f"rank{rank}" if isinstance(rank, int) else f"pid{pid}"
    host, start = os.uname().nodename, boot_and_start(pid) or started_unix_ns
    digest = hashlib.sha256(f"{host} {pid} {start}".encode()).hexdigest()[:8]
    for number in range(1, 100):
        path = folder / f"{who}-{digest}{'' if number == 1 else f'-{number}'}{SUFFIX}"
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:  # a second writer of this very process
            continue
        return path
    message = f"{folder} already holds 99 files of this process"
    raise StoreError(message)


def _introduce(connection: sqlite3.Connection, run_id: str, attributes: dict[str, Any], started_unix_ns: int) -> None:
    """Write the one row of `process`."""
    rank, size = attributes.get(names.RANK), attributes.get(names.WORLD_SIZE)
    attempt = attributes.get(names.RUN_ATTEMPT)
    pid = os.getpid()
    connection.execute(
        insert("process"),
        (
            text_of(run_id),
            text_of(str(attributes.get(names.RUN_NAME, ""))),
            attempt if isinstance(attempt, int) else 0,
            rank if isinstance(rank, int) else None,
            size if isinstance(size, int) else None,
            os.uname().nodename,
            pid,
            boot_and_start(pid),
            json_of(attributes),
            started_unix_ns,
            None,
            None,
            None,
            None,
        ),
    )


def _immortal(connection: sqlite3.Connection) -> None:
    """Never let the garbage collector close it: a forked child that ends would checkpoint the parent's journal.

    Nor does Python 3.13 then warn of a connection that nobody closed.
    """
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
