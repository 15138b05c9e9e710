"""Traces: each kept step is one, what user code does in it nests under it, and no exported span lacks its parent."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased

from otel_ml import names
from otel_ml.core import pace as slices
from otel_ml.core import recorder as r
from otel_ml.core.context import recorders
from otel_ml.core.identity import run_trace_id, step_trace_id
from otel_ml.core.pace import Pace
from otel_ml.testing import RUN_ID, Captured, FakeClock, capture
from tests.loops import STEP, end, nothing, train

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = 40
SAMPLERS: dict[str, Sampler] = {
    "all": ALWAYS_ON,
    "half": TraceIdRatioBased(0.5),
    "a quarter of the roots": ParentBased(TraceIdRatioBased(0.25)),
    "none": ALWAYS_OFF,
}
PHASES = [names.SPAN_DATA_WAIT, names.SPAN_FORWARD, names.SPAN_BACKWARD, names.SPAN_OPTIMIZER]


def hexed(trace_id: int) -> str:
    """A trace id as it is told."""
    return trace.format_trace_id(trace_id)


def work(seen: Captured) -> Callable[[], None]:
    """User code in a step: a span, and another inside it."""
    tracer = seen.tracer_provider.get_tracer("app")

    def inside() -> None:
        with tracer.start_as_current_span("outer"), tracer.start_as_current_span("inner"):
            pass

    return inside


def orphans(seen: Captured) -> list[tuple[str, str | None]]:
    """Exported spans whose parent is not among those exported."""
    known = {(span["trace_id"], span["span_id"]) for span in seen.spans}
    return [
        (span["name"], span["parent_span_id"])
        for span in seen.spans
        if span["parent_span_id"] is not None and (span["trace_id"], span["parent_span_id"]) not in known
    ]


def shape(spans: list[dict[str, Any]]) -> dict[str, list[tuple[str, str | None]]]:
    """By trace, each span's name with its parent's, in the order of their starts, parents first."""
    by_id = {span["span_id"]: span["name"] for span in spans}
    found: dict[str, list[tuple[str, str | None]]] = {}
    for span in sorted(spans, key=lambda s: (s["start_unix_ns"], s["parent_span_id"] is not None)):
        found.setdefault(span["trace_id"], []).append((span["name"], by_id.get(span["parent_span_id"])))
    return found


def block(sampler: Sampler, *, spans: bool) -> Captured:
    """A run of 40 steps with an evaluation after 20, told in four turns, with or without user spans in it."""
    clock = FakeClock()
    with capture(clock=clock, sampler=sampler) as seen:
        inside = work(seen) if spans else nothing
        for quarter in range(4):
            train(clock, [1.0] * (STEPS // 4), inside)
            seen.turn()
            if quarter == 1:
                recorder = recorders.mine()
                recorder.edge()
                inside()
                recorder.record(r.FORWARD_NOGRAD, clock(), clock(), 0, 8)
                clock.advance(0.1)
        end(clock)
        inside()
    return seen


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("spans", [True, False], ids=["with user spans", "without"])
def test_no_exported_span_lacks_its_parent(sampler: str, spans: bool) -> None:
    """Whatever the sampler decides, each exported span has its parent among those exported, or has none."""
    seen = block(SAMPLERS[sampler], spans=spans)
    assert orphans(seen) == []
    assert bool(seen.spans) is (sampler != "none")


EVENTS = ("fetch", "forward", "quiet", "backward", "zero", "step", "other step", "exhausted", "build", "span", "turn")


def happen(event: str, seen: Captured, clock: FakeClock) -> None:
    """Tell the recorder of one event as the hook for it does."""
    recorder = recorders.mine()
    start = clock()
    clock.advance(0.001)
    if event == "span":
        work(seen)()
    elif event == "turn":
        seen.turn()
    elif event == "fetch":
        recorder.fetching()
        recorder.record(r.FETCH, start, clock(), 8, -1)
    elif event == "exhausted":
        recorder.exhausted(recorder.fetching())
        recorder.record(r.FETCH_END, start, clock())
    elif event in ("quiet", "build"):
        recorder.edge()
        recorder.record(r.FORWARD_NOGRAD if event == "quiet" else r.BUILD, start, clock(), 0, 8)
    elif event.endswith("step"):
        which = int(event == "other step")
        recorder.turn(which)
        recorder.record(r.STEP, start, clock(), which, 0.1)
    else:
        recorder.candidate()
        code = {"forward": r.FORWARD, "backward": r.BACKWARD, "zero": r.ZERO_GRAD}[event]
        recorder.record(code, start, clock(), 1.0 if event == "backward" else 0, 8 if event == "forward" else None)


@settings(max_examples=50, deadline=None)
@example(["forward", "fetch", "other step", "turn", "span"], "all")
@given(st.lists(st.sampled_from(EVENTS), max_size=60), st.sampled_from(sorted(SAMPLERS)))
def test_no_sequence_of_events_makes_an_orphan(events: list[str], sampler: str) -> None:
    """Whatever a program does, in whatever order, each exported span has its parent or has none."""
    clock = FakeClock()
    with capture(clock=clock, sampler=SAMPLERS[sampler]) as seen:
        for _ in range(12):  # past the steps that are kept in any case
            for event in ("fetch", "forward", "backward", "step"):
                happen(event, seen, clock)
        for event in events:
            happen(event, seen, clock)
    assert orphans(seen) == []


def test_a_kept_step_is_one_trace() -> None:
    """Its root has the trace id that every rank derives, its phases as children in order, and a link to the run."""
    seen = block(ALWAYS_ON, spans=False)
    roots = seen.named(names.SPAN_STEP)
    kept = [root["attributes"][names.STEP_NUMBER] for root in roots]
    assert kept[:10] == list(range(10))
    stride = seen.run.spans.stride
    assert kept[10:] == [number for number in range(10, STEPS) if number % stride == 0]
    run = seen.named(names.SPAN_RUN)[0]
    assert run["trace_id"] == hexed(run_trace_id(RUN_ID, 0))
    traces = shape(seen.spans)
    for root in roots:
        number = root["attributes"][names.STEP_NUMBER]
        assert root["trace_id"] == hexed(step_trace_id(RUN_ID, 0, number))
        assert traces[root["trace_id"]] == [
            (names.SPAN_STEP, None),
            *((phase, names.SPAN_STEP) for phase in PHASES),
        ]
        assert [(link["trace_id"], link["span_id"]) for link in root["links"]] == [(run["trace_id"], run["span_id"])]


def test_children_lie_inside_their_step_and_never_overlap() -> None:
    """A phase begins where the one before ended or later, and ends with the step at the latest."""
    seen = block(ALWAYS_ON, spans=False)
    for root in seen.named(names.SPAN_STEP):
        inside = [s for s in seen.spans if s["parent_span_id"] == root["span_id"]]
        edges = [
            edge
            for s in sorted(inside, key=lambda s: s["start_unix_ns"])
            for edge in (s["start_unix_ns"], s["end_unix_ns"])
        ]
        assert [root["start_unix_ns"], *edges, root["end_unix_ns"]] == sorted(
            [root["start_unix_ns"], *edges, root["end_unix_ns"]]
        )


def test_every_step_with_a_user_span_is_kept() -> None:
    """User spans nest under the step they were made in, carry its number, and have it kept whatever the stride."""
    seen = block(ALWAYS_ON, spans=True)
    roots = seen.named(names.SPAN_STEP)
    assert [root["attributes"][names.STEP_NUMBER] for root in roots] == list(range(STEPS))
    traces = shape(seen.spans)
    for number, root in enumerate(roots):
        mine = [span for span in traces[root["trace_id"]] if span[0] in ("outer", "inner")]
        assert sorted(mine) == [("inner", "outer"), ("outer", names.SPAN_STEP)]
        assert root["trace_id"] == hexed(step_trace_id(RUN_ID, 0, number))
    stamped = [span["attributes"].get(names.STEP_NUMBER) for span in seen.named("outer")]
    assert sorted(n for n in stamped if n is not None) == list(range(STEPS))
    outside = [span for span in seen.named("outer") if names.STEP_NUMBER not in span["attributes"]]
    assert [span["parent_span_id"] for span in outside] == [None, None]


@pytest.mark.parametrize("pace", [1.0, 0.01])
def test_an_outlier_is_kept(pace: float) -> None:
    """A step that takes more than five times the usual becomes a trace, at any rate; its neighbours do not."""
    clock = FakeClock()
    with capture(clock=clock) as seen:
        train(clock, [1.0] * 301, pace=pace)
        train(clock, [1.0], lambda: clock.advance(6 * STEP * pace), pace=pace)
        train(clock, [1.0] * 200, pace=pace)
        end(clock)
    kept = [span["attributes"][names.STEP_NUMBER] for span in seen.named(names.SPAN_STEP)]
    assert [number for number in kept if 295 < number < 308 and number % 16] == [301]


@pytest.mark.parametrize("pace", [1.0, 0.01])
def test_a_step_that_waited_for_us_is_no_outlier(pace: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that was long because our own thread worked meanwhile becomes no trace for that."""
    clock = FakeClock()
    monkeypatch.setattr(slices._state, "slices", deque())
    monkeypatch.setattr(time, "perf_counter_ns", clock)

    def work_in_between() -> None:
        with Pace(on=False):
            clock.advance(6 * STEP * pace)

    with capture(clock=clock) as seen:
        train(clock, [1.0] * 301, pace=pace)
        train(clock, [1.0], work_in_between, pace=pace)
        train(clock, [1.0] * 200, pace=pace)
        end(clock)
    kept = [span["attributes"][names.STEP_NUMBER] for span in seen.named(names.SPAN_STEP)]
    assert [number for number in kept if 295 < number < 308 and number % 16] == []


@pytest.mark.parametrize("sampler", ["half", "a quarter of the roots"])
def test_a_step_and_what_is_in_it_are_sampled_together(sampler: str) -> None:
    """A ratio sampler keeps or drops a step whole, and some of each."""
    seen = block(SAMPLERS[sampler], spans=True)
    kept = {root["attributes"][names.STEP_NUMBER] for root in seen.named(names.SPAN_STEP)}
    assert {s["attributes"][names.STEP_NUMBER] for s in seen.named("outer") if s["parent_span_id"]} == kept
    assert 0 < len(kept) < STEPS


def test_a_step_that_never_was_leaves_no_orphan() -> None:
    """A span made after the last turn, in what turns out to be no step, has a parent all the same."""
    clock = FakeClock()
    with capture(clock=clock) as seen:
        train(clock, [1.0] * 12)
        recorder = recorders.mine()
        recorder.fetching()
        recorder.record(r.FETCH, clock(), clock(), 8, -1)
        work(seen)()
    assert orphans(seen) == []
    assert len(seen.named("outer")) == 1


def test_an_evaluation_and_its_spans() -> None:
    """An evaluation is a trace of its own that is linked to the run; a user's span in it is not lost."""
    seen = block(ALWAYS_ON, spans=True)
    run = seen.named(names.SPAN_RUN)[0]
    evaluations = seen.named(names.SPAN_EVALUATION)
    assert [(s["parent_span_id"], s["links"][0]["span_id"]) for s in evaluations] == [(None, run["span_id"])]


def test_a_failed_step_says_so() -> None:
    """The step that an exception ended is kept, with the status of an error, and so is the run."""
    clock = FakeClock()
    blocks = []

    def fail() -> None:
        message = "enough"
        raise ValueError(message)

    def program() -> None:
        with capture(clock=clock) as seen:
            blocks.append(seen)
            train(clock, [1.0] * 50)
            train(clock, [1.0], fail)

    with pytest.raises(ValueError, match="enough"):
        program()
    failed = blocks[0].named(names.SPAN_STEP)[-1]
    assert (failed["attributes"][names.STEP_NUMBER], failed["status"]) == (50, "error")
    run = blocks[0].named(names.SPAN_RUN)[0]
    assert (run["status"], run["status_message"]) == ("error", "ValueError: enough")


def test_a_long_run_has_segments() -> None:
    """Every ten minutes the run's span ends and the next one begins, linked to the last, all in the run's trace."""
    clock = FakeClock()
    with capture(clock=clock) as seen:
        for _ in range(3):
            train(clock, [1.0])
            end(clock)
            clock.advance(600)
            seen.turn()
    segments = seen.named(names.SPAN_RUN)
    assert {s["trace_id"] for s in segments} == {hexed(run_trace_id(RUN_ID, 0))}
    assert [[link["span_id"] for link in s["links"]] for s in segments] == [
        [], *([before["span_id"]] for before in segments[:-1]),
    ]  # fmt: skip
    assert [s["end_unix_ns"] for s in segments[:-1]] == [s["start_unix_ns"] for s in segments[1:]]
    assert len(segments) == 4


def test_the_live_step_is_what_the_context_says() -> None:
    """Inside a step the current span is that step, with the ids its span will have; outside there is none."""
    clock = FakeClock()
    ids = []
    with capture(clock=clock) as seen:
        assert trace.get_current_span() == trace.INVALID_SPAN
        train(clock, [1.0] * 3, lambda: ids.append(trace.get_current_span().get_span_context()))
        end(clock)
        assert trace.get_current_span() == trace.INVALID_SPAN
    roots = seen.named(names.SPAN_STEP)
    assert [(hexed(c.trace_id), trace.format_span_id(c.span_id)) for c in ids] == [
        (root["trace_id"], root["span_id"]) for root in roots
    ]
