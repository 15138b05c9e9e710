"""What `distro` registers here so that hooks reach the pipeline without importing it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from otel_ml.core.identity import Identity
    from otel_ml.core.profiling import Profiler
    from otel_ml.names import Metric

    Sample = Iterable[tuple[Metric, float, dict[str, Any] | None]]

__all__ = [
    "coming", "enabled", "framework", "frameworks", "helpers", "identity", "leading", "profiler", "samplers", "trained",
]  # fmt: skip

identity: Identity | None = None
"""Who this process is, while it is recorded."""

frameworks: dict[str, str] = {}
samplers: list[Callable[[], Sample]] = []
"""Each says, at a turn of the drain, what stands at what: gauges are set, counters added to."""
profiler: Profiler | None = None
"""Told by hooks of every turn, where the user wants some steps profiled."""
trained: list[str] = []
"""The frameworks that the program was seen to train with, in that order."""
helpers: list[Callable[[], bool]] = []
"""Each says whether this process only prepares data for another: what such a one computes is no run."""


def coming() -> bool:
    """Whether the program has begun to import a framework: there will be something to tell of."""
    return "torch" in sys.modules or "jax" in sys.modules


def framework(name: str, version: str) -> None:
    """A framework has been hooked."""
    frameworks[name] = version


def leading() -> tuple[str, str]:
    """The framework that the program trains with, else the first it imported, and its version; empty if none."""
    name = next((n for n in (*trained, *frameworks) if n in frameworks), "")
    return name, frameworks.get(name, "")


def enabled() -> bool:
    """Whether this process may be recorded: not switched off, and the SDK not disabled."""
    return os.environ.get("OTEL_ML_ENABLED", "1") not in ("0", "false") and (
        os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() != "true"
    )
