"""Waiting for data, wherever it comes from: one fetch, and how much it brought."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_ml.core.clock import now
from otel_ml.core.context import inside, recorders
from otel_ml.core.recorder import FETCH, FETCH_END
from otel_ml.errors import swallow

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["fetch", "rows"]


def fetch(following: Callable[[], Any]) -> Any:
    """What `following()` gives, its time recorded as a wait for data; inside another fetch it is a part of that one."""
    if inside.fetch:
        return following()
    inside.fetch = True
    recorder = recorders.mine()
    before = recorder.fetching()
    start = now()
    try:
        batch = following()
    except BaseException as error:
        if isinstance(error, StopIteration):
            recorder.exhausted(before)
        recorder.record(FETCH_END, start, now())
        raise
    finally:
        inside.fetch = False
    end = now()
    samples = -1
    try:
        samples = rows(batch)
    except Exception:  # noqa: BLE001 - the law: never break the program
        swallow("reading the batch's size")
    recorder.record(FETCH, start, end, samples, -1)
    return batch


def rows(batch: Any) -> int:
    """The leading axis of the first array in a batch; -1 where there is none."""
    shape = getattr(batch, "shape", None)
    if shape is not None:
        return int(shape[0]) if len(shape) else -1
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (tuple, list)) else ()
    return next((count for count in map(rows, parts) if count >= 0), -1)
