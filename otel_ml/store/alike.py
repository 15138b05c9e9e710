"""Spans that differ in nothing but their ids and times, as the phases of steps do: encoded once.

The SDK's encoder takes some 30 us a span, and three times that between the steps of a program that trains. Serialised
protobuf messages may be appended to one another: so what such spans share is kept as bytes, and ids and times are put
beside it. `tests/store/test_alike.py` shows that it parses to the same.

The layout is `opentelemetry/proto/trace/v1`: a `Span` holds its `trace_id` (1), `span_id` (2) and `parent_span_id` (4)
as bytes, `start_time_unix_nano` (7) and `end_time_unix_nano` (8) as fixed64.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable

    from opentelemetry.sdk.trace import ReadableSpan

__all__ = ["Alike"]

_MOST = 64  # kinds of spans that are kept
_OWN = ("trace_id", "span_id", "parent_span_id", "start_time_unix_nano", "end_time_unix_nano")
_TEXT = {str}


class Alike:
    """What spans share, by what tells them apart: their bytes, and their row's columns from `attributes` on."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[bytes, tuple[Any, ...]]] = {}

    def of(self, span: ReadableSpan) -> tuple[Hashable, tuple[bytes, tuple[Any, ...]] | None]:
        """What a span is known by, None where it has something of its own; and what it shares, once that was kept."""
        attributes = span.attributes or {}
        if span.links or span.events or not _TEXT.issuperset(map(type, attributes.values())):
            return None, None
        if span.dropped_attributes or span.dropped_events or span.dropped_links or span.context.trace_state:
            return None, None
        remote = span.parent is not None and span.parent.is_remote
        key = (span.name, span.kind, span.status.status_code, span.status.description, remote, *attributes.items())
        return key, self._known.get(key)

    def keep(self, key: Hashable, message: Any, columns: tuple[Any, ...]) -> None:
        """Keep what a span's message and row share with others; the message is not the caller's any more."""
        if len(self._known) < _MOST:
            for field in _OWN:
                message.ClearField(field)
            self._known[key] = (message.SerializeToString(), columns)


def otlp(span: ReadableSpan, shared: bytes) -> bytes:
    """A span's message: its ids, what it shares, its times.

    Raises:
        struct.error: a time is no unsigned 64-bit number.
    """
    context, parent = span.context, span.parent
    ids = b"\x0a\x10%b\x12\x08%b" % (context.trace_id.to_bytes(16, "big"), context.span_id.to_bytes(8, "big"))
    above = b"" if parent is None else b"\x22\x08%b" % parent.span_id.to_bytes(8, "big")
    times = struct.pack("<BQBQ", 0x39, span.start_time, 0x41, span.end_time)
    return b"".join((ids, above, shared, times))
