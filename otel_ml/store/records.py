"""Spans, log records and points as they come out of a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from otel_ml.store.opening import select

if TYPE_CHECKING:
    import sqlite3

    from otel_ml.store.runs import Process

__all__ = ["LogRow", "PointRow", "SpanRow", "count_events", "has_span", "last_event", "matching", "points_of"]


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


def matching(**equal: object) -> tuple[str, list[object]]:
    """The end of a SELECT for the rows whose columns are these, but for those that are None, and its values."""
    wanted = {column: value for column, value in equal.items() if value is not None}
    clause = " AND ".join(f"{column} = ?" for column in wanted)
    return f"WHERE {clause} ORDER BY id" if clause else "ORDER BY id", list(wanted.values())


def points_of(
    connection: sqlite3.Connection, process: Process, name: str | None = None, *, latest: bool = False
) -> list[PointRow]:
    """A process's points by id: of one metric, or of all; `latest` keeps each series' last."""
    where, values = matching(name=name)
    if latest:
        groups = "SELECT max(id) FROM points GROUP BY name, attributes, scope_id, resource_id"
        where = where.replace("ORDER BY", f"{'AND' if values else 'WHERE'} id IN ({groups}) ORDER BY")
    rows = select(connection, "points", where=where, values=values)
    for row in rows:
        for column in ("value", "sum", "min", "max"):
            if isinstance(row[column], str):  # a NaN is stored as text
                row[column] = float(row[column])
    return [PointRow(process.rank, process.pid, **row) for row in rows]


def last_event(connection: sqlite3.Connection, event: str) -> dict[str, Any]:
    """The attributes of the last event of this name; none where there is none."""
    where = "WHERE event_name = ? ORDER BY id DESC LIMIT 1"
    rows = select(connection, "logs", where=where, values=(event,))
    return dict(rows[0]["attributes"]) if rows else {}


def has_span(connection: sqlite3.Connection, name: str) -> bool:
    """Whether there is a span of this name."""
    return connection.execute("SELECT 1 FROM spans WHERE name = ? LIMIT 1", (name,)).fetchone() is not None


def count_events(connection: sqlite3.Connection, event: str) -> int:
    """How many events of this name there are."""
    return int(connection.execute("SELECT count(*) FROM logs WHERE event_name = ?", (event,)).fetchone()[0])
