"""What `capture()` promises the tests that stand on it."""

from __future__ import annotations

import logging
import queue
import random
import threading
from typing import Any

import pytest
import torch
from opentelemetry import _logs, metrics, trace

from otel_ml import errors, names
from otel_ml.core import recorder as r
from otel_ml.core.context import recorders
from otel_ml.errors import OtelMlError
from otel_ml.testing import Captured, FakeClock, capture
from tests.loops import end, train

START = 1_000_000_000_000  # the fake wall clock's first instant


def a_step(number: int, loss: float) -> dict[str, Any]:
    """The record of a step of `tests.loops.train`."""
    return {
        names.OUTCOME: "ok", names.STEP_NUMBER: number, names.STEP_DURATION_S: 0.043, names.STEP_MICRO_BATCHES: 1,
        f"{names.STEP_PHASE}.data_wait": 0.004, f"{names.STEP_PHASE}.forward": 0.011,
        f"{names.STEP_PHASE}.backward": 0.02, f"{names.STEP_PHASE}.optimizer": 0.005,
        f"{names.STEP_PHASE}.residual": 0.003, names.LOSS.name: loss, names.LEARNING_RATE.name: 0.1,
        names.STEP_SAMPLES: 8,
    }  # fmt: skip


def test_events_by_hand_become_plain_data() -> None:
    """With a fake clock, spans, records, points and totals are exact, and the same each time."""

    def block() -> Captured:
        clock = FakeClock()
        with capture(clock=clock) as seen:
            train(clock, [3.0, 2.0])
            end(clock)
        return seen

    seen = block()
    assert seen.steps() == [a_step(0, 3.0), a_step(1, 2.0)]
    root = seen.named(names.SPAN_STEP)[0]
    children = [
        (s["name"], s["start_unix_ns"] - START, s["end_unix_ns"] - START)
        for s in sorted(seen.spans, key=lambda s: s["start_unix_ns"])
        if s["parent_span_id"] == root["span_id"]
    ]
    assert children == [
        ("data_wait", 0, 4_000_000), ("forward", 4_000_000, 15_000_000), ("backward", 15_000_000, 35_000_000),
        ("optimizer", 35_000_000, 40_000_000),
    ]  # fmt: skip
    assert seen.points(names.STEPS) == {((names.OUTCOME, "ok"),): 2}
    assert seen.points(names.STEP_DURATION) == {((names.FRAMEWORK_NAME, "torch"),): (2, 0.086)}
    assert seen.totals is not None
    assert (seen.totals.steps, seen.totals.outcome, seen.totals.duration_s) == (2, "finished", 0.086)
    again = block()
    assert (again.named(names.SPAN_STEP), again.named(names.SPAN_RUN), again.steps()) == (
        seen.named(names.SPAN_STEP), seen.named(names.SPAN_RUN), seen.steps(),
    )  # fmt: skip


def test_torch_is_hooked_inside_the_block_alone() -> None:
    """A torch program's losses are in the records, and after the block every function of torch's is its own again."""
    model = torch.nn.Linear(3, 1)
    torch.optim.SGD(model.parameters())  # torch wraps `step` itself when the first of a class is built
    originals = torch.autograd.backward, torch.save, torch.optim.Optimizer.zero_grad, torch.optim.SGD.step
    printed = []
    with capture() as seen:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        assert torch.autograd.backward is not originals[0]
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(torch.ones(2, 3)).square().mean()
            loss.backward()
            optimizer.step()
            printed.append(loss.item())
    assert (torch.autograd.backward, torch.save, torch.optim.Optimizer.zero_grad, torch.optim.SGD.step) == originals
    assert [row[names.LOSS.name] for row in seen.steps()] == printed
    model(torch.ones(2, 3)).sum().backward()
    assert recorders.all == [] or not recorders.mine().buffer


def test_turn_tells_what_was_recorded_so_far() -> None:
    """What a block has done can be looked at before its end."""
    clock = FakeClock()
    with capture(clock=clock) as seen:
        train(clock, [3.0, 2.0])
        seen.turn()
        assert [row[names.STEP_NUMBER] for row in seen.steps()] == [0]
        assert seen.totals is None
    assert [row[names.STEP_NUMBER] for row in seen.steps()] == [0, 1]


def test_the_blocks_exception_passes_through() -> None:
    """An exception of the block's is the same object outside, and is told of with the step that it ended."""
    clock = FakeClock()
    mine = ValueError("enough")
    blocks = []

    def fail() -> None:
        raise mine

    def program() -> None:
        with capture(clock=clock) as seen:
            blocks.append(seen)
            train(clock, [3.0])
            train(clock, [2.0], fail)

    with pytest.raises(ValueError, match="enough") as caught:
        program()
    assert caught.value is mine
    seen = blocks[0]
    assert [row[names.OUTCOME] for row in seen.steps()] == ["ok", "failed"]
    told = seen.events(names.EVENT_EXCEPTION)[0]
    step = seen.named(names.SPAN_STEP)[1]
    assert (told["body"], told["attributes"][names.STEP_NUMBER]) == ("ValueError: enough", 1)
    assert (told["trace_id"], told["span_id"]) == (step["trace_id"], step["span_id"])
    assert seen.totals is not None
    assert (seen.totals.outcome, seen.totals.error) == ("failed", "ValueError: enough")


@pytest.mark.parametrize("turned", [True, False], ids=["at a turn", "at the end"])
def test_an_error_of_ours_is_raised(turned: bool) -> None:
    """What would be swallowed in a program is raised in a test."""

    def program() -> None:
        clock = FakeClock()
        with capture(clock=clock) as seen:
            train(clock, [1.0])
            recorders.mine().record(99, clock(), clock())  # no event has this code
            train(clock, [1.0])
            if turned:
                seen.turn()

    with pytest.raises(KeyError):
        program()
    assert errors.strict is False


def test_a_block_is_apart_from_the_process() -> None:
    """No global provider is set, the program's logs are heard inside only, and threads of before start anew."""
    providers = trace.get_tracer_provider(), metrics.get_meter_provider(), _logs.get_logger_provider()
    tasks: queue.SimpleQueue[FakeClock | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[None] = queue.SimpleQueue()

    def work() -> None:
        while (clock := tasks.get()) is not None:
            train(clock, [5.0])
            done.put(None)

    worker = threading.Thread(target=work)
    worker.start()
    blocks = []
    for _ in range(2):
        clock = FakeClock()
        with capture(clock=clock) as seen:
            logging.getLogger("app").warning("inside")
            tasks.put(clock)
            done.get()
        blocks.append(seen)
        logging.getLogger("app").warning("outside")
    tasks.put(None)
    worker.join()
    assert [[row[names.STEP_NUMBER] for row in seen.steps()] for seen in blocks] == [[0], [0]]
    assert [[log["body"] for log in seen.logs if not log["event_name"]] for seen in blocks] == [["inside"]] * 2
    assert (trace.get_tracer_provider(), metrics.get_meter_provider(), _logs.get_logger_provider()) == providers
    assert not trace.get_current_span().get_span_context().is_valid


def test_random_numbers_are_the_programs() -> None:
    """Recording draws nothing from `random`: a seed gives what it gives without us."""
    clock = FakeClock()

    def drawn() -> list[float]:
        random.seed(7)
        numbers = []
        train(clock, [1.0] * 3, lambda: numbers.append(random.random()))
        return numbers

    plain = drawn()
    with capture(clock=clock) as seen:
        recorded = drawn()
        seen.turn()
        after = random.random()
    drawn()
    assert (recorded, after) == (plain, random.random())


def test_one_block_at_a_time() -> None:
    """A block inside another is refused, and the outer one goes on."""
    clock = FakeClock()
    with capture(clock=clock) as seen:
        train(clock, [1.0])
        with pytest.raises(OtelMlError, match="inside another one"), capture():
            pass
        train(clock, [1.0])
    assert [row[names.STEP_NUMBER] for row in seen.steps()] == [0, 1]


def test_nothing_seen_is_nothing_told() -> None:
    """A block that neither trains nor infers has no telemetry and no totals."""
    with capture() as seen:
        recorders.mine().record(r.OPTIMIZER_WORK, 0, 1)
    assert (seen.spans, seen.logs, seen.totals) == ([], [], None)
