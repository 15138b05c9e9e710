"""Numbers that a program records: `record`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from otel_ml.core import runtime
from otel_ml.core.clock import now
from otel_ml.core.context import limits, recorders, scalars
from otel_ml.core.context import split as current_split
from otel_ml.core.recorder import LAST_STEP, POINT, SCALAR, STEP_SHIFT
from otel_ml.decorators import LONGEST_NAME
from otel_ml.errors import swallow

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_ml.core.deferred import Deferred

__all__ = ["record"]


def record(
    name: str | Mapping[str, Any], value: Any = None, /, *, step: int | None = None, split: str | None = None
) -> None:
    """Record a number, or several by name: `record("val/acc", 0.9)`, `record({"acc": 0.9, "f1": 0.8}, split="test")`.

    It becomes a point of the metric `ml.training.scalar` and a column of the record of the step in which it was
    recorded; between steps, of the last one. NaN and infinities are kept in the records and counted in
    `ml.training.nonfinite_values`; a metric cannot hold them.

    Args:
        name: At most 200 names a run; what is beyond is counted and said once.
        value: A Python number, or a scalar of NumPy, torch or JAX on any device. Never waited for: what a device still
            computes is read later, behind the program.
        step: The step it is of, where that is not the current one.
        split: What it is of (`train`, `validation`, …); unset, that of the `evaluation()` around it.

    Some microseconds a value.
    """
    if runtime.recording is None or runtime.compiling():
        return
    try:
        runtime.recording.annotated()
        given = {name: value} if isinstance(name, str) else name
        for key, number in given.items():
            _record(key, number, step, split)
    except Exception:  # noqa: BLE001 - the law: never break the program
        swallow("record()")


def _record(name: str, value: Any, step: int | None, of: str | None) -> None:
    read = _read(name, value)
    if read is None:
        return
    index = scalars.number(str(name)[:LONGEST_NAME], of if of is not None else current_split.get())
    if index < 0:
        limits.over("scalar", f"more than 200 names of values: {name} and others are left out")
        return
    recorder = recorders.mine()
    if not isinstance(read, float):
        recorder.defers = True
    at = now()
    if step is None:
        recorder.record(SCALAR, at, at, index, read)
    elif isinstance(step, int) and 0 <= step < LAST_STEP:
        recorder.apart = True
        recorder.record(POINT, at, at, index | step << STEP_SHIFT, read)
    else:
        limits.over("step", f"record(step={step!r}): a step is a whole number from 0; its values are left out")


def _read(name: str, value: Any) -> float | Deferred | None:
    """A number, now or later; None, and said once, where it is none."""
    kind = type(value)
    if kind is float:
        return value  # type: ignore[no-any-return]
    try:
        reader = runtime.readers.get(kind.__module__.partition(".")[0])
        if reader is not None:
            read = reader(value)
            if read is not None:
                return read
        elif hasattr(value, "is_cpu") or hasattr(value, "is_ready"):
            # A framework that is not hooked: what is on a device could have to be waited for.
            if value.is_cpu if hasattr(value, "is_cpu") else not value.is_deleted() and value.is_ready():
                return float(value.item())
        elif not isinstance(value, (str, bytes)) and getattr(value, "size", 1) == 1:
            return float(value.item() if hasattr(value, "item") else value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except Exception:  # noqa: BLE001, S110 - said below
        pass
    limits.over("value", f"record({name!r}): {kind.__qualname__} is no number that could be read; it is left out")
    return None
