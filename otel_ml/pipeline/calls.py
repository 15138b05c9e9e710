"""Fast serving: the calls of one model, hundreds at a time.

In a process that does not train, each root forward without grad is a request, whatever came before
it. Where many of the same model follow one another, their columns are all there is to tell.
`tests/pipeline/test_calls.py` shows that it comes to what it does one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_ml.core.recorder import FAILED, FORWARD_NOGRAD, WIDTH, instants
from otel_ml.pipeline.columns import AT_ONCE, combined, follow
from otel_ml.pipeline.findings import Calls
from otel_ml.pipeline.layout import unpack

if TYPE_CHECKING:
    from otel_ml.pipeline.steps import Tracker

__all__ = ["calls_ahead"]

_CALLS = max(512, AT_ONCE)  # together: of each there is less to tell than of a step
_LEAST = 16


def calls_ahead(tracker: Tracker, chunk: list[Any], at: int) -> Calls | None:
    """The calls that come next in `chunk`, as far as they are of one model and none failed; None if they are few."""
    last = at + (_LEAST - 1) * WIDTH
    if last >= len(chunk) or chunk[last] != FORWARD_NOGRAD or not tracker.serves(chunk[at + 1]):
        return None
    stop = min(len(chunk), at + _CALLS * WIDTH)
    count = min(
        _same(chunk[at:stop:WIDTH], FORWARD_NOGRAD),
        _same(chunk[at + 3 : stop : WIDTH], chunk[at + 3]),
    )
    packed = chunk[at + 4 : at + count * WIDTH : WIDTH]
    if FAILED in packed:
        count = packed.index(FAILED)
        del packed[count:]
    starts = instants(chunk, at + 1, at + count * WIDTH)
    ends = instants(chunk, at + 2, at + count * WIDTH)
    if count < _LEAST or not follow(ends, starts, 0):
        return None
    if packed.count(packed[0]) == count:
        samples = [unpack(packed[0])[0]] * count
    else:
        samples = [unpack(each)[0] for each in packed]
    durations = combined(starts, ends, 1, count, ((0, True, False), (0, False, True)))
    return Calls(chunk[at + 3], starts, ends, durations, samples)


def _same(column: list[Any], value: Any) -> int:
    """How many entries at its beginning are this one."""
    if column.count(value) == len(column):
        return len(column)
    return next(n for n, each in enumerate(column) if each != value)
