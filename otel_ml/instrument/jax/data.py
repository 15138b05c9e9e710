"""Waiting for data from grain: the outermost iterator's `__next__`, patched on the class that a pipeline ends in."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any

from otel_ml.core.clock import now
from otel_ml.core.context import recorders
from otel_ml.core.recorder import FETCH, FETCH_END
from otel_ml.errors import guard, swallow

if TYPE_CHECKING:
    from otel_ml.instrument.patching import Patches

__all__ = ["install"]

local = recorders.local


class _Inside(threading.local):
    """Whether this thread is inside a fetch: a pipeline is iterators in iterators."""

    fetch = False


def install(grain: Any, patches: Patches) -> None:
    """Time every batch that a pipeline's end gives, and read its size."""
    python = grain._src.python
    inside = _Inside()
    seen: set[type] = set()

    def timed(original: Any) -> Any:
        @functools.wraps(original)
        def __next__(self: Any) -> Any:  # noqa: N807 - the iterator's own method
            if inside.fetch:
                return original(self)
            inside.fetch = True
            try:
                recorder = recorders.mine()
                before = recorder.fetching()
                start = now()
                batch = original(self)
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
                samples = _rows(batch)
            except Exception:  # noqa: BLE001 - the law: never break the program
                swallow("reading the batch's size")
            recorder.record(FETCH, start, end, samples, -1)
            return batch

        return __next__

    def watch(kind: type) -> None:
        owner = next(cls for cls in kind.__mro__ if "__next__" in vars(cls))
        if owner not in seen:
            seen.add(owner)
            patches.set(owner, "__next__", timed(vars(owner)["__next__"]))

    ends = python.dataset.dataset._OutputIterDataset
    original = ends.__iter__

    @functools.wraps(original)
    def __iter__(self: Any) -> Any:  # noqa: N807 - the dataset's own method
        iterator = original(self)
        with guard("a grain pipeline"):
            watch(type(iterator))
        return iterator

    patches.set(ends, "__iter__", __iter__)
    watch(python.data_loader.DataLoaderIterator)


def _rows(batch: Any) -> int:
    """The leading axis of the first array in a batch; -1 where there is none."""
    shape = getattr(batch, "shape", None)
    if shape is not None:
        return int(shape[0]) if len(shape) else -1
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (tuple, list)) else ()
    return next((rows for rows in map(_rows, parts) if rows >= 0), -1)
