"""Reads a run back from disk: its rows and its totals.

Called by `otel-ml report`, `view`, `export` and the summary, in any process, also while a
run is being written. It needs neither the SDK nor a framework, so a copied file opens at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from otel_ml.errors import StoreError
from otel_ml.store import outbox
from otel_ml.store.opening import attempt, opened, select
from otel_ml.store.rebuilt import rebuilt
from otel_ml.store.records import LogRow, PointRow, SpanRow, matching, points_of
from otel_ml.store.runs import Process, Run, by_rank, files_of, process_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from otel_ml.totals import RunTotals

__all__ = ["RunReader", "Undelivered", "undelivered"]

BATCH_BYTES = 1 << 20
BATCH_ROWS = 512


class RunReader:
    """Everything in a run; each call reads the disk anew, so a live run can be followed."""

    def __init__(self, run: Run | Path) -> None:
        """Open a run, a run's folder, or one file (copied from anywhere).

        Raises:
            StoreError: nothing in it can be read.
        """
        where = run.path if isinstance(run, Run) else run
        self._paths = [where] if where.is_file() else files_of(where)
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
        where, values = matching(name=name, step=step)

        def read(connection: sqlite3.Connection, process: Process) -> list[SpanRow]:
            rows = select(connection, "spans", where=where, values=values)
            return [SpanRow(process.rank, process.pid, **row) for row in rows]

        return sorted(self._read(read), key=lambda span: (span.start_unix_ns, span.end_unix_ns))

    def logs(self, event: str | None = None) -> list[LogRow]:
        """The log records by time: those whose event name is `event`, or all."""
        where, values = matching(event_name=event)

        def read(connection: sqlite3.Connection, process: Process) -> list[LogRow]:
            rows = select(connection, "logs", where=where, values=values)
            return [LogRow(process.rank, process.pid, **row) for row in rows]

        return sorted(self._read(read), key=lambda log: log.time_unix_ns)

    def points(self, name: str | None = None, *, latest: bool = False) -> list[PointRow]:
        """The metric points by time: those of metric `name`, or all; `latest` keeps each series' last."""
        points = self._read(lambda connection, process: points_of(connection, process, name, latest=latest))
        return sorted(points, key=lambda point: (point.time_unix_ns, point.name))

    def batches(self, signal: str) -> Iterator[outbox.Batch]:
        """The rows of `spans`, `logs` or `points` as their OTLP bytes, some hundred at a time, by attempt and rank."""
        for process in self.processes():
            last = 0
            with opened(process.path) as (connection, _):
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
            return [process.goodbye or rebuilt(connection, process)]

        return self._read(read)

    def _read(self, read: Callable[[sqlite3.Connection, Process], list[Any]]) -> list[Any]:
        """Gather from every file that can be read, by attempt and rank."""

        def one(path: Path) -> tuple[Process, list[Any]]:
            process = process_of(path)
            with opened(path) as (connection, _):
                return process, read(connection, process)

        found = [attempt(one, path) for path in self._paths]
        errors = [part for part in found if isinstance(part, StoreError)]
        parts = [part for part in found if not isinstance(part, StoreError)]
        if not parts:
            raise errors[0]
        self._failed = [str(error) for error in errors]
        return [item for _, items in sorted(parts, key=lambda part: by_rank(part[0])) for item in items]


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
    with opened(path) as (connection, _):
        left = outbox.left(connection, unasked=unasked, again=again)
        return Undelivered(left, outbox.refused(connection), outbox.reasons(connection))
