"""JAX: compiled functions' calls, compilations, waits and memory, hooked once the program has imported JAX."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from otel_ml.core import profiling, runtime
from otel_ml.instrument.framework import FrameworkInstrumentor

if TYPE_CHECKING:
    from otel_ml.instrument.jax.calls import Calls
    from otel_ml.instrument.jax.checkpoint import Checkpoints

__all__ = ["JaxInstrumentor", "report"]

_checkpoints: dict[str, Checkpoints] = {}  # by "now": those of the hooks that are installed


def report() -> dict[str, str]:
    """Each hook by name: "hooked", or "missing: why"."""
    return JaxInstrumentor.report()


def _hide_frames(src: Any) -> None:
    """Our frames are none of the user's, in the locations of what is compiled and in tracebacks; kept for good."""
    folder = str(Path(__file__).parents[2])
    for known in (src.source_info_util, src.traceback_util):
        if folder not in known._exclude_paths:
            known.register_exclusion(folder)


def _hook_calls(jax: Any, found: Calls) -> None:
    if hasattr(jax._src.api, "_post_hook_state"):
        found.install_hook(_patches)
    else:
        found.install_proxy(_patches)
        _patches.report["calls"] = "hooked by a proxy around jax.jit: this JAX has no hook after a call"


def _sample(sampler: Any) -> None:
    runtime.samplers.append(sampler)
    _patches.undo_with(functools.partial(runtime.samplers.remove, sampler))


def _listen(listeners: Any) -> None:
    listeners.install(_patches)
    _sample(listeners)


def _hook_orbax(orbax: Any) -> None:
    _patches.attempt("orbax", lambda: _checkpoints["now"].install(orbax, _patches))


def _hook_grain(grain: Any) -> None:
    from otel_ml.instrument.jax import data

    _patches.attempt("grain", lambda: data.install(grain, _patches))


def _hook(jax: Any) -> None:
    from otel_ml.instrument.jax import (
        calls,
        checkpoint,
        compile,  # noqa: A004 - what it is called
        leaves,
        memory,
        misses,
        numbering,
        waits,
    )

    runtime.framework("jax", str(jax.__version__))
    profiling.tracers["jax"] = (
        lambda folder: jax.profiler.start_trace(str(folder)),
        lambda _begun, _folder: jax.profiler.stop_trace(),
    )
    _patches.attempt("frames", lambda: _hide_frames(jax._src))
    value = waits.reader(jax)
    runtime.readers["jaxlib"] = functools.partial(leaves.recorded, value)
    found = calls.Calls(jax, value)
    checkpoints = _checkpoints["now"] = checkpoint.Checkpoints()
    for label, install in (
        ("calls", lambda: _hook_calls(jax, found)),
        ("misses", lambda: misses.install(found, _patches)),
        ("ahead of time", lambda: misses.install_ahead(found, _patches)),
        ("op by op", lambda: misses.install_derivatives(found, _patches)),
        ("step numbers", lambda: numbering.install(jax, _patches)),
        ("compilations", lambda: _listen(compile.Listeners(jax, *checkpoints.listeners()))),
        ("waits", lambda: waits.install(jax, _patches)),
    ):
        _patches.attempt(label, install)
    _sample(memory.Sampler(jax, found))


class JaxInstrumentor(FrameworkInstrumentor):
    """Records training steps, evaluations, inference, checkpoints and compilations of any JAX program."""

    awaited: ClassVar = {"jax": _hook, "orbax.checkpoint": _hook_orbax, "grain": _hook_grain}


_patches = JaxInstrumentor.patches
