"""Spans that differ in their ids, times and numbers alone, as steps and their phases do: the rest is encoded once.

The SDK's encoder takes some 30 us a span, and three times that between the steps of a program that trains. Serialised
protobuf messages may be appended to one another: so what such spans share is kept as bytes, and their own is put beside
it. `tests/store/test_alike.py` shows that it parses to the same.

The layout is `opentelemetry/proto/trace/v1`: a `Span` holds its `trace_id` (1), `span_id` (2) and `parent_span_id` (4)
as bytes, `start_time_unix_nano` (7) and `end_time_unix_nano` (8) as fixed64.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from otel_ml.store.packed import span_attributes

if TYPE_CHECKING:
    from collections.abc import Hashable

    from opentelemetry.sdk.trace import ReadableSpan

__all__ = ["Alike"]

_MOST = 64  # kinds of spans that are kept
_OWN = ("trace_id", "span_id", "parent_span_id", "start_time_unix_nano", "end_time_unix_nano")
_TEXT = {str}


class Likeness(NamedTuple):
    """What a span is known by, and its attributes as bytes where they are not shared."""

    key: Hashable
    attributes: bytes | None


class Alike:
    """What spans share, by what tells them apart: their bytes, and their row's columns from `status` on."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[bytes, tuple[Any, ...]]] = {}

    def of(self, span: ReadableSpan) -> Likeness | None:
        """What a span is known by, None where it has something of its own."""
        context, parent, links = span.context, span.parent, span.links
        if context.trace_state or span.events or span.dropped_attributes or span.dropped_events or span.dropped_links:
            return None
        linked = []
        for link in links:
            if link.attributes or link.context.trace_state:
                return None
            linked.append((link.context.trace_id, link.context.span_id, link.context.is_remote))
        status, attributes = span.status, span.attributes or {}
        remote = parent is not None and parent.is_remote
        key = (span.name, span.kind, status.status_code, status.description, remote, *linked)
        if _TEXT.issuperset(map(type, attributes.values())):
            return Likeness((key, *attributes.items()), None)
        own = span_attributes(attributes)
        return None if own is None else Likeness((key, None), own)

    def known(self, likeness: Likeness) -> tuple[bytes, tuple[Any, ...]] | None:
        """What it shares with others, once that was kept."""
        return self._known.get(likeness.key)

    def keep(self, likeness: Likeness, message: Any, columns: tuple[Any, ...]) -> None:
        """Keep what a span's message and row share with others; the message is not the caller's any more."""
        for field in _OWN if likeness.attributes is None else (*_OWN, "attributes"):
            message.ClearField(field)
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[likeness.key] = (message.SerializeToString(), columns)


def otlp(span: ReadableSpan, shared: bytes, attributes: bytes | None) -> bytes:
    """A span's message: its ids, what it shares, its times and its attributes.

    Raises:
        struct.error: a time is no unsigned 64-bit number.
    """
    context, parent = span.context, span.parent
    ids = b"\x0a\x10%b\x12\x08%b" % (context.trace_id.to_bytes(16, "big"), context.span_id.to_bytes(8, "big"))
    above = b"" if parent is None else b"\x22\x08%b" % parent.span_id.to_bytes(8, "big")
    times = struct.pack("<BQBQ", 0x39, span.start_time, 0x41, span.end_time)
    return b"".join((ids, above, shared, times, attributes or b""))
