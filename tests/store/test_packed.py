"""Columns as OTLP bytes: what the SDK's own encoder would have made of them."""

from __future__ import annotations

import dataclasses
import json
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
from otel_ml.store import packed as way
from otel_ml.store import rows
from otel_ml.store.packed import encoded, log_attribute

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


def as_a_record(values: Any) -> bytes:
    """The bytes that a record gets for this column."""
    (column,) = encoded([values])
    assert column is not None
    return log_attribute("ml.training.loss", column[0])


@example([1.0, 1, 1.0, None])
@example([0.0, -0.0, 0])
@example([0, 127, 128, 16_383, 16_384, (1 << 21) - 1, 1 << 21, -1])
@given(st.one_of(st.lists(VALUES, min_size=1), st.lists(st.floats(allow_nan=False), min_size=1, max_size=300)))
def test_a_column_is_what_the_sdk_makes_of_it(values: list[Any]) -> None:
    """Appended to a record, a column parses to what the SDK encodes, value by value and type by type."""
    parsed = logs_pb2.LogRecord.FromString(by_the_sdk({"first": 1}) + as_a_record(values))
    assert parsed == logs_pb2.LogRecord.FromString(by_the_sdk({"first": 1, "ml.training.loss": values}))


NANOSECONDS = st.integers(-(10**17), 10**17).map(lambda n: n / 1e9)


@given(st.lists(st.one_of(st.floats(), st.floats(width=32), NANOSECONDS, st.integers(-INT64, INT64 - 1), st.none())))
@example([9e6 - 1e-9, 9e6, -1e-9, 1e-9, 5e-10, 0.0, -0.0, 0.1 + 0.2, 123456.789, 1e-5])
@example([0.1, 1e7, 100000.0, 1e22, 5e-324, 2.2250738585072014e-308, 0.1 + 0.2, 1.5e300, 9007199254740993])
def test_json_has_every_bit(values: list[Any]) -> None:
    """As JSON a column is read back as the same numbers, of the same types, in C and in Python."""
    for column in (*encoded([values]), way._any(values)):
        assert column is not None
        assert str(json.loads(column[1])) == str(values)


def test_what_is_not_finite_stays() -> None:
    """NaN, infinity and the negative zero are doubles like any other, also where something lacks."""
    (only,) = logs_pb2.LogRecord.FromString(as_a_record([math.nan, math.inf, 0.0, -0.0, None])).attributes
    assert str([v.double_value for v in only.value.array_value.values]) == "[nan, inf, 0.0, -0.0, 0.0]"


@pytest.mark.parametrize("values", [[True] * 20, [b"a"], [1 << 63], ["é"], ["\ud800"], [[1.0]], [1.0, {}]], ids=str)
def test_everything_else_is_left_to_the_sdk(values: Sequence[Any]) -> None:
    """What is neither a number, nothing nor plain text is not packed here."""
    assert encoded([values, [1], values])[::2] == [None, None]


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
    ((*_, stored, otlp),) = origin.rows

    whole = encode_logs([record]).resource_logs[0].scope_logs[0].log_records[0]
    parsed = logs_pb2.LogRecord.FromString(otlp)
    assert lost == 0
    assert json.loads(stored) == {k: list(v) if isinstance(v, tuple) else v for k, v in columns.items()}
    assert list(json.loads(stored)) == list(columns)
    assert record == before
    assert {a.key: a.value for a in parsed.attributes} == {a.key: a.value for a in whole.attributes}
    del parsed.attributes[:], whole.attributes[:]
    assert parsed == whole
