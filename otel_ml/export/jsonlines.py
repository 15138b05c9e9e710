"""OTLP in JSON lines, as the Collector's file exporter writes them: one request of one signal a line.

The mapping is protobuf's own but for two things that OTLP says: trace and span ids are hex,
and enums are numbers. OpenTelemetry's JSON packages encode the SDK's objects, and parse
into classes of their own; what stands in the store are protobuf messages, so protobuf's
mapping it is.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError  # type: ignore[import-untyped]

from otel_ml.errors import CommandError
from otel_ml.export.requests import message_of, request_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

    from otel_ml.store.outbox import Batch

__all__ = ["MOST_LINE", "documents", "line_of", "requests_in"]

MOST_LINE = 32 << 20  # bytes

_IDS = frozenset({"traceId", "spanId", "parentSpanId"})
_KEYS = {"resourceSpans": "spans", "resourceLogs": "logs", "resourceMetrics": "points"}
_SHOWN = 60
_DECODER = json.JSONDecoder()


def line_of(batch: Batch) -> bytes:
    """These rows as one line."""
    document = MessageToDict(request_of(batch), use_integers_for_enums=True)
    return json.dumps(_with_ids(document, _hex), separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def requests_in(file: BinaryIO, name: str, *, most_bytes: int, say: Callable[[str], None]) -> Iterator[tuple[str, Any]]:
    """The signal and the request of each line, the first one first; a last line without its end is told and left out.

    Raises:
        CommandError: a line is not OTLP JSON, or there is too much; says which and what to do.
    """
    number = taken = 0
    while line := file.readline(MOST_LINE + 1):
        number += 1
        taken += len(line)
        where = f"{name}, line {number:,}"
        if len(line) > MOST_LINE:
            message = f"{where}: longer than {MOST_LINE >> 20} MiB; is this a file of OTLP JSON lines?"
            raise CommandError(message)
        if taken > most_bytes:
            message = f"{name} holds more than {most_bytes / 1e6:,.0f} MB; type --max-mb to take more"
            raise CommandError(message)
        try:
            for document in documents(line.decode()):
                found = _parsed(document)
                if found is not None:
                    yield found
        except (ValueError, RecursionError, ParseError) as error:
            if not line.endswith(b"\n"):
                say(f"{where} has no end: who wrote it was stopped. It is left out")
                return
            said = " ".join(str(error).split())[:200]
            shown = line[:_SHOWN].decode("utf-8", "backslashreplace").rstrip()
            message = (
                f"{where} is not OTLP JSON ({said}): {shown!r}. A line is one object with resourceSpans, "
                "resourceMetrics or resourceLogs, as `otel-ml export` and the Collector's file exporter write it"
            )
            raise CommandError(message) from None


def documents(line: str) -> Iterator[Any]:
    """What the line holds: one, or more where a Collector was killed between a request and its line's end.

    Raises:
        ValueError: something else is on it.
    """
    while line := line.lstrip():
        document, end = _DECODER.raw_decode(line)
        yield document
        line = line[end:]


def _parsed(document: Any) -> tuple[str, Any] | None:
    if not isinstance(document, dict):
        message = f"a {type(document).__name__}"
        raise ValueError(message)  # noqa: TRY004 - the file's fault, not the caller's
    keys = [key for key in _KEYS if key in document]
    if not keys and not document:
        return None  # an empty request
    if len(keys) != 1:
        message = f"its keys are {', '.join(sorted(document))[:_SHOWN]}"
        raise ValueError(message)
    signal = _KEYS[keys[0]]
    return signal, ParseDict(_with_ids(document, _base64), message_of(signal)(), ignore_unknown_fields=True)


def _with_ids(value: Any, change: Callable[[str], str]) -> Any:
    """A document with its trace and span ids written the other way."""
    if isinstance(value, dict):
        return {
            key: change(each) if key in _IDS and isinstance(each, str) else _with_ids(each, change)
            for key, each in value.items()
        }
    return [_with_ids(each, change) for each in value] if isinstance(value, list) else value


def _hex(text: str) -> str:
    return base64.b64decode(text).hex()


def _base64(text: str) -> str:
    return base64.b64encode(bytes.fromhex(text)).decode()
