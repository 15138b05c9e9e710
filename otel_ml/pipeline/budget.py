"""A bound on how much leaves, whatever the step rate."""

from __future__ import annotations

__all__ = ["Budget", "stride_for"]


class Budget:
    """Allows `rate` a second with a `burst`; time is handed in, in nanoseconds."""

    def __init__(self, rate: float, burst: float, at_ns: int) -> None:
        self.rate = rate
        self.burst = burst
        self.left = float(burst)
        self._at = at_ns

    def available(self, at_ns: int) -> int:
        """How many whole ones may leave now."""
        elapsed = max(0, at_ns - self._at)
        self._at = max(self._at, at_ns)
        self.left = min(self.burst, self.left + self.rate * elapsed / 1e9)
        return int(self.left)

    def take(self, count: int, at_ns: int) -> bool:
        """Take `count` if that many are available."""
        if self.available(at_ns) < count:
            return False
        self.left -= count
        return True


def stride_for(rate: float, allowed: float) -> int:
    """The smallest power of two that brings `rate` down to `allowed`; strides nest across ranks."""
    stride = 1
    while rate / stride > allowed and stride < 1 << 30:
        stride *= 2
    return stride
