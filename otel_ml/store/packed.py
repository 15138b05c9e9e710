"""Attributes that are columns of numbers, as OTLP bytes and as JSON, cheaper than value by value.

A run's curve is hundreds of thousands of numbers, and the SDK's encoder makes an object of
each while it holds the interpreter lock. Serialised protobuf messages may be appended to
one another; so a record is encoded without its long sequences, and these are appended.
Floats take a seventh of the time so, repeated words a fifth; and where it was compiled, numbers
are encoded while the program has the interpreter.
`tests/store/test_packed.py` shows that all ways parse to the same.

The layout is `opentelemetry/proto/{logs,trace,common}/v1`: `LogRecord.attributes` (6) and `Span.attributes` (9) hold
`KeyValue`s of `key` (1) and `value` (2), an `AnyValue`: a `string_value` (1), `bool_value` (2), `int_value` (3),
`double_value` (4), or an `array_value` (5) that holds `values` (1), each such an `AnyValue`.
"""

from __future__ import annotations

import json
import struct
from functools import lru_cache
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

from otel_ml.core.native import load

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Column = Sequence[float | str | None]

__all__ = ["LONG", "Encoded", "encoded", "log_attribute", "span_attributes"]

Encoded = tuple[bytes, str]
LONG = 16  # values from which a sequence is worth it
_INT64 = 1 << 63
_SCALARS = {str, int, float}
_BOOLS = {True: b"\x0a\x02\x10\x01", False: b"\x0a\x02\x10\x00"}


def log_attribute(key: str, array: bytes) -> bytes:
    """The bytes to append to a serialised `LogRecord`, for an attribute with these entries."""
    return _field(6, _key(key) + _field(2, _field(5, array)))


def span_attributes(attributes: Mapping[str, Any]) -> bytes | None:
    """The bytes to append to a serialised `Span` without attributes; None where that is the SDK's business."""
    parts = []
    for key, value in attributes.items():
        said = _BOOLS.get(value) if type(value) is bool else _value(value) if type(value) in _SCALARS else None
        if said is None or not key.isascii():
            return None
        parts.append(_field(9, _key(key) + b"\x12" + said[1:]))
    return b"".join(parts)


def encoded(columns: list[Column]) -> list[Encoded | None]:
    """Of each the entries of an OTLP array, and the same as JSON; None where the SDK's encoder has to see to them."""
    return [known or _any(column) for known, column in zip(_numbers(columns), columns, strict=True)]


def _any(values: Column) -> Encoded | None:
    kinds = set(map(type, values))
    if kinds == {float}:
        each = chain.from_iterable(zip(repeat(b"\x0a\x09\x21"), values))
        array = struct.pack("<" + "3sd" * len(values), *each)
    elif kinds <= {float, int, str, type(None)}:
        # Few are different; floats are not looked up, for as keys -0.0 is 0.0 and 1.0 is 1.
        known = {value: _value(value) for value in {v for v in values if type(v) is not float}}
        if None in known.values():
            return None
        parts: list[Any] = [_value(value) if type(value) is float else known[value] for value in values]
        array = b"".join(parts)
    else:
        return None
    return array, json.dumps(values, separators=(",", ":"))


def _value(value: float | str | None) -> bytes | None:
    if value is None:
        return _field(1, b"")
    if isinstance(value, str):
        return _field(1, _field(1, value.encode())) if value.isascii() else None
    if isinstance(value, float):
        return _field(1, b"\x21" + struct.pack("<d", value))
    return _integer(value)


def _integer(value: int) -> bytes | None:
    """As an entry of an array; those that step numbers and batch sizes come to are written out, for their speed."""
    if 0 <= value < 1 << 7:
        return bytes((0x0A, 2, 0x18, value))
    if 0 <= value < 1 << 14:
        return bytes((0x0A, 3, 0x18, value & 0x7F | 0x80, value >> 7))
    if 0 <= value < 1 << 21:
        return bytes((0x0A, 4, 0x18, value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14))
    return _field(1, b"\x18" + _varint(value % (2 * _INT64))) if -_INT64 <= value < _INT64 else None


@lru_cache(maxsize=1024)
def _key(key: str) -> bytes:
    """As the first field of a `KeyValue`."""
    return _field(1, key.encode())


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    size = len(content)
    if size < 1 << 7:
        return bytes((number << 3 | 2, size)) + content
    if size < 1 << 14:
        return bytes((number << 3 | 2, size & 0x7F | 0x80, size >> 7)) + content
    return bytes((number << 3 | 2,)) + _varint(size) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _none(columns: list[Column]) -> list[Encoded | None]:
    return [None] * len(columns)


_native: Any = load("otel_ml.store._packed")
_numbers: Callable[[list[Column]], list[Encoded | None]] = _none if _native is None else _native.encoded
