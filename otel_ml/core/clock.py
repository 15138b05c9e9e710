"""The clock of everything we record: monotonic nanoseconds, told as Unix time only when they leave.

Hooks read `now()` (36 ns); the drain turns those into Unix time with an `Anchor`, which
it renews now and then so that a corrected wall clock is followed and a stepped one never
makes a duration negative.
"""

from __future__ import annotations

import time

__all__ = ["Anchor", "now", "wall"]

now = time.perf_counter_ns
wall = time.time_ns

# A wall clock that moved by more than this against the monotonic one was stepped or has drifted.
_DRIFT_NS = 1_000_000


class Anchor:
    """Turns `now()` values into Unix nanoseconds."""

    __slots__ = ("offset",)

    def __init__(self) -> None:
        self.offset = self._measure()

    @staticmethod
    def _measure() -> int:
        before = now()
        unix = wall()
        return unix - (before + now()) // 2

    def renew(self) -> bool:
        """Follow the wall clock if it drifted or was stepped by over 1 ms; say whether it had."""
        offset = self._measure()
        if abs(offset - self.offset) <= _DRIFT_NS:
            return False
        self.offset = offset
        return True

    def unix(self, mono_ns: int) -> int:
        """The Unix time in nanoseconds of a `now()` value."""
        return mono_ns + self.offset
