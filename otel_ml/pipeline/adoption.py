"""A program that sets OpenTelemetry providers of its own keeps them, also under a launcher.

OpenTelemetry lets each global provider be set once, and a launcher is always first: the
program's own `set_tracer_provider()` would only log a warning, and its telemetry would go
where ours goes. After ours are set, `make_way()` lets each be set once more, and tells
when that happens. Called by the distro once, in the program's main thread.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from opentelemetry.util._once import Once

from otel_ml.errors import guard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["make_way"]

# Where OpenTelemetry's API remembers that a provider was set.
_PLACES = {
    "traces": ("opentelemetry.trace", "_TRACER_PROVIDER_SET_ONCE"),
    "metrics": ("opentelemetry.metrics._internal", "_METER_PROVIDER_SET_ONCE"),
    "logs": ("opentelemetry._logs._internal", "_LOGGER_PROVIDER_SET_ONCE"),
}


class _OnceMore(Once):
    """Lets a provider be set once, and tells of it afterwards."""

    def __init__(self, then: Callable[[], None]) -> None:
        super().__init__()
        self._then = then

    def do_once(self, func: Callable[[], None]) -> bool:
        """Set the provider, unless the program already has."""
        done = super().do_once(func)
        if done:
            with guard("taking the program's own providers"):
                self._then()
        return done


def make_way(signals: Iterable[str], adopt: Callable[[str], None]) -> None:
    """Let the program set these signals' providers once, as without us; `adopt(signal)` runs right after it has."""
    for signal in signals:
        module, name = _PLACES[signal]
        home = import_module(module)
        if hasattr(home, name):
            setattr(home, name, _OnceMore(lambda signal=signal: adopt(signal)))  # type: ignore[misc]
