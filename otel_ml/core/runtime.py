"""What `distro` registers here so that hooks reach the pipeline without importing it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from otel_ml.core.deferred import Deferred
    from otel_ml.core.identity import Identity
    from otel_ml.core.profiling import Profiler
    from otel_ml.names import Metric

    Sample = Iterable[tuple[Metric, float, dict[str, Any] | None]]

__all__ = [
    "Recording", "coming", "compiling", "differentiates", "enabled", "framework", "frameworks", "helpers", "identity",
    "late", "leading", "profiler", "profiles", "readers", "recording", "samplers", "trained",
]  # fmt: skip


class Recording(Protocol):
    """A run as the API sees it."""

    @property
    def live(self) -> Any:
        """A span that stands for the step which the thread that asks is in."""

    def tracer(self, scope: str) -> Any:
        """The tracer of this scope."""

    def event(self, name: str, body: str, attributes: dict[str, Any], *, warning: bool = False) -> None:
        """Emit a log record with this event name, in the current context."""

    def annotated(self) -> None:
        """The program has said something of itself: there is a run to tell of."""

    def flush(self, timeout_s: float) -> bool:
        """Bring all that is recorded so far to where it goes; whether it got there in time."""

    def so_far(self) -> Any:
        """The run's aggregates as they stand, with a verdict."""


identity: Identity | None = None
"""Who this process is, while it is recorded."""
recording: Recording | None = None
"""What the API records with; None while nothing is recorded."""
late = False
"""Whether hooks may come after the program has made what they hook: it called `configure()` itself."""
readers: dict[str, Callable[[Any], float | Deferred | None]] = {}
"""By the first word of a value's module: reads a scalar of that framework without waiting for any device."""

frameworks: dict[str, str] = {}
samplers: list[Callable[[], Sample]] = []
"""Each says, at a turn of the drain, what stands at what: gauges are set, counters added to."""
profiles: Callable[[], Path] | None = None
"""Makes the folder that profiles go to."""
profiler: Profiler | None = None
"""Told by hooks of every turn, where the user wants some steps profiled."""
differentiates = False
"""Whether the program has called `torch.autograd.grad`, as torch.func does, before it ever called `backward`."""
trained: list[str] = []
"""The frameworks that the program was seen to train with, in that order."""
helpers: list[Callable[[], bool]] = []
"""Each says whether this process only prepares data for another: what such a one computes is no run."""


def _never() -> bool:
    return False


compiling: Callable[[], bool] = _never
"""Whether the framework's compiler is tracing what runs now: the API then says nothing, the graph is as without it."""


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
