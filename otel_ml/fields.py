"""What a program hands us beside a name or a message, as plain data that any line or attribute can hold.

Called in the program's thread, so nothing is computed for it: an array is told by its
type, shape and device, since its values may still be on their way from there; any other
object by its class, since its `repr` is the program's code. Secrets are masked by name.
"""

from __future__ import annotations

import copy
import logging
import math
import sys
from datetime import date, time, timedelta
from functools import lru_cache
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, cast

from otel_ml import redact

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["IDS", "attribute", "attributes", "beside", "extras", "is_wrapped", "plain", "unwrapped"]

IDS = frozenset({"otelTraceID", "otelSpanID", "otelServiceName", "otelTraceSampled"})
"""What OpenTelemetry puts onto records: said elsewhere already."""

_LOGGINGS = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}
_WRAPPING = frozenset({"_logger", "_name"})  # what structlog's `wrap_for_formatter` puts onto a record
_SAID = frozenset({"level", "logger", "timestamp"})  # in a wrapped event what the record says itself
_DEEPEST = 8
_LONGEST_TEXT = 4096  # characters of an attribute
_MOST_ITEMS = 128  # of an attribute
_INT64 = 1 << 63
_LONGEST_INT = 1024  # bits; Python refuses to write very long ones
_AS_TEXT = (date, time, timedelta, PurePath)

_is_secret = lru_cache(maxsize=1024)(redact.is_secret)


def attributes(given: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Attributes as a span may carry them: mappings flattened with dots, what is None left out."""
    out: dict[str, Any] = {}
    for name, value in given.items():
        _flatten(out, f"{prefix}{name}", plain(str(name), value))
    return out


def attribute(name: str, value: Any) -> Any:
    """One value as a span may carry it: a number, text, or a sequence of one kind."""
    return _carried(plain(name, value))


def _flatten(out: dict[str, Any], key: str, value: Any) -> None:
    if isinstance(value, dict):
        for name, each in value.items():
            _flatten(out, f"{key}.{name}", each)
    elif value is not None:
        out[key] = _carried(value)


def _carried(value: Any) -> Any:
    if isinstance(value, str):
        return redact.text(value[:_LONGEST_TEXT])
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return (
            int(value) if -_INT64 <= value < _INT64 else float(value) if value.bit_length() < _LONGEST_INT else "<int>"
        )
    if isinstance(value, float):
        return float(value)
    if isinstance(value, list):
        items = [_carried(each) for each in value[:_MOST_ITEMS]]
        kinds = {type(each) for each in items}
        if kinds == {int, float}:
            return [float(each) for each in items]
        return items if len(kinds) <= 1 and kinds <= {bool, int, float, str} else [str(each) for each in items]
    return str(value) if isinstance(value, dict) else _class(value)


def beside(fields: dict[Any, Any], taken: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The fields by names that a record can hold: one that logging, or whoever has `taken` it, needs is `extra_…`."""
    return {f"extra_{key}" if key in _LOGGINGS or key in taken else _key(key): fields[key] for key in fields}


def extras(record: logging.LogRecord) -> dict[str, Any]:
    """What the program put onto a record: all that neither logging, nor OpenTelemetry, nor structlog did."""
    others = IDS | _WRAPPING if is_wrapped(record) else IDS
    return {_key(k): v for k, v in list(vars(record).items()) if k not in _LOGGINGS and k not in others}


def is_wrapped(record: logging.LogRecord) -> bool:
    """Whether the record's message is an event of structlog's as a dict, by its `wrap_for_formatter`."""
    return isinstance(record.msg, dict) and vars(record).keys() >= _WRAPPING


def unwrapped(record: logging.LogRecord) -> logging.LogRecord:
    """The record, or where it wraps an event of structlog's, that event as a message with extras."""
    if not is_wrapped(record):
        return record
    event = dict(cast("dict[str, Any]", record.msg))
    plainer = copy.copy(record)
    for key in _WRAPPING:
        delattr(plainer, key)
    plainer.msg = event.pop("event", "")
    plainer.exc_info = record.exc_info or _exc_info(event.pop("exc_info", None))
    vars(plainer).update({k: v for k, v in beside(event).items() if k not in _SAID})
    return plainer


def _exc_info(given: Any) -> Any:
    """What a logger's `exc_info=` may be, as a record has it."""
    if isinstance(given, BaseException):
        return type(given), given, given.__traceback__
    return given if isinstance(given, tuple) else sys.exc_info() if given else None


def plain(name: str, value: Any, *, json: bool = False) -> Any:
    """The value of this name as None, bool, number, text, list or dict; a secret as a mask.

    Args:
        name: What it is called: a name that sounds secret hides it, also inside of dicts.
        value: Anything; it is never asked for its `repr`, and a device never waited for.
        json: For a line of JSON: NaN and infinities as text, and secrets in texts masked.
    """
    return _plain(name, value, json, ())


def _plain(name: str, value: Any, json: bool, around: tuple[int, ...]) -> Any:  # noqa: FBT001 - as it came
    if value is None or isinstance(value, bool):
        return value
    if _is_secret(name):
        return redact.MASK
    if isinstance(value, str):
        return redact.text(value) if json else value
    if isinstance(value, int):
        return _class(value) if json and value.bit_length() > _LONGEST_INT else value
    if isinstance(value, float):
        return str(float(value)) if json and not math.isfinite(value) else value
    if isinstance(value, bytes):
        return _class(value) if json else value
    if isinstance(value, (dict, list, tuple, set, frozenset)):
        if id(value) in around or len(around) == _DEEPEST:
            return _class(value)
        inside = (*around, id(value))
        if isinstance(value, dict):
            return {key: _plain(key, each, json, inside) for key, each in _items(value)}
        return [_plain(name, each, json, inside) for each in list(value)]
    if isinstance(value, _AS_TEXT):
        return str(value)
    try:
        if _is_numpy_scalar(value):
            number = value.item()
            return _plain(name, float(value) if type(number) is type(value) else number, json, around)
        return _array(value) or _class(value)
    except Exception:  # noqa: BLE001 - the object's own code: a property that raises, a lazy proxy
        return _class(value)


def _items(content: dict[Any, Any]) -> list[tuple[str, Any]]:
    return [(_key(key), each) for key, each in list(content.items())]


def _key(key: Any) -> str:
    if isinstance(key, str):
        return key
    return str(key) if key is None or type(key) in (bool, int, float) else _class(key)


def _class(value: object) -> str:
    return f"<{type(value).__name__}>"


def _is_numpy_scalar(value: object) -> bool:
    return any(c.__name__ == "generic" and c.__module__ == "numpy" for c in type(value).__mro__)


def _array(value: Any) -> str | None:
    """`float32[64, 10] cpu`, of what has a shape and a type; else None."""
    shape, kind = value.shape, value.dtype
    if not isinstance(shape, tuple):
        return None
    return f"{str(kind).removeprefix('torch.')}{list(shape)} {_device(value)}".rstrip()


def _device(value: Any) -> str:
    device: Any = getattr(value, "device", None)
    if isinstance(getattr(device, "platform", None), str):  # JAX
        return f"{device.platform}:{device.id}"
    return str(device) if isinstance(device, str) or type(device).__name__ == "device" else ""
