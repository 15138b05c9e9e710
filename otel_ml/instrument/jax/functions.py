"""One compiled function of the program's: what a call of it is, and the recording of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_ml.core import runtime
from otel_ml.core.recorder import DEVICE_CALL, DEVICE_GRAD, DEVICE_TRAIN, DONE, OPEN
from otel_ml.instrument.jax.leaves import Leaves

if TYPE_CHECKING:
    from otel_ml.instrument.jax.retrace import Signature

__all__ = ["VARIES", "Function"]

VARIES = -1.0  # operations of a function that is called with batches of several sizes: not known of each call
_RATE_NS = 2_500_000  # a call, on average: faster, and not every one's scalars are kept
_WINDOW = 64  # calls whose scalars are kept before it is asked how fast they come
_SPARSE_NS = 10_000_000  # between calls whose scalars are kept, of those that come faster


class Function:
    """One function of the program's, in all its traced forms."""

    __slots__ = (
        "__weakref__", "alone", "batch", "calls", "code", "due", "flops", "last", "name", "names", "number", "packed",
        "picks", "seen", "since", "told", "value", "window",
    )  # fmt: skip

    def __init__(self, name: str, value: Any) -> None:
        self.name = name
        self.value = value  # reads an array, never noted as the program's own waiting
        self.code = DEVICE_CALL
        self.number = -1
        self.alone = 0
        self.names: tuple[str, ...] = ()
        self.picks: tuple[Any, ...] = ()
        self.packed = -1
        self.batch: Any = None  # how to reach the batch, once several sizes were seen
        self.calls = 0
        self.told = 0  # of those, the drain's
        self.due = 0  # when a call's scalars are kept again; 0 while all are
        self.window = 0  # the calls there were when a window began, and
        self.since = 0  # when that was
        self.flops: float | None = None
        self.seen: dict[int, Any] = {}  # jaxprs by id, weakly
        self.last: Signature | None = None

    @property
    def learns(self) -> bool:
        """Whether it trains, or yields gradients."""
        return self.code in (DEVICE_TRAIN, DEVICE_GRAD)

    def _pace(self, at: int) -> None:
        """Another window of calls begins; where they come too fast, it is of one that is kept and a time of none."""
        fast = self.since > 0 and (self.calls - self.window) * _RATE_NS > at - self.since
        self.window, self.since = self.calls, at
        self.due = at + _SPARSE_NS if fast else 0

    def called(self, recorder: Any, start: int, end: int, args: Any, kwargs: Any, out: Any) -> None:
        """Record one call that has just been dispatched."""
        code = self.code
        self.calls += 1
        told: Any = self.packed
        if self.batch is not None:
            told = _rows(self.batch((args, kwargs)))
        if code == DEVICE_CALL:
            if recorder.state or recorder.merged_from is not None:
                recorder.edge()
        else:
            if code == DEVICE_GRAD:
                if recorder.state != OPEN:
                    recorder.candidate()
            else:
                if recorder.state == DONE and recorder.seen == self.alone:  # what turn() comes to in a plain loop
                    recorder.number += 1
                    recorder.merged_from = None
                else:
                    recorder.turn(self.number)
                if runtime.profiler is not None:
                    runtime.profiler.turned("jax", recorder.number)
            if self.picks and end >= self.due:
                if self.due or self.calls - self.window >= _WINDOW:
                    self._pace(end)
                recorder.defers = True
                recorder.kept = told = Leaves(told, self.names, [get(out) for get in self.picks], self.value)
        if len(recorder.buffer) < recorder.limit:
            recorder.extend((code, start, end, self.number, told))
        else:
            recorder.dropped += 1


def _rows(array: Any) -> int:
    shape = getattr(array, "shape", ())
    return int(shape[0]) if shape else -1
