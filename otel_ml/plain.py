"""What a program hands to the API, as OpenTelemetry can carry it: never by repr, never read off a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from otel_ml.redact import is_secret, text
from otel_ml.redact import value as masked

__all__ = ["attributes", "plain"]

_MOST = 128  # items of a sequence
_LONGEST = 4096  # characters of a text
_INT64 = 1 << 63


def attributes(given: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Attributes as they may leave: nested mappings flattened with dots, secrets masked by name and by shape."""
    out: dict[str, Any] = {}
    _add(out, prefix, given, depth=0)
    return out


def _add(out: dict[str, Any], prefix: str, given: Mapping[Any, Any], depth: int) -> None:
    for name, value in given.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and depth < 4:
            _add(out, f"{key}.", value, depth + 1)
        elif value is not None:
            out[key] = plain(value, str(name))


def plain(value: Any, name: str = "") -> Any:
    """A value as OpenTelemetry can carry it.

    Numbers, text and their sequences as they are; an array or tensor as its dtype, shape and device; anything else as
    its class. Text under a name that sounds secret is masked.
    """
    kind = type(value)
    if kind is bool or kind is float:
        return value
    if kind is int:
        return value if -_INT64 <= value < _INT64 else str(value)
    if isinstance(value, str):
        return masked(name, value[:_LONGEST]) if name else text(value[:_LONGEST])
    if isinstance(value, (list, tuple, set, frozenset)):
        return _sequence(list(value)[:_MOST], name)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _array(value)
    if isinstance(value, (bool, int, float)):
        return plain(float(value) if isinstance(value, float) else int(value), name)
    if isinstance(value, type):
        return value.__qualname__
    if hasattr(value, "__fspath__"):
        return text(str(value))
    return f"<{kind.__qualname__}>" if not is_secret(name) else masked(name, "-")


def _sequence(values: list[Any], name: str) -> Any:
    """Of one kind, as OpenTelemetry wants them; mixed ones as text."""
    items = [plain(value, name) for value in values]
    items = [", ".join(map(str, item)) if isinstance(item, list) else item for item in items]
    kinds = {type(item) for item in items}
    if kinds <= {int, float} and len(kinds) > 1:
        return [float(item) for item in items]
    return items if len(kinds) <= 1 else [str(item) for item in items]


def _array(value: Any) -> Any:
    if not getattr(value, "shape", None) and type(value).__module__ == "numpy":
        return plain(value.item())
    dtype = str(value.dtype).removeprefix("torch.")
    shape = ", ".join(map(str, value.shape))
    device = getattr(value, "device", None)
    return f"{dtype}[{shape}]" if device is None or callable(device) else f"{dtype}[{shape}] {device}"
