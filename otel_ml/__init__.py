"""OpenTelemetry for machine learning: put `otel-ml run` in front of an unmodified program.

What a program may say itself; nothing is loaded before it is asked for, so `import otel_ml`
brings neither a framework nor the SDK. Four suffice: `traced`, `record`, `event`, `run`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from otel_ml.api import (
        checkpoint,
        data,
        epoch,
        evaluation,
        flush,
        phase,
        profile,
        request,
        run,
        step,
    )
    from otel_ml.decorators import span, timed, traced
    from otel_ml.distro import configure, shutdown, summary
    from otel_ml.events import event
    from otel_ml.values import record

    __version__: str

__all__ = [
    "__version__", "checkpoint", "configure", "data", "epoch", "evaluation", "event", "flush", "phase", "profile",
    "record", "request", "run", "shutdown", "span", "step", "summary", "timed", "traced",
]  # fmt: skip

_HOMES = {
    "otel_ml.decorators": ("span", "timed", "traced"),
    "otel_ml.distro": ("configure", "shutdown", "summary"),
    "otel_ml.events": ("event",),
    "otel_ml.values": ("record",),
}


if not TYPE_CHECKING:  # to a type checker, a name that is not there is an error

    def __getattr__(name: str) -> Any:
        """Load a public name at its first use."""
        if name == "__version__":
            from importlib.metadata import version

            return version("otel-ml")
        if name not in __all__:
            message = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(message)
        from importlib import import_module

        home = next((module for module, names in _HOMES.items() if name in names), "otel_ml.api")
        found = globals()[name] = getattr(import_module(home), name)
        return found


def __dir__() -> list[str]:
    """What there is, loaded or not."""
    return sorted({*globals(), *__all__})
