"""Step records: the curve of a run as log records, exact within a budget and thinned above it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from opentelemetry._logs import LogRecord, SeverityNumber

from otel_ml import names
from otel_ml.pipeline.budget import Budget, stride_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context

    from otel_ml.core.clock import Anchor

__all__ = ["Records"]

_BATCH = 128
_BATCH_BYTES = 48 * 1024
_SPREAD = (names.STEP_DURATION_S, names.LOSS.name, names.GRAD_NORM.name)  # columns whose min and max are kept
_SUMMED = (names.STEP_SAMPLES, names.STEP_TOKENS, names.STEP_MICRO_BATCHES)


class Records:
    """Collects step records and emits them as `ml.step`, or `ml.steps` columns."""

    def __init__(self, anchor: Anchor, *, rate: float, burst: int, started: int) -> None:
        self.anchor = anchor
        self.budget = Budget(rate, burst, started)
        self.rate = rate
        self.pending: list[tuple[int, dict[str, Any], Context | None]] = []
        self.thinned = False
        self._logger: Any = None

    def use(self, logger: Any) -> None:
        """Send to this OTel logger."""
        self._logger = logger

    def event(
        self, name: str, body: str, attributes: Mapping[Any, Any], at_ns: int, *, context: Context | None = None,
        severity: SeverityNumber = SeverityNumber.INFO,
    ) -> None:  # fmt: skip
        """Emit one event now."""
        self._logger.emit(
            LogRecord(
                timestamp=self.anchor.unix(at_ns),
                context=context,
                severity_number=severity,
                severity_text="INFO" if severity is SeverityNumber.INFO else "ERROR",
                body=body,
                attributes={k: v for k, v in attributes.items() if v is not None},
                event_name=name,
            )
        )

    def step(self, end_ns: int, attributes: dict[str, Any], context: Context | None) -> None:
        """Take one step's record; it leaves with the next `flush()`."""
        self.pending.append((end_ns, attributes, context))

    def flush(self, at_ns: int) -> None:
        """Emit what is pending: exactly while the budget lasts, thinned beyond it."""
        pending = self.pending
        if not pending:
            return
        available = self.budget.available(at_ns)
        if len(pending) <= available:
            self.pending = []
            self.budget.take(len(pending), at_ns)
            for first in range(0, len(pending), _BATCH):
                self._batch(pending[first : first + _BATCH], 1)
            return
        self.thinned = True
        room = max(1, min(available, _BATCH))
        stride = stride_for(len(pending), room)
        whole = len(pending) - len(pending) % stride
        self.pending = pending[whole:]
        bins = [_bin(pending[n : n + stride]) for n in range(0, whole, stride)]
        self.budget.take(min(len(bins), available), at_ns)
        for first in range(0, len(bins), _BATCH):
            self._batch(bins[first : first + _BATCH], stride)

    def finish(self, at_ns: int) -> None:
        """Emit everything, the last bin even when it is not full."""
        self.flush(at_ns)
        if self.pending:
            rest, self.pending = self.pending, []
            self._batch([_bin(rest)], len(rest))

    def _batch(self, rows: list[tuple[int, dict[str, Any], Context | None]], stride: int) -> None:
        if len(rows) == 1 and stride == 1:
            end, attributes, context = rows[0]
            self.event(names.EVENT_STEP, _say(attributes), attributes, end, context=context)
            return
        keys: dict[str, None] = {}
        for _, attributes, _ in rows:
            keys.update(dict.fromkeys(attributes))
        columns: dict[str, Any] = {k: [a.get(k) for _, a, _ in rows] for k in keys}
        if len(rows) > 1 and len(json.dumps(columns)) > _BATCH_BYTES:
            half = len(rows) // 2
            self._batch(rows[:half], stride)
            self._batch(rows[half:], stride)
            return
        number = columns.pop(names.STEP_NUMBER)
        columns[names.STEP_STRIDE] = stride
        columns[names.STEP_NUMBER] = number  # identity last: the SDK keeps the last 128 attributes
        body = f"steps {number[0]} to {number[-1] + stride - 1}: {_say(rows[-1][1])}"
        self.event(names.EVENT_STEPS, body, columns, rows[-1][0])


def _bin(rows: list[tuple[int, dict[str, Any], Context | None]]) -> tuple[int, dict[str, Any], Context | None]:
    """Several steps as one: means, and the spread of what matters; the first step's number."""
    out: dict[str, Any] = {}
    keys: dict[str, None] = {}
    for _, attributes, _ in rows:
        keys.update(dict.fromkeys(attributes))
    for key in keys:
        values = [a[key] for _, a, _ in rows if a.get(key) is not None]
        first = values[0]
        if key == names.STEP_NUMBER:
            out[key] = first
        elif key in _SUMMED:
            out[key] = sum(values)
        elif isinstance(first, (int, float)):
            out[key] = _round(sum(values) / len(values))
            if key in _SPREAD or key.startswith(names.STEP_LOSS + "."):
                out[f"{key}.min"] = _round(min(values))
                out[f"{key}.max"] = _round(max(values))
        else:
            out[key] = first if all(v == first for v in values) else next(v for v in values if v != "ok")
    return rows[-1][0], out, None


def _round(value: float) -> float:
    return float(f"{value:.6g}")


def _say(attributes: dict[str, Any]) -> str:
    parts = [f"step {attributes[names.STEP_NUMBER]}:"]
    loss = attributes.get(names.LOSS.name)
    if loss is not None:
        parts.append(f"loss {loss:.4g},")
    parts.append(f"{attributes[names.STEP_DURATION_S] * 1e3:.3g} ms")
    return " ".join(parts)
