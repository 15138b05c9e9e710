"""OpenTelemetry for machine learning: put `otel-ml run` in front of an unmodified program.

What a program may import by itself; nothing is loaded before it is asked for, so
`import otel_ml` brings neither a framework nor the SDK.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from otel_ml.distro import configure

    __version__: str

__all__ = ["__version__", "configure"]


def __getattr__(name: str) -> Any:
    """Load a public name at its first use."""
    if name == "configure":
        from otel_ml.distro import configure

        return configure
    if name == "__version__":
        from importlib.metadata import version

        return version("otel-ml")
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
