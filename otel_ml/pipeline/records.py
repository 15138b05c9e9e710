"""Step records: the curve of a run as log records, exact within a budget and thinned above it."""

from __future__ import annotations

import json
from array import array
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import Logger, ReadWriteLogRecord

from otel_ml import names
from otel_ml.pipeline.budget import Budget, stride_for
from otel_ml.pipeline.columns import floats, rounded, spread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.context import Context

    from otel_ml.core.clock import Anchor

__all__ = ["Points", "Records"]

_BATCH = 160  # steps an event: more would hold the interpreter for longer than the program should wait
_WIDE = 96  # the same, of many columns
_AT_ONCE = 128  # points of one thinned flush
_BATCH_BYTES = 48 * 1024
_CELL_BYTES = 26  # the longest number in JSON, or word of ours, and what is between two
_MOST_SCALARS = 64  # of a record
_SPREAD = (names.STEP_DURATION_S, names.LOSS.name, names.GRAD_NORM.name)  # columns whose min and max are kept
_SUMMED = (names.STEP_SAMPLES, names.STEP_TOKENS, names.STEP_MICRO_BATCHES)


def _nothing() -> None:
    return None


class Records:
    """Collects step records as columns and emits them as `ml.step` (one) or `ml.steps` (several).

    `points` takes what a step's record has no room for.
    """

    one, many = names.EVENT_STEP, names.EVENT_STEPS

    def __init__(self, anchor: Anchor, *, rate: float, burst: int, started: int, points: Points | None = None) -> None:
        self.anchor = anchor
        self.points = points
        self.budget = Budget(rate, burst, started)
        self.thinned = False
        self._columns: dict[str, Any] = {}  # each a list or an array
        self._ends = array("q")
        self._context: Context | None = None  # of the last step taken alone
        self._logger: Any = None

    def use(self, logger: Any) -> None:
        """Send to this OTel logger."""
        self._logger = logger

    def event(
        self, name: str, body: str, attributes: Mapping[Any, Any], at_ns: int, *, context: Context | None = None,
        severity: SeverityNumber = SeverityNumber.INFO,
    ) -> None:  # fmt: skip
        """Emit one event now."""
        record = LogRecord(
            timestamp=self.anchor.unix(at_ns),
            context=context,
            severity_number=severity,
            severity_text=severity.name,
            body=body,
            event_name=name,
        )
        _emit(self._logger, record, {k: v for k, v in attributes.items() if v is not None})

    def step(self, end_ns: int, attributes: Mapping[str, Any], context: Context | None) -> None:
        """Take one step's record; it leaves with the next `flush()`."""
        self.steps([end_ns], {k: [v] for k, v in attributes.items()})
        self._context = context

    def steps(self, ends_ns: Sequence[int], columns: Mapping[str, Sequence[Any]]) -> None:
        """Take several steps' records, a value a step in each column."""
        if self.points is not None and len(columns) > _MOST_SCALARS:
            columns = self._shared(ends_ns, columns, self.points)
        before = len(self._ends)
        self._ends.extend(ends_ns)
        for key, values in columns.items():
            known: Any = self._columns.get(key, [])
            if len(known) < before:
                known = [*known, *[None] * (before - len(known))]
            known, more = _alike(known, values)
            known.extend(more)
            self._columns[key] = known
        self._context = None

    @staticmethod
    def _shared(
        ends_ns: Sequence[int], columns: Mapping[str, Sequence[Any]], points: Points
    ) -> Mapping[str, Sequence[Any]]:
        """The columns that a step's record has room for: a line holds 128 attributes; the others are points."""
        over = [key for key in columns if key.startswith(names.STEP_SCALAR)][_MOST_SCALARS:]
        for first in range(0, len(over), _MOST_SCALARS):
            some = {key: columns[key] for key in over[first : first + _MOST_SCALARS]}
            points.flush(ends_ns[0])
            points.steps(ends_ns, {**some, names.STEP_NUMBER: columns[names.STEP_NUMBER]})
        return {key: values for key, values in columns.items() if key not in set(over)}

    def flush(self, at_ns: int, rest: Callable[[], None] = _nothing) -> None:
        """Emit what is pending: exactly while the budget lasts, thinned beyond it, with a `rest()` after each slice."""
        count = len(self._ends)
        if not count:
            return
        available = self.budget.available(at_ns)
        if count <= available:
            self.budget.take(count, at_ns)
            self._emit(count, 1, rest)
            return
        stride = stride_for(count, max(1, min(available, _AT_ONCE)))
        whole = count - count % stride
        if self.budget.take(whole // stride, at_ns) and whole:  # else they wait for more of one or the other
            self.thinned = True
            self._emit(whole, stride, rest)

    def finish(self, at_ns: int) -> None:
        """Emit everything, the last bin even when it is not full."""
        self.flush(at_ns)
        if self._ends:
            self.thinned |= len(self._ends) > 1
            self._emit(len(self._ends), len(self._ends), _nothing)

    def _emit(self, count: int, stride: int, rest: Callable[[], None]) -> None:
        """Send the first `count` pending steps, each entry standing for `stride` of them."""
        ends = self._ends[:count]
        columns = {k: v[:count] for k, v in self._columns.items()}
        self._ends = self._ends[count:]
        self._columns = {k: v[count:] for k, v in self._columns.items() if len(v) > count} if self._ends else {}
        columns = {k: v if len(v) == count else [*v, *[None] * (count - len(v))] for k, v in columns.items()}
        if stride > 1:
            thinned: dict[str, list[Any]] = {}
            for key, values in columns.items():
                thinned.update(_thin(key, values, stride))
                rest()
            columns = thinned
            ends = ends[stride - 1 :: stride]
        several = _BATCH if len(columns) * _BATCH * _CELL_BYTES <= _BATCH_BYTES else _WIDE
        for first in range(0, len(ends), several):
            part = {k: v[first : first + several] for k, v in columns.items()}
            self._batch(ends[first : first + several], part, stride)
            rest()

    def _batch(self, ends: Sequence[int], columns: dict[str, Sequence[Any]], stride: int) -> None:
        columns = {k: v for k, v in columns.items() if isinstance(v, array) or v.count(None) < len(v)}
        if len(ends) == 1 and stride == 1:
            only = {k: v[0] for k, v in columns.items()}
            if names.STEP_NUMBER in only:
                only[names.STEP_NUMBER] = only.pop(names.STEP_NUMBER)
            self.event(self.one, _say(only), only, ends[0], context=self._context)
            return
        if len(ends) > 1 and _bytes_of(columns) > _BATCH_BYTES:
            half = len(ends) // 2
            self._batch(ends[:half], {k: v[:half] for k, v in columns.items()}, stride)
            self._batch(ends[half:], {k: v[half:] for k, v in columns.items()}, stride)
            return
        number = columns.pop(names.STEP_NUMBER, None)
        body = self._body(number, {k: v[-1] for k, v in columns.items()}, stride)
        # Identity last: the SDK keeps the last 128 attributes.
        said = {**columns, names.STEP_STRIDE: stride, names.STEP_NUMBER: number}
        self.event(self.many, body, said, ends[-1])

    def _body(self, number: Any, last: dict[str, Any], stride: int) -> str:
        said = _say({**last, names.STEP_NUMBER: number[-1]})
        return f"steps {number[0]} to {number[-1] + stride - 1}: {said}"


class Points(Records):
    """Values beside a step's record, as rows of `ml.scalars`: recorded between steps, or of a step that was named."""

    one = many = names.EVENT_SCALARS

    def _body(self, number: Any, last: dict[str, Any], stride: int) -> str:  # noqa: ARG002 - as there
        return (
            f"values: {_say(last if number is None or number[-1] is None else {**last, names.STEP_NUMBER: number[-1]})}"
        )

    def row(self, at_ns: int, key: str, value: float, number: int | None) -> None:
        """Take one value of a step, or of none; several of one step become one row."""
        numbers = self._columns.get(names.STEP_NUMBER, [None])
        column = self._columns.get(key, [])
        if type(column) is array:
            column = list(column)
        self._columns[key] = column
        count = len(self._ends)
        if count and len(numbers) in (0, count) and numbers[-1] == number and len(column) < count:
            column.extend([None] * (count - 1 - len(column)) + [value])
            return
        self.steps([at_ns], {key: [value], names.STEP_NUMBER: [number]})


def _emit(logger: Any, record: LogRecord, attributes: dict[str, Any]) -> None:
    """Emit a record with these attributes.

    The SDK looks at each value of a column, under the interpreter lock, and makes a tuple of them. Of columns that hold
    nothing but what it lets pass we make that tuple, and give it the record as it would have made it.
    """
    columns = {k: tuple(v) for k, v in attributes.items() if isinstance(v, (list, array))}
    limits: Any = getattr(logger, "_log_record_limits", None)  # of the SDK's own; what one cuts is its business
    most = getattr(limits, "max_log_record_attributes", 0)
    if (
        not columns
        or type(logger) is not Logger
        or (most is not None and len(attributes) > most)
        or getattr(limits, "max_log_record_attribute_length", 0) is not None
        or not all(map(_as_it_is, columns.values()))
    ):
        record.attributes = {**attributes, **columns}
        logger.emit(record)
        return
    record.attributes = {k: v for k, v in attributes.items() if k not in columns}
    ready = ReadWriteLogRecord(record, logger.resource, logger.instrumentation_scope, limits)
    record.attributes = {k: columns[k] if k in columns else record.attributes[k] for k in attributes}
    logger.emit(ready)  # type: ignore[arg-type]  # it takes both, and says one


_LET_PASS = {float, int, str, bool, type(None)}


def _as_it_is(values: tuple[Any, ...]) -> bool:
    return set(map(type, values)) <= _LET_PASS


def _alike(known: Any, values: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
    """Both as arrays of one kind, where one is an array and the other could be; else what is known as a list."""
    if isinstance(values, array):
        known = known if isinstance(known, array) else _as(values.typecode, known)
    elif isinstance(known, array):
        values = _as(known.typecode, values)
    if isinstance(known, array) and (not isinstance(values, array) or known.typecode != values.typecode):
        known = list(known)
    return known, values


def _as(code: str, values: Any) -> Any:
    """An array of this kind, if they are such numbers throughout."""
    if not values:
        return array(code)
    if code == "d":
        return floats(values) or values
    if set(map(type, values)) == {int}:
        with suppress(OverflowError):
            return array(code, values)
    return values


def _bytes_of(columns: dict[str, Sequence[Any]]) -> int:
    """What they take at most; exactly, where that could be too much."""
    most = sum(map(len, columns.values())) * _CELL_BYTES
    return len(json.dumps(columns, default=list)) if most > _BATCH_BYTES else most


def _thin(key: str, values: Any, stride: int) -> dict[str, list[Any]]:
    """Each `stride` steps of a column as one: means, and the spread of what matters; the first step's number."""
    if key == names.STEP_NUMBER:
        return {key: list(values[::stride])}
    if isinstance(values, array) and values.typecode == "d":
        return _told(key, *spread(values, stride))
    count, short = -(-len(values) // stride), len(values) % stride
    if count > 2 and values == values[:1] * len(values):  # it never changed: one bin, and the last, tell of all
        two = _thin(key, values[: stride + (short or stride)], stride)
        return {name: [first] * (count - 1) + [last] for name, (first, last) in two.items()}
    column = floats(values) if isinstance(values, list) else None
    if column is not None:
        return _told(key, *spread(column, stride))
    bins: list[list[Any]] = [values[n : n + stride] for n in range(0, len(values), stride)]
    if None in values:
        bins = [[v for v in b if v is not None] for b in bins]
    if key in _SUMMED:
        return {key: [sum(b) if b else None for b in bins]}
    if isinstance(next((v for b in bins for v in b), None), str):
        # One word for several steps: the one that is not as usual.
        return {key: [next((v for v in b if v != "ok"), b[0]) if b else None for b in bins]}
    means = [sum(b) / len(b) if b else None for b in bins]
    return _told(key, means, [min(b, default=None) for b in bins], [max(b, default=None) for b in bins])


def _told(key: str, means: Any, least: Any, largest: Any) -> dict[str, list[Any]]:
    out = {key: means}
    if key in _SPREAD or key.startswith(names.STEP_LOSS + "."):
        out |= {f"{key}.min": least, f"{key}.max": largest}
    return {name: _rounded(values) for name, values in out.items()}


def _rounded(values: Any) -> list[float | None]:
    if type(values) is array:
        return rounded(values)  # type: ignore[return-value]
    return [None if v is None else float(f"{v:.6g}") for v in values]


def _say(attributes: Mapping[Any, Any]) -> str:
    parts = [f"step {attributes[names.STEP_NUMBER]}:"] if names.STEP_NUMBER in attributes else []
    loss = attributes.get(names.LOSS.name)
    if loss is not None:
        parts.append(f"loss {loss:.4g},")
    if names.STEP_DURATION_S in attributes:
        parts.append(f"{attributes[names.STEP_DURATION_S] * 1e3:.3g} ms")
    else:
        prefix = f"{names.STEP_SCALAR}."
        given = ((k.removeprefix(prefix), v) for k, v in attributes.items() if k.startswith(prefix) and v is not None)
        parts.append(", ".join(f"{name} {value:.4g}" for name, value in given))
    return " ".join(parts)
