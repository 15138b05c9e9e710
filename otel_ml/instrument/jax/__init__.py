"""JAX: compiled functions' calls, compilations, waits and memory, hooked once the program has imported JAX."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor
from wrapt import register_post_import_hook

from otel_ml.core import profiling, runtime
from otel_ml.errors import guard
from otel_ml.instrument.patching import Patches

if TYPE_CHECKING:
    from otel_ml.instrument.jax.calls import Calls

__all__ = ["JaxInstrumentor", "report"]

_patches = Patches()
_state: dict[str, Any] = {"on": False, "registered": False}


def report() -> dict[str, str]:
    """Each hook by name: "hooked", or "missing: why"."""
    return dict(_patches.report)


class JaxInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Records training steps, evaluations, inference, checkpoints and compilations of any JAX program."""

    def instrumentation_dependencies(self) -> tuple[str, ...]:
        """Checked by our own hooks: one distribution holds several frameworks."""
        return ()

    def _instrument(self, **_: Any) -> None:
        if not runtime.enabled():
            return
        _state["on"] = True
        if not _state["registered"]:
            _state["registered"] = True
            register_post_import_hook(_jax_imported, "jax")
            register_post_import_hook(_orbax_imported, "orbax.checkpoint")
        elif "jax" in sys.modules:
            _jax_imported(sys.modules["jax"])
            if "orbax.checkpoint" in sys.modules:
                _orbax_imported(sys.modules["orbax.checkpoint"])

    def _uninstrument(self, **_: Any) -> None:
        _state["on"] = False
        _patches.undo()


def _jax_imported(jax: Any) -> None:
    if not _state["on"] or _patches.report:
        return
    with guard("hooking jax"):
        try:
            _hook(jax)
        except Exception as error:  # noqa: BLE001 - or it would come out of the program's `import jax`
            _patches.failed("jax", error)


def _orbax_imported(orbax: Any) -> None:
    checkpoints = _state.get("checkpoints")
    if _state["on"] and checkpoints is not None and "orbax" not in _patches.report:
        with guard("hooking orbax"):
            _patches.attempt("orbax", lambda: checkpoints.install(orbax, _patches))


def _hide_frames(src: Any) -> None:
    """Our frames are none of the user's, in the locations of what is compiled and in tracebacks; kept for good."""
    folder = str(Path(__file__).parent)
    for known in (src.source_info_util, src.traceback_util):
        if folder not in known._exclude_paths:
            known.register_exclusion(folder)


def _hook_calls(jax: Any, found: Calls) -> None:
    if hasattr(jax._src.api, "_post_hook_state"):
        found.install_hook(_patches)
    else:
        found.install_proxy(_patches)
        _patches.report["calls"] = "hooked by a proxy around jax.jit: this JAX has no hook after a call"


def _hook(jax: Any) -> None:
    from otel_ml.instrument.jax import calls, checkpoint, compile, memory, numbering, waits  # noqa: A004 - what it is called

    runtime.framework("jax", str(jax.__version__))
    profiling.tracers["jax"] = (
        lambda folder: jax.profiler.start_trace(str(folder)),
        lambda _begun, _folder: jax.profiler.stop_trace(),
    )
    _patches.attempt("frames", lambda: _hide_frames(jax._src))
    found = calls.Calls(jax, waits.reader(jax))
    checkpoints = checkpoint.Checkpoints(jax)
    _state["checkpoints"] = checkpoints
    listeners = compile.Listeners(jax, *checkpoints.listeners())
    for label, install in (
        ("calls", lambda: _hook_calls(jax, found)),
        ("misses", lambda: found.install(_patches)),
        ("ahead of time", lambda: found.install_ahead(_patches)),
        ("op by op", lambda: found.install_derivatives(_patches)),
        ("step numbers", lambda: numbering.install(jax, _patches)),
        ("compilations", lambda: listeners.install(_patches)),
        ("waits", lambda: waits.install(jax, _patches)),
    ):
        _patches.attempt(label, install)
    for sampler in (memory.Sampler(jax, found), listeners):
        runtime.samplers.append(sampler)
        _patches.undo_with(functools.partial(runtime.samplers.remove, sampler))
