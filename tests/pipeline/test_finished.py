"""Spans that are over when they are made: what the SDK's tracer would have exported, wherever anybody looks."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, Tracer, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased

from otel_ml import names
from otel_ml.core.identity import resolve
from otel_ml.core.recorder import Recorder
from otel_ml.pipeline.findings import Step
from otel_ml.pipeline.finished import Finished
from otel_ml.pipeline.spans import Marker, Spans
from tests.loops import Still

PLAIN = {names.OUTCOME: "ok", names.STEP_DURATION_S: 0.25, names.STEP_NUMBER: 7, "flag": True, "nan": float("nan")}


class Looking(SpanProcessor):
    """Puts something on each span that starts."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """Be seen to have looked."""
        span.set_attribute("seen", True)


def steps() -> list[tuple[Step, dict[str, Any]]]:
    """Steps of several kinds, with their attributes."""
    phases = [("data_wait", 1000, 1200), ("compile", 1200, 1500), ("forward", 1500, 1900), ("checkpoint", 1900, 2000)]

    def step(number: int, intervals: list[Any], outcome: str) -> Step:
        return Step(number=number, start=1000, end=2000, intervals=intervals, outcome=outcome)

    return [
        (step(0, phases, "ok"), PLAIN),
        (step(1, [], "ok"), {}),
        (step(2, phases[:1], "failed"), {**PLAIN, names.OUTCOME: "failed", "text": "é" * 50}),
        (step(3, phases, "ok"), {f"ml.step.scalar.{n}": n / 3 for n in range(200)}),
        (step(4, phases, "skipped"), {**PLAIN, "list": (1, 2)}),
    ]


def linked(span: ReadableSpan) -> list[tuple[Any, ...]]:
    """A span's links."""
    return [(link.context, dict(link.attributes or {}), link.dropped_attributes) for link in span.links]


def exported(
    *, plain: bool, sampler: Sampler = ALWAYS_ON, limits: SpanLimits | None = None, also: SpanProcessor | None = None
) -> list[tuple[Any, ...]]:
    """What a processor is given of these steps, but for the ids of phases; `plain` by the SDK's tracer alone."""
    provider = TracerProvider(sampler=sampler, resource=Resource({"service.name": "x"}), span_limits=limits)
    exporter = InMemorySpanExporter()
    spans = Spans(resolve({"OTEL_ML_RUN_ID": "run"}, ["train.py"]), Still(), steps_per_second=1.0, started=0)
    spans.use(provider.get_tracer("otel_ml", "1", schema_url="https://example.org"))
    for processor in (Marker(spans), also, SimpleSpanProcessor(exporter)):
        if processor is not None:
            provider.add_span_processor(processor)
    if plain:
        spans._finished = None
    recorder = Recorder(10)
    for step, attributes in steps():
        spans.step(step, recorder, attributes)
    found = exporter.get_finished_spans()
    numbers = {span.context.span_id: n for n, span in enumerate(found) if span.parent is not None}
    return [
        (
            span.name, span.kind, span.context.trace_id, numbers.get(span.context.span_id, span.context.span_id),
            span.context.trace_flags, span.context.trace_state, span.context.is_remote, span.parent,
            repr(dict(span.attributes or {})), linked(span), span.events, span.status.status_code,
            span.status.description, span.start_time, span.end_time, span.resource, span.instrumentation_scope,
            span.dropped_attributes, span.dropped_events, span.dropped_links,
        )
        for span in found
    ]  # fmt: skip


@pytest.mark.parametrize(
    "about",
    [
        {},
        {"sampler": ParentBased(TraceIdRatioBased(0.5))},
        {"limits": SpanLimits(max_span_attributes=2)},
        {"limits": SpanLimits(max_span_attributes=SpanLimits.UNSET)},
        {"limits": SpanLimits(max_span_attribute_length=3)},
        {"limits": SpanLimits(max_links=0)},
        {"also": Looking()},
    ],
    ids=["plain", "half", "few attributes", "any number", "short", "no links", "looking"],
)
def test_both_ways_export_the_same(about: dict[str, Any]) -> None:
    """Whatever the sampler, the limits and the processors, a step's spans are those that the SDK's tracer makes."""
    told = exported(plain=False, **about)
    assert told == exported(plain=True, **about)
    assert told


def test_who_looks_is_asked() -> None:
    """Spans go past the tracer until a processor that looks at their begin is added, and where nothing is unusual."""
    provider = TracerProvider()
    finished = Finished(provider.get_tracer("otel_ml"), (Marker,))
    answers = [
        finished.takes(PLAIN),
        finished.takes({"list": (1, 2)}),
        finished.takes(dict.fromkeys(map(str, range(200)), 1)),
    ]
    provider.add_span_processor(SimpleSpanProcessor(InMemorySpanExporter()))
    answers.append(finished.takes(PLAIN))
    provider.add_span_processor(Looking())
    answers.append(finished.takes(PLAIN))
    assert answers == [True, False, False, True, False]


def test_no_tracer_of_the_sdk() -> None:
    """A tracer that is not the SDK's own, or one that was turned off, makes its spans itself."""

    class Other:
        """A tracer of somebody else's."""

    off = TracerProvider().get_tracer("otel_ml")
    off._is_enabled = lambda: False  # type: ignore[attr-defined]
    assert [Finished(tracer, ()).takes(PLAIN) for tracer in (Other(), off)] == [False, False]


def test_a_plain_step_goes_past_the_tracer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's tracer is asked for a step's spans only where somebody looks, or a limit cuts them."""
    made: list[str] = []
    start = Tracer.start_span

    def counted(self: Tracer, name: str, *args: Any, **kwargs: Any) -> Any:
        made.append(name)
        return start(self, name, *args, **kwargs)

    monkeypatch.setattr(Tracer, "start_span", counted)
    exported(plain=False)
    assert made.count(names.SPAN_STEP) == 2  # too many attributes, and a list
    made.clear()
    exported(plain=False, also=Looking())
    assert made.count(names.SPAN_STEP) == len(steps())
