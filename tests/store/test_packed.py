"""Columns as OTLP bytes: what the SDK's own encoder would have made of them."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry._logs import LogRecord
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.proto.logs.v1 import logs_pb2
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.resources import Resource

from otel_ml.core.pace import Pace
from otel_ml.store import rows
from otel_ml.store.packed import log_attribute

if TYPE_CHECKING:
    from collections.abc import Sequence

INT64 = 1 << 63
VALUES = st.one_of(
    st.floats(allow_nan=False), st.integers(-INT64, INT64 - 1), st.none(), st.text(st.characters(max_codepoint=126))
)


def by_the_sdk(attributes: Any) -> bytes:
    """A log record with these attributes and nothing else, serialised by the SDK's encoder."""
    record = ReadableLogRecord(LogRecord(observed_timestamp=1, attributes=attributes), Resource({}))
    return bytes(encode_logs([record]).resource_logs[0].scope_logs[0].log_records[0].SerializeToString())


@example([1.0, 1, 1.0, None])
@example([0.0, -0.0, 0])
@example([0, 127, 128, 16_383, 16_384, (1 << 21) - 1, 1 << 21, -1])
@given(st.one_of(st.lists(VALUES, min_size=1), st.lists(st.floats(allow_nan=False), min_size=1, max_size=300)))
def test_a_column_is_what_the_sdk_makes_of_it(values: list[Any]) -> None:
    """Appended to a record, a column parses to what the SDK encodes, value by value and type by type."""
    packed = log_attribute("ml.training.loss", values)
    assert packed is not None
    parsed = logs_pb2.LogRecord.FromString(by_the_sdk({"first": 1}) + packed)
    assert parsed == logs_pb2.LogRecord.FromString(by_the_sdk({"first": 1, "ml.training.loss": values}))


def test_what_is_not_finite_stays() -> None:
    """NaN, infinity and the negative zero are doubles like any other, also where something lacks."""
    packed = log_attribute("x", [math.nan, math.inf, 0.0, -0.0, None])
    assert packed is not None
    (only,) = logs_pb2.LogRecord.FromString(packed).attributes
    assert str([v.double_value for v in only.value.array_value.values]) == "[nan, inf, 0.0, -0.0, 0.0]"


@pytest.mark.parametrize("values", [[True] * 20, [b"a"], [1 << 63], ["é"], ["\ud800"], [[1.0]], [1.0, {}]], ids=str)
def test_everything_else_is_left_to_the_sdk(values: Sequence[Any]) -> None:
    """What is neither a number, nothing nor plain text is not packed here."""
    assert log_attribute("x", values) is None


@pytest.mark.parametrize("count", [1, 15, 16, 200])
def test_a_record_of_the_store_has_all_its_attributes(count: int) -> None:
    """With long columns or short ones, the bytes in a row parse to the whole record, whose own attributes stay."""
    columns: Any = {
        "one": 1,
        "loss": (0.5,) * count,
        "number": tuple(range(count)),
        "outcome": ("ok",) * count,
        "odd": (True,) * count,
    }
    record = ReadableLogRecord(
        LogRecord(timestamp=5, body="b", event_name="ml.steps", attributes=columns), Resource({"a": "b"})
    )
    before = dataclasses.replace(record)
    (origin,), lost = rows.ENCODERS["logs"]([record], Pace(on=False))
    ((*_, otlp),) = origin.rows

    whole = encode_logs([record]).resource_logs[0].scope_logs[0].log_records[0]
    parsed = logs_pb2.LogRecord.FromString(otlp)
    assert lost == 0
    assert record == before
    assert {a.key: a.value for a in parsed.attributes} == {a.key: a.value for a in whole.attributes}
    del parsed.attributes[:], whole.attributes[:]
    assert parsed == whole
