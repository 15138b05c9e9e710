"""The program alone, twice: the second is the control that shows what the measurement resolves."""

from __future__ import annotations

from tests.bench.conditions import EVERYTHING, Condition

CONDITIONS = (
    Condition("plain", "plain", "nothing", workloads=EVERYTHING),
    Condition("plain2", "plain again (control)", "nothing", workloads=EVERYTHING),
)
