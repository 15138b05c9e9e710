"""Spans that are alike: what the SDK's own encoder would have made of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from otel_ml.core.pace import Pace
from otel_ml.store import rows
from otel_ml.store.alike import Alike, Likeness

if TYPE_CHECKING:
    from otel_ml.store.rows import Row

RESOURCE, SCOPE = Resource({"service.name": "x"}), InstrumentationScope("otel_ml", "1")
IDS = st.integers(1, (1 << 64) - 1)
TEXT = st.sampled_from(["forward", "backward", "é", ""])
ATTRIBUTES = st.one_of(
    st.dictionaries(st.sampled_from(["ml.phase", "a"]), TEXT),
    st.dictionaries(st.sampled_from(["ml.phase", "a"]), st.sampled_from([1, 1.0, True, "1", ("a",)])),
    st.dictionaries(
        st.sampled_from(["ml.step.number", "a", "é", "a" * 200]),
        st.one_of(
            st.booleans(), st.integers(-(1 << 63), (1 << 63) - 1), st.floats(), st.text("aé", max_size=300),
        ),
    ),
)  # fmt: skip


LINKS = [
    (),
    (Link(SpanContext(1, 2, is_remote=False)),),
    (Link(SpanContext(1, 3, is_remote=False)),),
    (Link(SpanContext(1, 2, is_remote=True)), Link(SpanContext(1, 3, is_remote=False))),
    (Link(SpanContext(1, 2, is_remote=False), {"a": 1}),),
    (Link(SpanContext(1, 2, is_remote=False, trace_state=TraceState([("a", "b")]))),),
]


@st.composite
def spans(draw: Any) -> ReadableSpan:
    """A span of a few names and attributes, so that some are alike, and some have what no other has."""
    context = SpanContext(
        draw(IDS) << draw(st.sampled_from([0, 64])),
        draw(IDS),
        is_remote=False,
        trace_flags=TraceFlags(draw(st.integers(0, 3))),
        trace_state=draw(st.sampled_from([None, TraceState([("a", "b")])])),
    )
    parent = draw(st.sampled_from([None, False, True]))
    return ReadableSpan(
        draw(TEXT),
        context,
        None if parent is None else SpanContext(context.trace_id, draw(IDS), is_remote=parent),
        RESOURCE,
        draw(ATTRIBUTES),
        draw(st.sampled_from([(), (Event("e", timestamp=5),)])),
        draw(st.sampled_from(LINKS)),
        draw(st.sampled_from([SpanKind.INTERNAL, SpanKind.SERVER])),
        status=draw(st.sampled_from([Status(), Status(StatusCode.OK), Status(StatusCode.ERROR, "it broke")])),
        start_time=draw(st.integers(0, (1 << 63) - 1)),
        end_time=draw(st.integers(0, (1 << 63) - 1)),
        instrumentation_scope=SCOPE,
    )


def encoded(some: list[ReadableSpan]) -> list[Row]:
    """The rows that the store makes of them."""
    origins, lost = rows.ENCODERS["spans"](some, Pace(on=False))
    assert not lost
    return [row for origin in origins for row in origin.rows]


@given(st.lists(spans(), min_size=1, max_size=12))
def test_a_span_is_what_the_sdk_makes_of_it(some: list[ReadableSpan]) -> None:
    """A span parses to what the SDK encodes, whatever spans were encoded before it."""
    sent = encode_spans(some).resource_spans[0].scope_spans[0].spans
    told = [span.SerializeToString() for span in sent]  # which compares a NaN, too
    for _ in range(2):
        assert [trace_pb2.Span.FromString(row[-1]).SerializeToString() for row in encoded(some)] == told


@given(st.lists(spans(), min_size=1, max_size=12))
def test_a_row_is_the_same_the_second_time(some: list[ReadableSpan]) -> None:
    """All columns of a span are the same whether others like it came before, or none did."""
    first = []
    for one in some:
        rows._alike = Alike()
        first += encoded([one])
    for _ in range(2):
        assert [row[:-1] for row in encoded(some)] == [row[:-1] for row in first]


@pytest.mark.parametrize("count", [1, 1000])
def test_what_is_kept_is_bounded(count: int) -> None:
    """However many kinds of spans a program makes, at most 64 are kept: those met last."""
    alike = Alike()
    some = [
        ReadableSpan(f"span {n}", SpanContext(1, 2, is_remote=False), start_time=1, end_time=2) for n in range(count)
    ]
    for span in some:
        alike.keep(likeness_of(alike, span), encode_spans([span]).resource_spans[0].scope_spans[0].spans[0], ())
        assert alike.known(likeness_of(alike, span)) is not None
    assert sum(alike.known(likeness_of(alike, span)) is not None for span in some) == (count - 1) % 64 + 1


def likeness_of(alike: Alike, span: ReadableSpan) -> Likeness:
    """Of a span that has nothing of its own."""
    likeness = alike.of(span)
    assert likeness is not None
    return likeness


def test_a_time_that_there_is_no_room_for_costs_one_span() -> None:
    """Of spans that are alike, one whose end is no such number as can be stored is left out, and counted."""
    some = [
        ReadableSpan("late", SpanContext(1, n, is_remote=False), resource=RESOURCE, start_time=1, end_time=end)
        for n, end in enumerate((2, 3, 1 << 63, 1 << 64, -1, 4), start=1)
    ]
    origins, lost = rows.ENCODERS["spans"](some, Pace(on=False))
    assert ([row[6] for origin in origins for row in origin.rows], lost) == ([2, 3, 4], 3)
