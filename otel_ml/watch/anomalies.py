"""What is not as it was: told once, when it begins, with the figures it stands on and what to try next.

    recompile_storm   one function compiled again STORM times within STORM_WINDOW_S

Fed by the drain with each finding it concerns; keeps a few instants a function.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from typing import NamedTuple

__all__ = ["Anomalies", "Anomaly"]

STORM = 8
STORM_WINDOW_S = 60.0
_FUNCTIONS = 200  # that are watched at a time


class Anomaly(NamedTuple):
    """Its kind, the figures that show it, and one concrete next step."""

    kind: str
    evidence: str
    advice: str


def _subject(reason: str) -> str:
    """What changed: `x` of JAX's "x: float32[8] -> float32[9]" and of torch's "0/0: tensor 'x' size mismatch …"."""
    if " -> " in reason:
        return reason.partition(":")[0]
    named = re.search(r"tensor '([^']+)'|L\['([^']+)'\]", reason)
    return next(filter(None, named.groups())) if named else "what its guards check"


class Anomalies:
    """Watches one process."""

    def __init__(self) -> None:
        self._recompiled: dict[str, deque[tuple[int, str]]] = {}
        self._told: set[str] = set()

    def recompiled(self, function: str, reason: str, at_ns: int) -> Anomaly | None:
        """A function was compiled again, for that reason; an anomaly the first time that this is a storm."""
        if function not in self._recompiled and len(self._recompiled) >= _FUNCTIONS:
            return None
        seen = self._recompiled.setdefault(function, deque(maxlen=STORM))
        seen.append((at_ns, reason))
        if len(seen) < STORM or at_ns - seen[0][0] > STORM_WINDOW_S * 1e9 or function in self._told:
            return None
        self._told.add(function)
        what = Counter(_subject(reason) for _, reason in seen).most_common(1)[0][0]
        took = (at_ns - seen[0][0]) / 1e9
        return Anomaly(
            "recompile_storm",
            f"{function} was compiled again {STORM} times in {took:.1f} s, most often for {what}; last: {reason}",
            f"Keep {what} the same from call to call: pad it to a few fixed sizes, or pass what changes as an array.",
        )
