"""Forwards that belong to no step: an evaluation as it goes on; what turns out to be inside an event is taken back.

Called by the step tracker alone; knows no clock, as it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from otel_ml.core import recorder as r
from otel_ml.pipeline.findings import Evaluation
from otel_ml.pipeline.layout import compiling

if TYPE_CHECKING:
    from otel_ml.pipeline.findings import Item

__all__ = ["CALLS", "Aside"]

CALLS = frozenset({r.FORWARD, r.FORWARD_NOGRAD, r.DEVICE_CALL})
_COUNTED = CALLS | {r.DEVICE_GRAD}
_PARTS = 4096  # forwards that can still be taken back, should an event turn out to hold them


class Aside:
    """An evaluation that goes on, and what it was before each of its last forwards."""

    def __init__(self, at: int, number: int) -> None:
        self.found = Evaluation(at, at, 0, number)
        self.parts: deque[tuple[int, int, int, int]] = deque(maxlen=_PARTS)  # a start; end, calls, compiling before it

    @classmethod
    def put(cls, known: Aside | None, items: list[Item], number: int) -> Aside:
        """Add these forwards, and the fetches among them, to what is known, or begin with them before step `number`."""
        aside = cls(items[0].start, number) if known is None else known
        found = aside.found
        aside.parts.append((items[0].start, found.end, found.calls, found.compiling))
        found.end = items[-1].end
        found.calls += sum(1 for i in items if i.code in _COUNTED)
        found.functions.update(i.a for i in items if i.code == r.DEVICE_CALL)
        found.compiling += sum(map(compiling, items))
        return aside

    def cut(self, start: int) -> bool:
        """Take off what began at or after `start`, as the tracker absorbs it; whether nothing is left."""
        found, parts = self.found, self.parts
        while parts and parts[-1][0] >= start and found.end > start:
            _, found.end, found.calls, found.compiling = parts.pop()
        found.end = min(found.end, max(start, found.start))
        return found.start >= start and not parts
