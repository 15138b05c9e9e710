"""Makes runs of the local store from OTLP requests that came from elsewhere.

`ml.run.id` of a resource decides the run, `service.instance.id` the process; each process
becomes a file of its own. Files get their names when all of it has been read: what is
refused half way leaves nothing. A run that is there already is never touched.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from typing import TYPE_CHECKING, Any

from otel_ml import names
from otel_ml.errors import CommandError
from otel_ml.store.outbox import SIGNALS
from otel_ml.store.rows import json_of, text_of
from otel_ml.store.runs import read_run
from otel_ml.store.schema import SUFFIX, insert, migrate, run_folder
from otel_ml.totals import RunTotals

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import TracebackType

__all__ = ["Importer"]

_UNFINISHED = ".importing"
_OUTER = {"spans": "resource_spans", "logs": "resource_logs", "points": "resource_metrics"}
_INNER = {"spans": "scope_spans", "logs": "scope_logs", "points": "scope_metrics"}
_TIMES = {"spans": "end_unix_ns", "logs": "time_unix_ns", "points": "time_unix_ns"}
_KINDS = ("internal", "internal", "server", "client", "producer", "consumer")
_STATUS = ("unset", "ok", "error")
_TEMPORALITY = (None, "delta", "cumulative")
_INT64 = 1 << 63

Row = tuple[Any, ...]


class Importer:
    """A context: takes requests, and at its end makes runs of them; an exception in it leaves nothing behind."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._processes: dict[tuple[str, str], _Process] = {}
        self._folders: list[Path] = []
        self.unclaimed = 0  # records whose resource has no ml.run.id

    def __enter__(self) -> Importer:  # noqa: PYI034 - typing has no Self before 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            return
        for process in self._processes.values():
            process.discard()
        for folder in self._folders:
            if not any(folder.iterdir()):
                folder.rmdir()

    def take(self, signal: str, request: Any) -> None:
        """Store one request's records.

        Raises:
            CommandError: the run is in the folder already.
        """
        for outer in getattr(request, _OUTER[signal]):
            attributes = attributes_of(outer.resource.attributes)
            run_id = attributes.get(names.RUN_ID)
            process = self._process(str(run_id), attributes) if run_id else None
            for inner in getattr(outer, _INNER[signal]):
                rows = list(_ROWS[signal](inner))
                if process is None:
                    self.unclaimed += len(rows)
                else:
                    process.take(signal, outer, inner, attributes, rows)

    def _process(self, run_id: str, attributes: dict[str, Any]) -> _Process:
        instance = str(attributes.get("service.instance.id") or json_of(attributes))
        found = self._processes.get((run_id, instance))
        if found is None:
            folder = run_folder(self._directory, run_id)
            if read_run(folder) is not None:
                message = (
                    f"run {run_id} is in {self._directory} already and is left as it is; delete it with "
                    f"`otel-ml runs rm {run_id}`, or type --dir FOLDER to import into another folder"
                )
                raise CommandError(message)
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not folder.is_dir():
                folder.mkdir(mode=0o700)
                self._folders.append(folder)
            digest = hashlib.sha256(instance.encode("utf-8", "replace")).hexdigest()[:8]
            found = _Process(folder / f"imported-{digest}{SUFFIX}", run_id, attributes)
            self._processes[run_id, instance] = found
        return found

    @property
    def empty(self) -> bool:
        """Whether there is no run in what was taken."""
        return not self._processes

    def finish(self) -> dict[str, dict[str, int]]:
        """Make the runs; how many records of each signal each has."""
        made: dict[str, dict[str, int]] = {}
        for (run_id, _), process in self._processes.items():
            counts = made.setdefault(run_id, dict.fromkeys(SIGNALS, 0))
            for signal, count in process.finish().items():
                counts[signal] += count
        return made


class _Process:
    """One process's file."""

    def __init__(self, path: Path, run_id: str, attributes: dict[str, Any]) -> None:
        self.path = path
        self._unfinished = path.with_suffix(_UNFINISHED)
        self._run_id = run_id
        self._attributes = attributes
        self._known: dict[tuple[str, Row], int] = {}
        self._counts = dict.fromkeys(SIGNALS, 0)
        os.close(os.open(self._unfinished, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NOFOLLOW, 0o600))
        self._connection = sqlite3.connect(self._unfinished, isolation_level=None)
        self._connection.execute("PRAGMA synchronous = OFF")
        migrate(self._connection)
        self._connection.execute("BEGIN")

    def take(self, signal: str, outer: Any, inner: Any, attributes: dict[str, Any], rows: list[Row]) -> None:
        scope = inner.scope
        head = (
            self._id("resources", (outer.schema_url, json_of(attributes), outer.resource.SerializeToString())),
            self._id(
                "scopes",
                (
                    text_of(scope.name),
                    scope.version or None,
                    inner.schema_url or None,
                    json_of(attributes_of(scope.attributes)),
                    scope.SerializeToString(),
                ),
            ),
        )
        self._connection.executemany(insert(signal), (head + row for row in rows))
        self._counts[signal] += len(rows)

    def _id(self, table: str, row: Row) -> int:
        known = self._known.get((table, row))
        if known is None:
            known = self._known[table, row] = int(self._connection.execute(insert(table), row).lastrowid or 0)
        return known

    def finish(self) -> dict[str, int]:
        """Put rows in order of time, introduce the process, and give the file its name."""
        for signal in SIGNALS:
            self._order(signal)
        self._connection.execute(insert("process"), self._introduction())
        self._connection.execute("COMMIT")
        self._connection.close()
        self._unfinished.replace(self.path)
        return self._counts

    def _order(self, table: str) -> None:
        """What was sent late stands late in the file, and readers take the last row to be the newest."""
        time = _TIMES[table]
        late = f"SELECT 1 FROM {table} a JOIN {table} b ON b.id = a.id + 1 WHERE b.{time} < a.{time} LIMIT 1"  # noqa: S608 - constants
        if self._connection.execute(late).fetchone() is None:
            return
        count = self._counts[table]
        self._connection.execute(
            f"CREATE TEMP TABLE places AS SELECT id, row_number() OVER (ORDER BY {time}, id) AS place FROM {table}"  # noqa: S608 - constants
        )
        self._connection.execute("CREATE INDEX temp.places_by_id ON places (id)")
        # Beyond all ids first: two rows never have the same.
        self._connection.execute(
            f"UPDATE {table} SET id = {count:d} + (SELECT place FROM places WHERE places.id = {table}.id)"  # noqa: S608 - constants
        )
        self._connection.execute(f"UPDATE {table} SET id = id - {count:d}")  # noqa: S608 - constants
        self._connection.execute("DROP TABLE places")

    def _introduction(self) -> Row:
        attributes = self._attributes
        finished = self._last_event(names.EVENT_RUN_FINISHED)
        totals = _totals(finished.get(names.RUN_TOTALS))
        first, last = self._span_of_time()
        whole = {key: attributes.get(key) for key in (names.RANK, names.WORLD_SIZE, names.RUN_ATTEMPT, "process.pid")}
        rank, size, attempt, pid = (value if isinstance(value, int) else None for value in whole.values())
        return (
            text_of(self._run_id),
            text_of(str(attributes.get(names.RUN_NAME, ""))),
            attempt or 0,
            rank,
            size,
            totals.host if totals else text_of(str(attributes.get("host.name", ""))),
            totals.pid if totals else pid or 0,
            None,
            json_of(attributes),
            (totals.started_unix_ns if totals else 0) or first,
            (totals.ended_unix_ns if totals else 0) or last,
            str(finished.get(names.RUN_OUTCOME, "lost")),
            totals.exit_code if totals else None,
            json_of(totals.to_dict()) if totals else None,
        )

    def _last_event(self, event: str) -> dict[str, Any]:
        row = self._connection.execute(
            "SELECT attributes FROM logs WHERE event_name = ? ORDER BY id DESC LIMIT 1", (event,)
        ).fetchone()
        return dict(json.loads(row[0])) if row else {}

    def _span_of_time(self) -> tuple[int, int]:
        times = []
        for table, first in (("spans", "start_unix_ns"), ("logs", "time_unix_ns"), ("points", "time_unix_ns")):
            query = f"SELECT min({first}), max({_TIMES[table]}) FROM {table} WHERE {first} > 0"  # noqa: S608 - constants
            times += [time for time in self._connection.execute(query).fetchone() if time is not None]
        return (min(times), max(times)) if times else (0, 0)

    def discard(self) -> None:
        self._connection.close()
        for name in (self._unfinished.name, f"{self._unfinished.name}-journal"):  # on a full disk SQLite leaves it
            self._unfinished.with_name(name).unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


def _totals(told: Any) -> RunTotals | None:
    """What a run's last event says of it; None where it says nothing that can be understood."""
    try:
        return RunTotals.from_dict(json.loads(told))
    except (ValueError, TypeError, AttributeError):
        return None


# --- messages as rows, as `store/rows.py` makes them of the SDK's objects ---------------------


def attributes_of(pairs: Iterable[Any]) -> dict[str, Any]:
    """Attributes as plain data."""
    return {text_of(pair.key): _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return attributes_of(value.kvlist_value.values)
    found = getattr(value, kind)
    return found.hex() if isinstance(found, bytes) else found


def _step(attributes: dict[str, Any]) -> int | None:
    step = attributes.get(names.STEP_NUMBER)
    return step if isinstance(step, int) else None


def _time(unix_ns: int) -> int:
    """An instant that SQLite can hold; one beyond is no instant."""
    return int(unix_ns) if unix_ns < _INT64 else 0


def _number(value: float) -> float | str:
    if isinstance(value, int):
        return value if -_INT64 <= value < _INT64 else float(value)
    return "nan" if value != value else value  # noqa: PLR0124 - a NaN


def _spans(scope: Any) -> Iterable[Row]:
    for span in scope.spans:
        attributes = attributes_of(span.attributes)
        links = [
            {
                "trace_id": link.trace_id.hex(),
                "span_id": link.span_id.hex(),
                "attributes": attributes_of(link.attributes),
            }
            for link in span.links
        ]
        events = [
            {
                "name": event.name,
                "time_unix_ns": event.time_unix_nano,
                "attributes": attributes_of(event.attributes),
            }
            for event in span.events
        ]
        yield (
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex() or None,
            span.name,
            _KINDS[span.kind] if 0 <= span.kind < len(_KINDS) else "internal",
            _time(span.start_time_unix_nano),
            _time(span.end_time_unix_nano),
            _STATUS[span.status.code] if 0 <= span.status.code < len(_STATUS) else "unset",
            span.status.message or None,
            _step(attributes),
            json_of(attributes),
            json_of(links),
            json_of(events),
            span.SerializeToString(),
        )


def _logs(scope: Any) -> Iterable[Row]:
    for log in scope.log_records:
        attributes = attributes_of(log.attributes)
        body = _value(log.body) if log.HasField("body") else None
        yield (
            _time(log.time_unix_nano or log.observed_time_unix_nano),
            log.event_name or None,
            log.severity_number or None,
            body if body is None or isinstance(body, str) else json_of(body),
            log.trace_id.hex() or None,
            log.span_id.hex() or None,
            _step(attributes),
            json_of(attributes),
            log.SerializeToString(),
        )


def _points(scope: Any) -> Iterable[Row]:
    for metric in scope.metrics:
        field = metric.WhichOneof("data")
        if field is None:
            continue
        data = getattr(metric, field)
        kind = field
        if field == "sum":
            kind = "counter" if data.is_monotonic else "up_down_counter"
        temporality = getattr(data, "aggregation_temporality", 0)
        points = list(data.data_points)
        del data.data_points[:]
        for point in points:
            alone = type(metric)()
            alone.CopyFrom(metric)
            getattr(alone, field).data_points.append(point)
            yield (
                _time(point.time_unix_nano),
                _time(point.start_time_unix_nano) or None,
                metric.name,
                kind,
                metric.unit,
                _TEMPORALITY[temporality] if 0 <= temporality < len(_TEMPORALITY) else None,
                json_of(attributes_of(point.attributes)),
                *_measured(field, point),
                alone.SerializeToString(),
            )


def _measured(field: str, point: Any) -> Row:
    """`value`, `count`, `sum`, `min`, `max` and `buckets`."""
    if field in ("sum", "gauge"):
        which = point.WhichOneof("value")
        return (None if which is None else _number(getattr(point, which)), None, None, None, None, None)
    if field == "summary":
        return (None, _number(point.count), _number(point.sum), None, None, None)
    spread = (_number(getattr(point, name)) if point.HasField(name) else None for name in ("sum", "min", "max"))
    buckets: dict[str, Any]
    if field == "histogram":
        buckets = {"bounds": list(point.explicit_bounds), "counts": list(point.bucket_counts)}
    else:
        buckets = {
            "scale": point.scale,
            "zero_count": point.zero_count,
            **{
                side: {"offset": found.offset, "counts": list(found.bucket_counts)}
                for side, found in (("positive", point.positive), ("negative", point.negative))
            },
        }
    return (None, _number(point.count), *spread, json_of(buckets))


_ROWS = {"spans": _spans, "logs": _logs, "points": _points}
