"""Which of a file's records an endpoint has, lacks or refuses: ranges of row ids, and the rows themselves.

States of a range, by signal:

    owed           there was an endpoint for these rows; what no other range says is not acknowledged yet
    acknowledged   the endpoint has them
    refused        the endpoint refuses them for good; the reason stands beside it

A row in no range had no endpoint to go to. Called by the writer under its lock, by the
replay on the file of a process that ended, and by the reader. Standard library only; the
caller owns the transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Container, Iterable, Iterator, Sequence

__all__ = [
    "END", "SIGNALS", "Batch", "Record", "disown", "gaps", "left", "mark", "owe", "read", "reasons", "refused", "runs",
]  # fmt: skip

SIGNALS = ("spans", "logs", "points")
END = (1 << 63) - 1

Range = tuple[int, int]


@dataclass(frozen=True)
class Record:
    """A row on its way: its id, whose it is and its OTLP bytes; `moment` groups the points of one collection."""

    id: int
    resource_id: int
    scope_id: int
    moment: int
    otlp: bytes


@dataclass(frozen=True)
class Batch:
    """Rows of one signal, the oldest first, and the resources and scopes they name: bytes and schema URL by id."""

    signal: str
    records: Sequence[Record]
    resources: dict[int, tuple[bytes, str]]
    scopes: dict[int, tuple[bytes, str]]

    def part(self, first: int, last: int) -> Batch:
        """The records from place `first` to before `last`."""
        return Batch(self.signal, self.records[first:last], self.resources, self.scopes)

    @property
    def ids(self) -> list[int]:
        """The rows' ids, ascending."""
        return [record.id for record in self.records]


def owe(connection: sqlite3.Connection, signal: str, first: int) -> None:
    """From row `first` on, this signal has an endpoint."""
    connection.execute("INSERT INTO deliveries VALUES (?, 'owed', ?, ?, NULL)", (signal, first, END))


def disown(connection: sqlite3.Connection, signal: str, last: int) -> None:
    """After row `last`, this signal leaves by a way that does not tell us what arrived."""
    connection.execute(
        "UPDATE deliveries SET last = ? WHERE signal = ? AND state = 'owed' AND last = ?", (last, signal, END)
    )


def mark(
    connection: sqlite3.Connection, signal: str, state: str, ids: Iterable[int], reason: str | None = None
) -> None:
    """Note what became of these rows; ranges that touch and say the same become one."""
    for first, last in runs(ids):
        low, high = first, last
        before = _neighbour(connection, signal, state, "first <= ? ORDER BY first DESC", first)
        if before and before[1] >= first - 1 and before[2] == reason:
            low, high = before[0], max(before[1], last)
        after = _neighbour(connection, signal, state, "first > ? ORDER BY first", first)
        while after and after[0] <= high + 1 and after[2] == reason:
            high = max(high, after[1])
            connection.execute(
                "DELETE FROM deliveries WHERE signal = ? AND state = ? AND first = ?", (signal, state, after[0])
            )
            after = _neighbour(connection, signal, state, "first > ? ORDER BY first", low)
        connection.execute(
            "INSERT OR REPLACE INTO deliveries VALUES (?, ?, ?, ?, ?)", (signal, state, low, high, reason)
        )
        if state == "acknowledged":
            _forgive(connection, signal, first, last)


def _neighbour(
    connection: sqlite3.Connection, signal: str, state: str, which: str, at: int
) -> tuple[int, int, str | None] | None:
    found: tuple[int, int, str | None] | None = connection.execute(
        f"SELECT first, last, reason FROM deliveries WHERE signal = ? AND state = ? AND {which} LIMIT 1",  # noqa: S608 - constants
        (signal, state, at),
    ).fetchone()
    return found


def _forgive(connection: sqlite3.Connection, signal: str, first: int, last: int) -> None:
    """Rows that an endpoint has taken after all are no longer refused."""
    which = "signal = ? AND state = 'refused' AND first <= ? AND last >= ?"
    overlapping = connection.execute(
        f"SELECT first, last, reason FROM deliveries WHERE {which}",  # noqa: S608 - constants
        (signal, last, first),
    ).fetchall()
    for low, high, reason in overlapping:
        connection.execute("DELETE FROM deliveries WHERE signal = ? AND state = 'refused' AND first = ?", (signal, low))
        for part in _subtract([(low, high)], [(first, last)]):
            connection.execute("INSERT INTO deliveries VALUES (?, 'refused', ?, ?, ?)", (signal, *part, reason))


def runs(ids: Iterable[int]) -> Iterator[Range]:
    """Row ids as ranges, ascending."""
    first = last = None
    for each in sorted(ids):
        if first is None or last is None:
            first = last = each
        elif each <= last + 1:
            last = each
        else:
            yield first, last
            first = last = each
    if first is not None and last is not None:
        yield first, last


def gaps(connection: sqlite3.Connection, signal: str, *, unasked: bool = False, again: bool = False) -> list[Range]:
    """The ranges of rows that are still to be sent.

    Args:
        connection: the file.
        signal: one of `SIGNALS`.
        unasked: also rows that had no endpoint.
        again: also rows that were refused for good.
    """
    wanted = [(1, END)] if unasked else _ranges(connection, signal, "owed")
    if again and not unasked:
        wanted = _merged([*wanted, *_ranges(connection, signal, "refused")])
    done = _ranges(connection, signal, "acknowledged")
    if not again:
        done = _merged([*done, *_ranges(connection, signal, "refused")])
    return _subtract(wanted, done)


def _ranges(connection: sqlite3.Connection, signal: str, state: str) -> list[Range]:
    query = "SELECT first, last FROM deliveries WHERE signal = ? AND state = ? ORDER BY first"
    return [(first, last) for first, last in connection.execute(query, (signal, state))]


def _merged(ranges: Iterable[Range]) -> list[Range]:
    out: list[Range] = []
    for first, last in sorted(ranges):
        if out and first <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], last))
        else:
            out.append((first, last))
    return out


def _subtract(wanted: Sequence[Range], done: Sequence[Range]) -> list[Range]:
    """What of `wanted` is not in `done`; both ascending, neither overlapping itself."""
    out: list[Range] = []
    at = 0
    for first, last in wanted:
        low = first
        while at < len(done) and done[at][1] < low:
            at += 1
        index = at
        while index < len(done) and done[index][0] <= last:
            if done[index][0] > low:
                out.append((low, done[index][0] - 1))
            low = max(low, done[index][1] + 1)
            index += 1
        if low <= last:
            out.append((low, last))
    return out


def read(
    connection: sqlite3.Connection,
    signal: str,
    ranges: Iterable[Range],
    *,
    most_bytes: int,
    most_rows: int,
    skip: Container[int] = (),
) -> Batch:
    """The oldest rows in these ranges without those in `skip`, until their bytes or their number is reached."""
    moment = "time_unix_ns" if signal == "points" else "0"
    query = f"SELECT id, resource_id, scope_id, {moment}, otlp FROM {signal} WHERE id BETWEEN ? AND ? ORDER BY id"  # noqa: S608 - constants
    records: list[Record] = []
    held = 0
    for between in ranges:
        for row in connection.execute(query, between):
            if row[0] in skip:
                continue
            if records and (held + len(row[4]) > most_bytes or len(records) >= most_rows):
                return _whole(connection, signal, records)
            records.append(Record(*row))
            held += len(row[4])
    return _whole(connection, signal, records)


def _whole(connection: sqlite3.Connection, signal: str, records: list[Record]) -> Batch:
    named = {
        table: {
            key: (bytes(otlp), url or "")
            for key in ids
            for otlp, url in connection.execute(f"SELECT otlp, schema_url FROM {table} WHERE id = ?", (key,))  # noqa: S608 - constants
        }
        for table, ids in (
            ("resources", {record.resource_id for record in records}),
            ("scopes", {record.scope_id for record in records}),
        )
    }
    return Batch(signal, records, named["resources"], named["scopes"])


def left(connection: sqlite3.Connection, *, unasked: bool = False, again: bool = False) -> dict[str, int]:
    """How many rows of each signal are still to be sent."""
    return {
        signal: sum(
            _count(connection, signal, between) for between in gaps(connection, signal, unasked=unasked, again=again)
        )
        for signal in SIGNALS
    }


def refused(connection: sqlite3.Connection) -> dict[str, int]:
    """How many rows of each signal an endpoint refuses for good."""
    return {
        signal: sum(_count(connection, signal, between) for between in _ranges(connection, signal, "refused"))
        for signal in SIGNALS
    }


def reasons(connection: sqlite3.Connection) -> dict[str, str]:
    """Why the newest of each signal's refused rows was refused."""
    query = "SELECT signal, reason FROM deliveries WHERE state = 'refused' ORDER BY signal, first"
    return {signal: reason or "" for signal, reason in connection.execute(query)}


def _count(connection: sqlite3.Connection, signal: str, between: Range) -> int:
    query = f"SELECT count(*) FROM {signal} WHERE id BETWEEN ? AND ?"  # noqa: S608 - constants
    return int(connection.execute(query, between).fetchone()[0])
