"""Waiting for data: `_BaseDataLoaderIter.__next__`, which keeps the iterator's type."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from otel_ml.core import runtime
from otel_ml.core.clock import now
from otel_ml.core.context import recorders
from otel_ml.core.recorder import FETCH, FETCH_END
from otel_ml.errors import swallow
from otel_ml.instrument.torch.hidden import hide
from otel_ml.instrument.torch.values import shape

if TYPE_CHECKING:
    from otel_ml.instrument.patching import Patches

__all__ = ["install"]


def install(torch: Any, patches: Patches) -> None:
    """Time every batch fetch and read the batch's shape."""
    from torch.utils.data import dataloader, get_worker_info

    runtime.helpers.append(lambda: get_worker_info() is not None)
    owner = dataloader._BaseDataLoaderIter
    original = owner.__next__
    compiling = torch.compiler.is_dynamo_compiling
    local = recorders.local

    @functools.wraps(original)
    def __next__(self: Any) -> Any:  # noqa: N807 - the iterator's own method
        if compiling():
            return original(self)
        try:
            recorder = local.recorder
        except AttributeError:
            recorder = recorders.mine()
        before = recorder.fetching()
        start = now()
        try:
            batch = original(self)
        except BaseException as error:
            if isinstance(error, StopIteration):
                recorder.exhausted(before)
            recorder.record(FETCH_END, start, now())
            raise
        end = now()
        samples = tokens = -1
        try:
            samples, tokens = shape(batch)
        except Exception:  # noqa: BLE001 - the law: never break the program
            swallow("reading the batch's shape")
        recorder.record(FETCH, start, end, samples, tokens)
        return batch

    patches.set(owner, "__next__", hide(__next__))
