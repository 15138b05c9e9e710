"""Waiting for data from grain: the outermost iterator's `__next__`, patched on the class that a pipeline ends in."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from otel_ml.core.batches import fetch
from otel_ml.errors import guard

if TYPE_CHECKING:
    from otel_ml.instrument.patching import Patches

__all__ = ["install"]


def install(grain: Any, patches: Patches) -> None:
    """Time every batch that a pipeline's end gives, and read its size."""
    python = grain._src.python
    seen: set[type] = set()

    def timed(original: Any) -> Any:
        @functools.wraps(original)
        def __next__(self: Any) -> Any:  # noqa: N807 - the iterator's own method
            return fetch(functools.partial(original, self))

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
