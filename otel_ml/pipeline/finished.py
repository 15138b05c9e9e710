"""Spans whose end is known when they are made, without what the SDK needs for one that is still open.

A trace of a step is told of when the step is over: five spans and more, of which the SDK's tracer makes each in some
hundred calls, for who may change it until it ends. Nobody can change these. So where no processor looks at a span that
starts, and no limit cuts it, the processors are given what they would be given at its end.
`tests/pipeline/test_finished.py` shows that both ways export the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, SynchronousMultiSpanProcessor, Tracer
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.trace import Status, StatusCode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.trace import Link, SpanContext

__all__ = ["Finished"]

_LOOKS = ("on_start", "_on_ending")
_LOOK_AT_NOTHING = {
    getattr(kind, look, None) for kind in (SpanProcessor, BatchSpanProcessor, SimpleSpanProcessor) for look in _LOOKS
}
_PLAIN = {str, bool, int, float}
_UNSET = Status(StatusCode.UNSET)


class Finished:
    """Gives finished spans to a tracer's processors; `blind` are kinds of processors that look at none of them."""

    def __init__(self, tracer: Any, blind: tuple[type, ...]) -> None:
        self._tracer = tracer
        self._blind = blind
        self._processors: Any = None
        self._unseen = False
        limits = getattr(tracer, "_span_limits", None)
        self._most = getattr(limits, "max_span_attributes", None) or 0
        self._plain = (
            type(tracer) is Tracer
            and type(tracer.span_processor) is SynchronousMultiSpanProcessor
            and type(getattr(tracer, "_tracer_metrics", None)).__name__ == "NoOpTracerMetrics"
            and getattr(limits, "max_span_attribute_length", 0) is None
            and getattr(limits, "max_links", None) != 0
        )

    def takes(self, attributes: Mapping[str, Any]) -> bool:
        """Whether a trace whose root has these attributes would be what the tracer makes of it."""
        if not self._plain or not self._tracer._is_enabled() or len(attributes) > self._most:  # noqa: SLF001 - as it asks
            return False
        processors = self._tracer.span_processor._span_processors  # noqa: SLF001 - replaced when one is added
        if processors is not self._processors:
            self._processors = processors
            self._unseen = all(isinstance(p, self._blind) or not _looks(p) for p in processors)
        return self._unseen and _PLAIN.issuperset(map(type, attributes.values()))

    def span(
        self, name: str, context: SpanContext, parent: SpanContext | None, times: tuple[int, int],
        attributes: Mapping[str, Any], *, links: Sequence[Link] = (), status: Status = _UNSET,
    ) -> None:  # fmt: skip
        """Tell the processors of a span that is over."""
        tracer = self._tracer
        tracer.span_processor.on_end(
            ReadableSpan(
                name, context, parent, tracer.resource, attributes, links=links, status=status,
                instrumentation_info=tracer.instrumentation_info, start_time=times[0], end_time=times[1],
                instrumentation_scope=tracer._instrumentation_scope,  # noqa: SLF001 - as the tracer gives it
            )
        )  # fmt: skip


def _looks(processor: Any) -> bool:
    """Whether a processor sees a span before it has ended."""
    return any(
        look in getattr(processor, "__dict__", {}) or getattr(type(processor), look, None) not in _LOOK_AT_NOTHING
        for look in _LOOKS
    )
