"""Spans of chosen steps, and the live step that user spans and logs nest under."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags

from otel_ml import names
from otel_ml.core.context import recorders, roots
from otel_ml.core.identity import run_trace_id, step_span_id, step_trace_id
from otel_ml.core.pace import held_ns
from otel_ml.errors import swallow
from otel_ml.pipeline.budget import Budget, stride_for
from otel_ml.pipeline.columns import added
from otel_ml.pipeline.findings import Call
from otel_ml.pipeline.finished import Finished
from otel_ml.pipeline.ids import OneShotIds, RememberingSampler

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_ml.core.clock import Anchor
    from otel_ml.core.identity import Identity
    from otel_ml.core.recorder import Recorder
    from otel_ml.pipeline.findings import Calls, Epoch, Evaluation, Rare, Step
    from otel_ml.pipeline.steady import Block

__all__ = ["LiveStep", "Marker", "Spans"]

_RANDOM_FLAG = 2
_FIRST = 10  # steps kept whatever the rate
_CROWD = 8  # threads of which that holds; more would fill the SDK's queue, and the program's own spans be lost
_OUTLIER = 5.0  # times the recent mean from which a step is one
_SEGMENT_NS = 600 * 1_000_000_000
_RUN_STEP = -1  # the step number from which the run's own span ids are derived


class LiveStep(NonRecordingSpan):
    """Attached once; whoever asks for the current span gets the step this thread is in now."""

    def __init__(self, spans: Spans) -> None:
        self._spans = spans
        self._memo: tuple[int, int, SpanContext] | None = None

    @property
    def _context(self) -> SpanContext:  # type: ignore[override]  # the base class keeps a fixed one there
        return self.get_span_context()

    def get_span_context(self) -> SpanContext:
        """The step's context; invalid where there is no step."""
        recorder = recorders.live()
        if recorder is None or not recorder.state:
            return trace.INVALID_SPAN_CONTEXT
        try:
            return self._of(recorder)
        except Exception:  # noqa: BLE001 - asked from anywhere in the user's program
            swallow("the live step")
            return trace.INVALID_SPAN_CONTEXT

    def _of(self, recorder: Recorder) -> SpanContext:
        memo = self._memo
        number, ordinal = recorder.number, recorder.ordinal
        if memo is None or memo[0] != number or memo[1] != ordinal:
            memo = self._memo = (number, ordinal, self._spans.context(number, ordinal))
        return memo[2]

    def __eq__(self, other: object) -> bool:
        if other is trace.INVALID_SPAN:
            return not self.get_span_context().is_valid
        return self is other

    __hash__ = object.__hash__


class Marker(SpanProcessor):
    """Stamps the step's number on user spans opened directly in a step, and has that step kept."""

    def __init__(self, spans: Spans) -> None:
        self._spans = spans

    def on_start(self, span: Any, parent_context: Context | None = None) -> None:
        """Called in the user's thread for every span that starts."""
        current = trace.get_current_span(parent_context)
        if isinstance(current, LiveStep):
            recorder = recorders.live()
            if recorder is not None and recorder.state:
                number = recorder.number
                span.set_attribute(names.STEP_NUMBER, number)
                self._spans.must_keep.add((recorder.ordinal, number))


class Spans:
    """Makes spans after the fact, with explicit times, on the drain thread."""

    def __init__(self, identity: Identity, anchor: Anchor, *, steps_per_second: float, started: int) -> None:
        self.identity = identity
        self.anchor = anchor
        self.allowed = steps_per_second
        self.must_keep: set[tuple[int, int]] = set()
        self.live = LiveStep(self)
        self.stride = 1
        self.started = started
        self._segment_start = started
        self._segment = 0
        self._mean_ns = 0.0
        self._others = Budget(10.0, 200.0, started)
        self._outliers = Budget(1.0, 20.0, started)
        self._calls = Budget(steps_per_second, _FIRST, started)
        self._last_evaluation: dict[int, Evaluation] = {}
        self._emitted: dict[int, int] = {}
        self._tracer: Any = None
        self._ids: OneShotIds | None = None
        self._sampler: RememberingSampler | None = None
        self._finished: Finished | None = None

    def use(self, tracer: Any) -> None:
        """Send to this tracer; an SDK tracer gets our ids and remembers its sampling decisions."""
        self._tracer = tracer
        self._ids = self._sampler = self._finished = None
        if hasattr(tracer, "id_generator") and hasattr(tracer, "sampler"):
            if not isinstance(tracer.id_generator, OneShotIds):
                tracer.id_generator = OneShotIds(tracer.id_generator)
                tracer.sampler = RememberingSampler(tracer.sampler)
            self._ids, self._sampler = tracer.id_generator, tracer.sampler
            self._finished = Finished(tracer, blind=(Marker,))

    # --- contexts --------------------------------------------------------------------

    def context(self, number: int, ordinal: int) -> SpanContext:
        """The step's span context, the same before and after its span exists."""
        identity = self.identity
        trace_id = step_trace_id(identity.run_id, identity.attempt, number)
        flags = _RANDOM_FLAG
        state = None
        if self._sampler is not None:
            result = self._sampler.should_sample(Context(), trace_id, names.SPAN_STEP)
            state = result.trace_state
            if result.decision is Decision.RECORD_AND_SAMPLE:
                flags |= TraceFlags.SAMPLED
        return SpanContext(
            trace_id,
            step_span_id(identity.run_id, identity.attempt, number, identity.process, ordinal),
            is_remote=False,
            trace_flags=TraceFlags(flags),
            trace_state=state,
        )

    def _run_ids(self, segment: int) -> tuple[int, int]:
        identity = self.identity
        return (
            run_trace_id(identity.run_id, identity.attempt),
            step_span_id(identity.run_id, identity.attempt, _RUN_STEP - segment, identity.process, 0),
        )

    def _run_link(self) -> Link:
        trace_id, span_id = self._run_ids(self._segment)
        return Link(SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)))

    def _start(
        self, name: str, start: int, attributes: Mapping[Any, Any], *, links: list[Link], ids: Any = None
    ) -> Any:
        if self._ids is not None and ids is not None:
            self._ids.trace_id, self._ids.span_id = ids
        return self._tracer.start_span(
            name, Context(), links=links, start_time=self.anchor.unix(start), attributes=_said(attributes)
        )

    def _end(self, span: Any, end: int, error: str | None = None) -> None:
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(self.anchor.unix(end))

    # --- what the tracker found ------------------------------------------------------

    def keeps(self, step: Step, ordinal: int) -> bool:
        """Whether this step becomes a trace."""
        usual = self._mean_ns
        outlier = step.number >= _FIRST and _is_outlier(step.start, step.end, _OUTLIER * usual)
        self._mean_ns = step.duration if not usual else 0.9 * usual + 0.1 * min(step.duration, _OUTLIER * usual)
        self.stride = stride_for(1e9 / max(1.0, self._mean_ns), self.allowed) if self.allowed > 0 else 1 << 30
        marked = (ordinal, step.number) in self.must_keep
        self.must_keep.discard((ordinal, step.number))
        self._emitted[ordinal] = step.number
        unusual = step.outcome != "ok" or step.compiled or step.checkpointed
        if outlier and not (marked or unusual):
            unusual = self._outliers.take(1, step.end)
        first = step.number < _FIRST and ordinal < _CROWD
        chosen = self.allowed > 0 and (first or step.number % self.stride == 0)
        return marked or chosen or (unusual and self._others.take(1, step.end))

    def keeps_of(self, block: Block, ordinal: int) -> list[int]:
        """Which of a block's steps become traces, by their place in it."""
        count = len(block)
        first, after = block.first, block.first + count
        outlying = _OUTLIER * (self._mean_ns or block.durations[0])
        self._mean_ns = (block.starts[-1] - block.starts[0]) / count
        self.stride = stride_for(1e9 / max(1.0, self._mean_ns), self.allowed) if self.allowed > 0 else 1 << 30
        chosen = {n for o, n in self.must_keep if o == ordinal and first <= n < after}
        self.must_keep -= {(ordinal, n) for n in chosen}
        self._emitted[ordinal] = after - 1
        if self.allowed > 0:
            early = range(first, min(_FIRST, after)) if ordinal < _CROWD else ()
            chosen.update(early, range(first + -first % self.stride, after, self.stride))
        if added(block.durations)[1] > outlying:
            for at in [at for at, spent in enumerate(block.durations) if spent > outlying]:
                number, start, end = first + at, *block.starts[at : at + 2]
                new = number >= _FIRST and number not in chosen and _is_outlier(start, end, outlying)
                if new and self._outliers.take(1, end):
                    chosen.add(number)
        return [n - first for n in sorted(chosen)]

    def step(self, step: Step, recorder: Recorder, attributes: dict[str, Any]) -> Context:
        """Emit a kept step: a root span and a child for each interval; returns its context for exemplars."""
        own = self.context(step.number, recorder.ordinal)
        error = step.outcome if step.outcome == "failed" else None
        unix = self.anchor.unix
        if own.trace_flags.sampled and self._tell_finished(step, own, _said(attributes), error):
            return trace.set_span_in_context(NonRecordingSpan(own), Context())
        root = self._start(
            names.SPAN_STEP, step.start, attributes, links=[self._run_link()], ids=(own.trace_id, own.span_id)
        )
        inside = trace.set_span_in_context(root, Context())
        for phase, start, end in step.intervals:
            child = self._tracer.start_span(
                _named(phase), inside, start_time=unix(start), attributes={names.PHASE: phase}
            )
            child.end(unix(end))
        self._end(root, step.end, error)
        return inside

    def _tell_finished(self, step: Step, own: SpanContext, said: dict[str, Any], error: str | None) -> bool:
        """The same without spans that are open in between, where nobody looks at those."""
        finished, ids, unix = self._finished, self._ids, self.anchor.unix
        if finished is None or ids is None or not finished.takes(said):
            return False
        for phase, start, end in step.intervals:
            inner = SpanContext(
                own.trace_id, ids.generate_span_id(), is_remote=False, trace_flags=own.trace_flags,
                trace_state=own.trace_state,
            )  # fmt: skip
            finished.span(_named(phase), inner, own, (unix(start), unix(end)), {names.PHASE: phase})
        status = Status(StatusCode.UNSET if error is None else StatusCode.ERROR, error)
        times = unix(step.start), unix(step.end)
        finished.span(names.SPAN_STEP, own, None, times, said, links=(self._run_link(),), status=status)
        return True

    def evaluation(self, evaluation: Evaluation, ordinal: int) -> None:
        """Emit an evaluation."""
        self._last_evaluation[ordinal] = evaluation
        if self._others.take(1, evaluation.end):
            about = {} if evaluation.split is None else {names.SPLIT: evaluation.split}
            span = self._start(names.SPAN_EVALUATION, evaluation.start, about, links=[self._run_link()])
            self._end(span, evaluation.end)

    def epoch(self, epoch: Epoch, about: Mapping[Any, Any]) -> None:
        """Emit an epoch."""
        if self._others.take(1, epoch.end):
            span = self._start(names.SPAN_EPOCH, epoch.start, about, links=[self._run_link()])
            self._end(span, epoch.end, "failed" if epoch.failed else None)

    def part(self, start: int, end: int, about: dict[str, Any]) -> None:
        """Emit a part of the run that the program named: a child of the run's own span."""
        trace_id, span_id = self._run_ids(self._segment)
        whole = SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
        span = self._tracer.start_span(
            names.SPAN_RUN, trace.set_span_in_context(NonRecordingSpan(whole), Context()),
            start_time=self.anchor.unix(start), attributes={k: v for k, v in about.items() if v is not None},
        )  # fmt: skip
        self._end(span, end, about[names.ERROR_TYPE])

    def call(self, call: Call) -> None:
        """Emit an inference, within the budget; one that failed has another one besides."""
        if self._calls.take(1, call.end) or (call.failed and self._others.take(1, call.end)):
            attributes = {names.MODEL_NAME: roots.facts[call.root].get("name", roots.labels[call.root])}
            if call.failed:
                attributes[names.OUTCOME] = "failed"
            span = self._start(names.SPAN_INFERENCE, call.start, attributes, links=[self._run_link()])
            self._end(span, call.end, "an exception left the forward pass" if call.failed else None)

    def calls(self, calls: Calls) -> None:
        """Emit some of several inferences, evenly spread, within the budget; none of them failed."""
        count = len(calls.starts)
        some = min(count, self._calls.available(calls.ends[-1]))
        for n in range(some):
            at = n * count // some
            self.call(Call(calls.starts[at], calls.ends[at], calls.root, None))

    def rare(self, rare: Rare, name: str, attributes: dict[str, Any]) -> None:
        """Emit a compile or checkpoint that happened outside a step; those inside are its children."""
        if rare.step is None and self._others.take(1, rare.end):
            span = self._start(name, rare.start, attributes, links=[self._run_link()])
            self._end(span, rare.end, rare.payload.get("error"))

    def tick(self, now_ns: int) -> None:
        """Close the run's segment every ten minutes."""
        if now_ns - self._segment_start >= _SEGMENT_NS:
            self._run(now_ns, {}, None)
            self._segment += 1
            self._segment_start = now_ns

    def finish(self, now_ns: int, attributes: dict[str, Any], error: str | None) -> None:
        """Give every user span still without one its parent, and end the run's span."""
        for ordinal, number in sorted(self.must_keep):
            if number <= self._emitted.get(ordinal, -1):
                continue
            evaluation = self._last_evaluation.get(ordinal)
            name = names.SPAN_EVALUATION if evaluation is not None else names.SPAN_STEP
            start, end = (evaluation.start, evaluation.end) if evaluation is not None else (now_ns, now_ns)
            own = self.context(number, ordinal)
            span = self._start(name, start, {}, links=[self._run_link()], ids=(own.trace_id, own.span_id))
            self._end(span, end)
        self.must_keep.clear()
        self._run(now_ns, attributes, error)

    def _run(self, end: int, attributes: dict[str, Any], error: str | None) -> None:
        links = []
        if self._segment:
            trace_id, span_id = self._run_ids(self._segment - 1)
            links.append(Link(SpanContext(trace_id, span_id, is_remote=False)))
        span = self._start(
            names.SPAN_RUN, self._segment_start, attributes, links=links, ids=self._run_ids(self._segment)
        )
        self._end(span, end, error)


def _is_outlier(start: int, end: int, limit: float) -> bool:
    """Whether a step took so long by itself: not because it waited for our own work."""
    return end - start > limit > 0 and end - start - held_ns(start, end) > limit


def _said(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes as a span has them."""
    # JSON has no word for them: Jaeger answers a search that finds one such span with an error, and nothing else.
    return {k: str(v) if isinstance(v, float) and not isfinite(v) else v for k, v in attributes.items()}


def _named(phase: str) -> str:
    """A phase's span."""
    return {"compile": names.SPAN_COMPILE, "checkpoint": names.SPAN_CHECKPOINT}.get(phase, phase)
