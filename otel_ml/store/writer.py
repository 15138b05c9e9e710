"""Writes one process's spans, logs and metric points to its file, as three OTel exporters.

It exists so that a run is on disk a second after it happened, whatever kills the process.
Called on the threads of the SDK's batch processors and of the metric reader, never on
the user's thread; the pipeline's own thread calls `prepare()` and `open_gate()`, `tell()` and
`settle()` around what it has written after a turn, and at exit `finish()` and `close()`. Each
export is one transaction. Nothing is opened or made on disk before the gate opens, so a
process that never trains leaves no file.

What cannot be kept is counted by signal and reason, in memory and in the file:

    before_gate   more was exported before the first step than is held back
    queue_full    the oldest in the SDK's queue, which let them go: more came at once than could be written
    run_bytes     the oldest rows, deleted because the file reached its cap
    unsent        the same, of rows that the endpoint had not acknowledged
    unencodable   OTLP has no form for the record (lone surrogates, integers above int64)
    write_failed  the disk or folder refused it; logged once, the next export tries again
    closed        exported after `close()`
    run_age, total_bytes   (signal `runs`) whole finished runs, deleted to make room

At the cap the oldest rows go, from the table that holds most: a run's end tells why it
died. Among logs the user's own go first and `ml.*` events (the step records) last. The
cap holds to within one batch. A forked child's writer does nothing.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import threading
import time
from collections import Counter, deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from otel_ml.core.pace import Pace
from otel_ml.errors import StoreError, guard
from otel_ml.store import outbox
from otel_ml.store.exporters import StoreLogs, StoreMetrics, StoreSpans
from otel_ml.store.file import BUSY_S, StoreFile, bytes_of, empty, is_damaged
from otel_ml.store.housekeeping import Runs, make_room, survey
from otel_ml.store.ledger import Ledger
from otel_ml.store.rows import ENCODERS, Origin, collected_unix_ns, count, json_of
from otel_ml.store.schema import insert, run_slug

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["StoreWriter"]

logger = logging.getLogger("otel_ml")

HELD = {"spans": 2048, "logs": 2048, "points": 60}  # records (for points: collections) kept back before the gate
WAL_BYTES = 1 << 20
INT64 = 1 << 63
TRIMMED = 0.95  # of the cap, what is left of a file that was over it
BACKLOG = 512  # records of one export, from which the SDK's queue is filling up: then no time is lost with rests
PATIENCE_S = 5.0  # how long the goodbye waits for an export that is under way
HOUSEKEEPING_S = 600.0
SURVEYED_S = 60.0  # how long what a survey found is believed
_SIZED = {str, bytes}
ROWS_AT_ONCE = 32  # values of which every SQLite takes in one statement
Row = tuple[Any, ...]


@dataclasses.dataclass
class _Tally:
    """What this process's file holds and what was lost."""

    ids: dict[tuple[str, Row], int] = dataclasses.field(default_factory=dict)
    rows: Counter[str] = dataclasses.field(default_factory=Counter)
    bytes: Counter[str] = dataclasses.field(default_factory=Counter)
    dropped: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    unsaved: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)  # dropped, not yet in the file
    last: Counter[str] = dataclasses.field(default_factory=Counter)  # the id of each table's newest row
    owed: set[str] = dataclasses.field(default_factory=set)  # signals that the file says have an endpoint
    totals: str | None = None  # those that the file has

    def copy(self) -> _Tally:
        return _Tally(
            self.ids.copy(),
            self.rows.copy(),
            self.bytes.copy(),
            self.dropped.copy(),
            self.unsaved.copy(),
            self.last.copy(),
            self.owed.copy(),
            self.totals,
        )


class StoreWriter:
    """One process's file in a run's folder; see the module for what it promises."""

    def __init__(self, directory: Path, run_id: str, *, run_bytes: int, total_bytes: int, total_age_s: float) -> None:
        """Remember where and how much; nothing is touched on disk.

        Args:
            directory: the folder that holds all runs.
            run_id: the run this process belongs to.
            run_bytes: what this process's file may hold.
            total_bytes: what all runs together may hold; the oldest finished runs are deleted to keep it.
            total_age_s: finished runs last written longer ago than this are deleted.
        """
        self._directory = directory
        self._run_id = run_id
        self._cap = min(run_bytes, total_bytes)
        self._wal_bytes = min(WAL_BYTES, self._cap // 4)
        self._total_bytes = total_bytes
        self._total_age_s = total_age_s
        self._pid = os.getpid()
        self._started_unix_ns = time.time_ns()
        self._lock = threading.Lock()
        self._gate = False
        self._held: dict[str, deque[Any]] | None = {signal: deque() for signal in HELD}
        self._file: StoreFile | None = None
        self._path: Path | None = None
        self._closed = False
        self._tally = _Tally()
        self._overran: Counter[str] = Counter()
        self._counting = threading.Lock()  # of those: unlike the other one, never held while the disk works
        self._attributes: dict[str, Any] = {}  # of the first resource seen
        self._totals: str | None = None  # as they were told last
        self.ledger = Ledger(())
        self._full = False  # whether the last insert left the file over its cap
        self._said: set[str] = set()
        self._harm: StoreError | None = None  # what others did to the file, not said yet
        self._next_housekeeping = 0.0
        self._surveyed: tuple[float, Runs] | None = None  # when, and what was there
        self._span_exporter = StoreSpans(self.take)
        self._log_exporter = StoreLogs(self.take)
        self._metric_exporter = StoreMetrics(self.take)

    @property
    def span_exporter(self) -> StoreSpans:
        """Where a span processor sends spans."""
        return self._span_exporter

    @property
    def log_exporter(self) -> StoreLogs:
        """Where a log record processor sends logs and events."""
        return self._log_exporter

    @property
    def metric_exporter(self) -> StoreMetrics:
        """Where a metric reader sends its collections; cumulative."""
        return self._metric_exporter

    @property
    def path(self) -> Path | None:
        """Where the file is, once there is one."""
        return self._path

    def dropped(self) -> dict[str, int]:
        """What was lost so far, as `{"signal reason": count}`."""
        with self._lock:
            self._count_overran()
            return {f"{signal} {reason}": n for (signal, reason), n in sorted(self._tally.dropped.items())}

    def size(self) -> int:
        """The bytes of this process's file and its journal; 0 while there is none."""
        path = self._path
        return 0 if path is None or self._foreign() else bytes_of(path)

    def prepare(self, *, signals: bool = True) -> None:
        """Do early what the first export needs: some 50 ms that no training step then meets.

        Args:
            signals: whether there will be any; else the run's end is all that is written, which encodes nothing.
        """
        import sqlite3  # noqa: F401

        if signals:
            from opentelemetry.exporter.otlp.proto.common import (  # noqa: F401
                _log_encoder,
                metrics_encoder,
                trace_encoder,
            )

        from otel_ml.store import runs  # noqa: F401

        empty()
        with suppress(OSError):  # then the first write looks for itself, and says what is wrong
            self._surveyed = (time.monotonic(), survey(self._directory))

    def open_gate(self) -> None:
        """Let records through from now on, those held back first; the first step calls it.

        It writes nothing itself: the next export does, on its own thread.
        """
        self._gate = True

    def take(self, signal: str, records: Sequence[Any]) -> bool:
        """Hold back or write a batch; the exporters call it. False where it was lost."""
        if self._foreign():
            return True
        with self._lock:
            if self._held is not None and not self._gate:
                held = self._held[signal]
                held.extend(records)
                while len(held) > HELD[signal]:
                    self._drop(signal, "before_gate", count(signal, [held.popleft()]))
                return True
        self._release()
        return self._save(signal, records)

    def overran(self, signal: str) -> None:
        """Count one record that the SDK's queue let go; on the program's thread, and waits for no disk."""
        with self._counting:
            self._overran[signal] += 1

    def tell(self, totals: dict[str, Any]) -> None:
        """Have the next transaction note the totals so far: all that is known of requests if the process is killed."""
        self._totals = json_of(totals)

    def settle(self) -> None:
        """Note the totals that were told, where nothing else was written since."""
        if self._foreign() or self._file is None or self._totals is self._tally.totals:
            return
        with self._lock:
            complaint = None if self._closed or self._file is None else self._transact(lambda _: None)
        self._say(complaint)

    def finish(self, *, totals: dict[str, Any] | None, ended_unix_ns: int, outcome: str, exit_code: int | None) -> None:
        """Note in the file that the process ended, and how; without it the run reads as killed."""
        if self._foreign() or not self._gate:
            return
        self._release()
        if not self._enter("finish"):
            return
        if totals is not None:
            self.tell(totals)

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE process SET ended_unix_ns = ?, outcome = ?, exit_code = ?", (ended_unix_ns, outcome, exit_code)
            )

        try:
            complaint = None if self._closed else self._transact(work)
            if complaint is not None and self._file is not None and self._file.shrink_journal():
                complaint = self._transact(work)  # a file that may not grow has room in its other half
        finally:
            self._lock.release()
        self._say(complaint)

    def close(self) -> None:
        """Bring the journal into the file so that one file is left; later exports are counted as lost."""
        if self._foreign():
            return
        if self._gate:
            self._release()
        if not self._enter("close"):
            return
        complaint: Exception | None = None
        try:
            self._count_overran()
            if self._file is not None and self._tally.unsaved:
                complaint = self._transact(lambda _: None)
            file, self._file = self._file, None
            self._closed = True
            if file is not None:
                complaint = file.close() or complaint
        finally:
            self._lock.release()
        self._say(complaint)

    # --- what the endpoint has ------------------------------------------------------------

    def unsent(self, signal: str, *, most_bytes: int, most_rows: int) -> outbox.Batch:
        """The oldest rows that the endpoint lacks and that no exporter is about to send.

        Raises:
            StoreError: the file cannot be read.
        """
        found: list[outbox.Batch] = []

        def work(connection: sqlite3.Connection) -> None:
            skip = self.ledger.in_flight(signal)  # under the lock: nothing is written meanwhile
            ranges = outbox.gaps(connection, signal)
            found.append(outbox.read(connection, signal, ranges, most_bytes=most_bytes, most_rows=most_rows, skip=skip))

        self._note(work)
        return found[0] if found else outbox.Batch(signal, [], {}, {})

    def mark(self, signal: str, state: str, ids: Sequence[int], reason: str | None = None) -> None:
        """Note what became of these rows.

        Raises:
            StoreError: the file cannot be written.
        """
        self._note(lambda connection: outbox.mark(connection, signal, state, ids, reason))

    def acknowledge(self) -> None:
        """Note what has arrived; after `close()` nothing else would."""
        if self._closed and self._path is not None:
            self._note(lambda _: None)

    def _note(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Run `work` on the file, also after `close()`; nothing where there is no file."""
        import sqlite3

        if self._foreign() or self._path is None or not self._path.exists():
            return
        with self._lock:
            if not self._closed:
                complaint = self._transact(work)
                if complaint is not None:
                    raise StoreError(str(complaint)) from complaint
                return
            arrived = self.ledger.take()
            try:
                connection = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)
                try:
                    connection.execute("PRAGMA synchronous = NORMAL")
                    connection.execute("BEGIN IMMEDIATE")
                    work(connection)
                    _acknowledge(connection, arrived)
                    connection.execute("COMMIT")
                finally:
                    connection.close()
            except (OSError, sqlite3.Error) as error:
                self.ledger.give_back(arrived)
                raise StoreError(str(error)) from error

    def _foreign(self) -> bool:
        """Whether this is a forked child, which must not touch the parent's lock or connection."""
        return os.getpid() != self._pid

    def _release(self) -> None:
        """Write what was held back before the gate opened."""
        if self._held is None:
            return
        with self._lock:
            held, self._held = self._held, None
        for signal, records in (held or {}).items():
            if records:
                with guard("store.release"):
                    self._save(signal, list(records))

    def _enter(self, what: str) -> bool:
        if self._lock.acquire(timeout=PATIENCE_S):
            return True
        logger.warning("otel-ml: the local store is busy writing; gave up waiting to %s it", what)
        return False

    def _save(self, signal: str, records: Sequence[Any]) -> bool:
        """Encode a batch (outside the lock), then write it in one transaction."""
        with Pace(on=len(records) < BACKLOG) as pace:
            origins, unencodable = ENCODERS[signal](records, pace)
        n = sum(len(origin.rows) for origin in origins)
        with self._lock:
            if unencodable:
                self._drop(signal, "unencodable", unencodable)
            if self._closed:
                self._drop(signal, "closed", n)
                return False
            if origins and not self._attributes:
                self._attributes = json.loads(origins[0].resource[1])
            try:
                complaint = self._transact(lambda connection: self._insert(connection, signal, origins))
            except Exception:
                self._drop(signal, "write_failed", n)
                raise
            if complaint is not None:
                self._drop(signal, "write_failed", n)
            kept = complaint is None
            if kept and signal in self.ledger.owed:
                self._tell_ledger(signal, records, origins, n)
            if kept and self._full:
                complaint = self._transact(self._trim)
            if kept and time.monotonic() >= self._next_housekeeping:
                self._next_housekeeping = time.monotonic() + HOUSEKEEPING_S
                complaint = self._tidy_up() or complaint
            complaint, self._harm = complaint or self._harm, None
        self._say(complaint)
        return kept

    def _tell_ledger(self, signal: str, records: Sequence[Any], origins: list[Origin], n: int) -> None:
        first = self._tally.last[signal] - n + 1
        if signal == "points":
            if n:
                self.ledger.collected(first, first + n - 1, max(map(collected_unix_ns, records)))
        else:
            known_by = (each for origin in origins for each in origin.known_by)
            self.ledger.stored(signal, list(enumerate(known_by, first)))

    def _drop(self, signal: str, reason: str, n: int) -> None:
        self._tally.dropped[signal, reason] += n
        self._tally.unsaved[signal, reason] += n

    def _count_overran(self) -> None:
        with self._counting:
            overran, self._overran = self._overran, Counter()
        for signal, n in overran.items():
            self._drop(signal, "queue_full", n)

    def _say(self, complaint: Exception | None) -> None:
        """Log what went wrong, once a kind, with what to do; not under the lock: a handler may lead back here."""
        if complaint is None or type(complaint).__name__ in self._said:
            return
        self._said.add(type(complaint).__name__)
        text = str(complaint.strerror if isinstance(complaint, OSError) else complaint)
        if is_damaged(complaint):
            advice = ": its file was damaged, a new one is begun"
        elif isinstance(complaint, StoreError):
            advice = ""
        elif any(word in text for word in ("full", "No space", "too large", "disk I/O")):
            advice = ": free some space, or delete runs with `otel-ml runs rm`"
        elif "locked" in text:
            advice = ": close what has the file open for writing"
        else:
            advice = ": make it a folder that this user may write to (OTEL_ML_DIR chooses another)"
        logger.warning(
            "otel-ml: cannot write to the local store in %s (%s)%s. Telemetry that is not stored is counted; "
            "the program is not affected.",
            self._directory,
            complaint,
            advice,
        )

    def _transact(self, work: Callable[[sqlite3.Connection], None]) -> Exception | None:
        """Run `work` on an open file, whole or not at all; a refusal by the disk is returned, not raised."""
        import sqlite3

        self._count_overran()
        before = self._tally.copy()
        arrived: dict[str, list[int]] = {}
        try:
            if self._file is not None and not self._file.is_there():
                self._abandon()
            elif self._file is not None and not self._file.is_whole():
                self._abandon()
                self._harm = StoreError("its file is not a database any more")
            connection = (self._file or self._open()).connection
            before = self._tally.copy()
            connection.execute("BEGIN IMMEDIATE")
            self._owe(connection)
            if self._totals is not self._tally.totals:
                self._tally.totals = self._totals
                connection.execute("UPDATE process SET totals = ?", (self._totals,))
            work(connection)
            if self._tally.unsaved:
                connection.executemany(
                    insert("drops") + " ON CONFLICT (signal, reason) DO UPDATE SET count = count + excluded.count",
                    [(signal, reason, n) for (signal, reason), n in self._tally.unsaved.items()],
                )
            _acknowledge(connection, arrived := self.ledger.take())
            connection.execute("COMMIT")
            arrived = {}
            self._tally.unsaved.clear()
        except (OSError, sqlite3.Error, StoreError) as error:
            self._roll_back(before)
            self.ledger.give_back(arrived)
            if is_damaged(error):
                self._abandon()
            return error
        except BaseException:
            self._roll_back(before)
            self.ledger.give_back(arrived)
            raise
        return None

    def _open(self) -> StoreFile:
        """Begin a new file."""
        self._file = StoreFile(
            self._directory,
            self._run_id,
            attributes=self._attributes,
            started_unix_ns=self._started_unix_ns,
            wal_bytes=self._wal_bytes,
        )
        self._tally = _Tally(dropped=self._tally.dropped, unsaved=self._tally.unsaved)
        self.ledger.restart()
        self._path = self._file.path
        return self._file

    def _abandon(self) -> None:
        """Leave the file to what others did to it: the next write begins a new one."""
        file, self._file = self._file, None
        if file is not None:
            file.abandon()

    def _owe(self, connection: sqlite3.Connection) -> None:
        """Have the file say which signals have an endpoint that tells what arrived."""
        owed, last = self._tally.owed, self._tally.last
        for signal in self.ledger.owed - owed:
            outbox.owe(connection, signal, last[signal] + 1)
        for signal in owed - self.ledger.owed:
            outbox.disown(connection, signal, last[signal])
        self._tally.owed = set(self.ledger.owed)

    def _roll_back(self, before: _Tally) -> None:
        self._tally = before
        if self._file is not None and not self._file.roll_back():
            self._abandon()

    # --- writing --------------------------------------------------------------------------

    def _insert(self, connection: sqlite3.Connection, signal: str, origins: list[Origin]) -> None:
        for origin in origins:
            head = (self._id(connection, "resources", origin.resource), self._id(connection, "scopes", origin.scope))
            first = self._tally.last[signal] + 1
            _insert_rows(connection, signal, [(n, *head, *row) for n, row in enumerate(origin.rows, first)])
            self._tally.last[signal] += len(origin.rows)
            self._tally.rows[signal] += len(origin.rows)
            self._tally.bytes[signal] += sum([len(v) for row in origin.rows for v in row if type(v) in _SIZED])
        self._full = self._fullness() > 1

    def _id(self, connection: sqlite3.Connection, table: str, row: Row) -> int:
        """The row's id in `resources` or `scopes`; each distinct one is stored once."""
        known = self._tally.ids.get((table, row))
        if known is None:
            known = self._tally.ids[table, row] = int(connection.execute(insert(table), row).lastrowid or 0)
        return known

    def _fullness(self) -> float:
        """The share of the file's cap that holds something; the rest of the run's is the journal's."""
        return 0.0 if self._file is None else self._file.bytes_held() / max(1, self._cap - self._wal_bytes)

    def _trim(self, connection: sqlite3.Connection) -> None:
        """Delete the oldest rows of the largest table, a twentieth at a time, until there is room again."""
        rows, held = self._tally.rows, self._tally.bytes
        while self._fullness() > TRIMMED and rows.total():
            table = max((t for t in rows if rows[t]), key=held.__getitem__)
            n = max(1, rows[table] // 20)
            order = "event_name IS NOT NULL AND event_name LIKE 'ml.%', id" if table == "logs" else "id"
            oldest = f"SELECT id FROM {table} ORDER BY {order} LIMIT ?"  # noqa: S608 - constants
            gone = {row for (row,) in connection.execute(oldest, (n,))} if table in self._tally.owed else set()
            unsent = sum(1 for low, high in outbox.gaps(connection, table) for row in gone if low <= row <= high)
            connection.execute(f"DELETE FROM {table} WHERE id IN ({oldest})", (n,))  # noqa: S608 - constants
            held[table] -= held[table] * n // rows[table]
            rows[table] -= n
            for reason, lost in (("run_bytes", n - unsent), ("unsent", unsent)):
                if lost:
                    self._drop(table, reason, lost)

    def _tidy_up(self) -> Exception | None:
        """Make room among all runs."""
        surveyed, self._surveyed = self._surveyed, None
        return make_room(
            self._directory,
            run_slug(self._run_id),
            surveyed[1] if surveyed is not None and time.monotonic() - surveyed[0] < SURVEYED_S else None,
            total_bytes=self._total_bytes,
            total_age_s=self._total_age_s,
            deleted=lambda reason: self._drop("runs", reason, 1),
        )


def _insert_rows(connection: sqlite3.Connection, table: str, rows: list[Row]) -> None:
    """Insert by 32, 16 and so on: each statement is one wait for the interpreter, and few different ones are cached."""
    at, some = 0, ROWS_AT_ONCE
    while at < len(rows):
        while some > len(rows) - at:
            some //= 2
        values = [value for row in rows[at : at + some] for value in row]
        connection.execute(insert(table, numbered=True, rows=some), values)
        at += some


def _acknowledge(connection: sqlite3.Connection, arrived: dict[str, list[int]]) -> None:
    for signal, ids in arrived.items():
        outbox.mark(connection, signal, "acknowledged", ids)
