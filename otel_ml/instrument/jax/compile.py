"""Compilations: JAX's own account of tracing, lowering and compiling, and of its persistent cache."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from otel_ml import names
from otel_ml.core.clock import now
from otel_ml.core.context import recorders
from otel_ml.core.recorder import COMPILE
from otel_ml.errors import guard
from otel_ml.instrument.jax.calls import miss
from otel_ml.instrument.jax.leaves import lost
from otel_ml.instrument.jax.misses import bare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otel_ml.instrument.patching import Patches
    from otel_ml.names import Metric

__all__ = ["Listeners"]

_STAGES = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
    "/jax/core/compile/backend_compile_duration": "backend",
}
_REQUEST = "/jax/compilation_cache/compile_requests_use_cache"
_HIT = "/jax/compilation_cache/cache_hits"
_SAVED = "/jax/compilation_cache/compile_time_saved_sec"


class _Going(threading.local):
    """The stages of this thread's compilation, and what the cache said of it."""

    name: str = ""
    start: int = 0
    stages: dict[str, float]
    request = False
    hit = False
    saved: float | None = None

    def __init__(self) -> None:
        self.stages = {}


def _ways(monitoring: Any, kind: str) -> tuple[Any, Any, Any]:
    """How to see which listeners of a kind there are, to register one, and to take it back, which older JAX lacks."""
    listing = "event_duration_secs" if kind == "event_duration" else kind
    known = getattr(monitoring, f"get_{kind}_listeners")
    register = getattr(monitoring, f"register_{listing}_listener")
    unregister = getattr(monitoring, f"unregister_{kind}_listener", None)
    return known, register, unregister or (lambda ours: getattr(monitoring, f"_{listing}_listeners").remove(ours))


class Listeners:
    """Our listeners of `jax.monitoring`; whoever clears them all finds ours back a moment later."""

    def __init__(self, jax: Any, *others: tuple[Callable[..., None], str]) -> None:
        self.jax = jax
        ours = ((self.span, "event_time_span"), (self.event, "event"), (self.duration, "event_duration"), *others)
        self._all = [(callback, *_ways(jax._src.monitoring, kind)) for callback, kind in ours]
        self.going = _Going()
        self.on = False

    def install(self, patches: Patches) -> None:
        """Listen, until the patches are undone."""
        self.on = True
        self.listen()
        patches.undo_with(self.remove)

    def listen(self) -> None:
        """Register what is not registered (any more)."""
        if not self.on:
            return
        for ours, known, register, _ in self._all:
            if ours not in known():
                register(ours)

    def __call__(self) -> Iterator[tuple[Metric, float, dict[str, Any] | None]]:
        """At each turn of the drain: whoever cleared all listeners cleared ours."""
        self.listen()
        yield names.VALUES_LOST, lost.taken(), None

    def remove(self) -> None:
        """Listen no more."""
        self.on = False
        for ours, known, _, unregister in self._all:
            if ours in known():
                unregister(ours)

    def event(self, event: str, **_: Any) -> None:
        """The cache was asked, or had it."""
        if event == _REQUEST:
            self.going.request, self.going.hit, self.going.saved = True, False, None
        elif event == _HIT:
            self.going.hit = True

    def duration(self, event: str, seconds: float, **_: Any) -> None:
        """What the cache saved; it may be negative."""
        if event == _SAVED:
            self.going.saved = seconds

    def span(self, event: str, start_s: float, end_s: float, **about: Any) -> None:
        """One stage has ended; the backend's is the last."""
        stage = _STAGES.get(event)
        if stage is None:
            return
        with guard("a compilation"):
            end = now()
            seconds = max(0.0, end_s - start_s)
            going = self.going
            name = bare(str(about.get("fun_name", "")))
            if name != going.name or stage == "trace" or stage in going.stages:
                going.name, going.stages, going.start = name, {}, end - int(seconds * 1e9)
            going.stages[stage] = seconds
            if stage == "backend":
                self._tell(name, going, end, seconds)
                going.name, going.stages = "", {}

    def _tell(self, name: str, going: _Going, end: int, seconds: float) -> None:
        start = going.start
        if miss.start is None or start < miss.start:
            start = end - int(seconds * 1e9)  # traced and lowered ahead of time: that was not just now
        mine = miss.name == name
        reason = miss.reason if mine else None
        payload: dict[str, Any] = {
            "function": name,
            "reason": reason.text if reason else None,
            "kind": reason.kind if reason else None,
            "stages": going.stages,
            "cache": self._cache(going),
            "saved": going.saved if going.hit else None,
        }
        going.request = going.hit = False
        going.saved = None
        recorders.mine().record(COMPILE, start, end, payload)

    def _cache(self, going: _Going) -> str | None:
        """Whether it was a hit or a miss; None where there is no persistent cache to ask."""
        if going.hit:
            return "hit"
        folder = self.jax.config.jax_compilation_cache_dir
        return "miss" if going.request and folder else None
