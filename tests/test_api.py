"""What a program says of itself is in the step in which it says it, and changes nothing else."""

from __future__ import annotations

import logging
import math
import re
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import otel_ml
from otel_ml import names
from otel_ml.core import runtime
from otel_ml.core.context import limits
from otel_ml.testing import Captured, FakeClock, capture
from tests.loops import STEP, end, train

ROOT = Path(__file__).resolve().parent.parent
SCALAR = f"{names.STEP_SCALAR}."


def values(seen: Captured) -> list[dict[str, Any]]:
    """Each step's recorded values, by name."""
    return [{k.removeprefix(SCALAR): v for k, v in row.items() if k.startswith(SCALAR)} for row in seen.steps()]


def points(seen: Captured) -> list[tuple[int | None, dict[str, Any]]]:
    """What was recorded beside steps, a row a step: the step it is of, and values by name."""
    rows: list[tuple[int | None, dict[str, Any]]] = []
    for log in seen.events(names.EVENT_SCALARS):
        said = log["attributes"]
        columns = {k.removeprefix(SCALAR): v for k, v in said.items() if k.startswith(SCALAR)}
        if names.STEP_STRIDE not in said:
            rows.append((said.get(names.STEP_NUMBER), columns))
            continue
        count = len(next(iter(columns.values())))
        numbers = said.get(names.STEP_NUMBER, [None] * count)
        rows += [(numbers[n], {k: v[n] for k, v in columns.items() if v[n] is not None}) for n in range(count)]
    return rows


def refuse(message: str) -> None:
    """Raise."""
    raise ValueError(message)


def test_readme_lists_the_public_names() -> None:
    """README's table of the API holds every public name, and no other."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("## What a program can say itself") : text.index("## Logging")]
    listed = re.findall(r"^\| `(?:@?)otel_ml\.(\w+)", table, re.MULTILINE)
    assert sorted(listed) == sorted(set(otel_ml.__all__) - {"__version__"})


@pytest.mark.parametrize("name", sorted(set(otel_ml.__all__) - {"__version__"}))
def test_every_public_name_says_what_it_does(name: str) -> None:
    """`help()` of it begins with a sentence, and tells each of its arguments."""
    thing = getattr(otel_ml, name)
    assert thing.__doc__.splitlines()[0].strip()
    told = thing.__doc__.partition("Args:")[2]
    arguments = thing.__code__.co_varnames[: thing.__code__.co_argcount + thing.__code__.co_kwonlyargcount]
    said = thing.__doc__ if len(arguments) < 2 else told
    assert [a for a in arguments if a not in said and len(arguments) > 1 and a != "attributes"] == []


# --- nothing is configured ----------------------------------------------------------------------


def test_without_a_run_nothing_happens(tmp_path: Path) -> None:
    """Every call does nothing where nothing is recorded, and the program goes on as if it were not there."""
    assert runtime.recording is None
    otel_ml.record("a", 1.0)
    otel_ml.record({"a": object()})
    otel_ml.event("happened", n=1)
    otel_ml.profile(steps=3)
    assert otel_ml.flush() is False
    with (
        otel_ml.run("r", lr=1), otel_ml.epoch(-1), otel_ml.step(-1), otel_ml.phase("p"), otel_ml.evaluation("e"),
        otel_ml.checkpoint(tmp_path / "c"), otel_ml.request("x"), otel_ml.span("s"), otel_ml.timed("t"),
    ):  # fmt: skip
        assert list(otel_ml.data([1, 2])) == [1, 2]
    assert limits.counts == {}


# --- values -------------------------------------------------------------------------------------


def test_values_are_in_their_step() -> None:
    """A value is a column of the step in which it was recorded, and the last one stands in the metric."""
    clock = FakeClock()
    recorded = iter([0.5, 0.25, 0.125])
    with capture(clock=clock) as seen:
        train(clock, [3.0, 2.0, 1.0], lambda: otel_ml.record("accuracy", next(recorded)))
        end(clock)
    assert values(seen) == [{"accuracy": 0.5}, {"accuracy": 0.25}, {"accuracy": 0.125}]
    assert seen.points(names.SCALAR) == {(("ml.scalar.name", "accuracy"),): 0.125}
    assert seen.totals is not None
    curve = seen.totals.scalars["accuracy"]
    assert (curve.count, curve.last, curve.low, curve.high) == (3, 0.125, 0.125, 0.5)


def test_many_steps_keep_their_values() -> None:
    """Also where steps are told of in blocks, each has its own."""
    clock = FakeClock()
    count = iter(range(500))
    with capture(clock=clock) as seen:
        train(clock, [1.0] * 500, lambda: otel_ml.record({"n": next(count), "same": 7}))
        end(clock)
    assert values(seen) == [{"n": float(n), "same": 7.0} for n in range(500)]


NUMBERS: dict[str, tuple[Any, float]] = {
    "float": (0.5, 0.5),
    "int": (3, 3.0),
    "bool": (True, 1.0),
    "huge": (10**400, math.inf),
    "decimal": (Decimal("0.25"), 0.25),
    "numpy": (np.float32(0.5), 0.5),
    "numpy 0-d": (np.array(2), 2.0),
    "numpy of one": (np.array([2.5]), 2.5),
    "torch": (torch.tensor(0.75), 0.75),
    "torch with grad": (torch.tensor([1.5], requires_grad=True), 1.5),
    "parameter": (nn.Parameter(torch.tensor(0.5)), 0.5),
    "bfloat16": (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
    "infinite": (float("-inf"), -math.inf),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers(kind: str) -> None:
    """Every number arrives as the float that it is."""
    given, expected = NUMBERS[kind]
    with capture() as seen, otel_ml.step():
        otel_ml.record("x", given)
    assert values(seen) == [{"x": expected}]


def test_jax_values_are_read_when_they_are_ready() -> None:
    """A JAX scalar is not waited for, and is in its step all the same."""
    with capture() as seen:
        for n in range(3):
            with otel_ml.step():
                otel_ml.record("x", jnp.float32(n) * 2)
    assert values(seen) == [{"x": 0.0}, {"x": 2.0}, {"x": 4.0}]


def test_nonfinite_values_are_kept_and_counted() -> None:
    """NaN and infinities are in the records and in the count of such values; a gauge holds the last that is finite."""
    clock = FakeClock()
    recorded = iter([1.0, math.nan, math.inf])
    with capture(clock=clock) as seen:
        train(clock, [1.0] * 3, lambda: otel_ml.record("x", next(recorded)))
    assert [str(row["x"]) for row in values(seen)] == ["1.0", "nan", "inf"]
    assert seen.points(names.NONFINITE) == {(("ml.scalar.name", "x"),): 2}
    assert seen.points(names.SCALAR) == {(("ml.scalar.name", "x"),): 1.0}


def test_values_between_steps_are_of_the_last_one() -> None:
    """What is recorded in an evaluation or after it is a record beside the last step's, with its split."""
    clock = FakeClock()
    with capture(clock=clock) as seen:
        train(clock, [1.0, 1.0])
        with otel_ml.evaluation("test"):
            clock.advance(1)
            otel_ml.record({"accuracy": 0.5, "f1": 0.25})
        otel_ml.record("accuracy", 0.75, split="validation")
        otel_ml.record("best", 1, step=17)
    assert sorted(points(seen)) == [
        (1, {"test/accuracy": 0.5, "test/f1": 0.25, "validation/accuracy": 0.75}), (17, {"best": 1.0}),
    ]  # fmt: skip
    assert seen.points(names.SCALAR) == {
        (("ml.scalar.name", "accuracy"), ("ml.split", "test")): 0.5,
        (("ml.scalar.name", "f1"), ("ml.split", "test")): 0.25,
        (("ml.scalar.name", "accuracy"), ("ml.split", "validation")): 0.75,
        (("ml.scalar.name", "best"),): 1.0,
    }
    assert seen.points(names.EVALUATION_DURATION) == {(("ml.split", "test"),): (1, 1.0)}


def test_more_names_than_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    """The 201st name is left out, counted, and said once."""
    with capture() as seen, otel_ml.step():
        otel_ml.record({f"n{n}": n for n in range(250)})
    (row,) = values(seen)
    told = {**row, **dict(pair for _, more in points(seen) for pair in more.items())}
    assert told == {f"n{n}": float(n) for n in range(200)}
    assert len(row) == 64
    assert seen.points(names.LEFT_OUT) == {(("otel_ml.limit.kind", "scalar"),): 50}
    assert len([one for one in caplog.records if "200 names" in one.message]) == 1


@pytest.mark.parametrize(
    "bad", ["text", None, [1, 2], np.zeros(3), torch.zeros(2), object(), {"a": 1}], ids=lambda bad: type(bad).__name__
)
def test_no_numbers(bad: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What is no number is left out, counted and said, and the others of the same call are kept."""
    with capture() as seen, otel_ml.step():
        otel_ml.record({"bad": bad, "good": 1})
    assert values(seen) == [{"good": 1.0}]
    assert seen.points(names.LEFT_OUT) == {(("otel_ml.limit.kind", "value"),): 1}
    assert [one.levelno for one in caplog.records if "record('bad')" in one.message] == [logging.WARNING]


def test_values_inside_compiled_functions() -> None:
    """Inside what a compiler traces, `record()` says nothing, and the result is as without it."""

    def double(x: Any) -> Any:
        otel_ml.record("inside", x.sum())
        return x * 2

    with capture() as seen, otel_ml.step():
        assert torch.compile(double, backend="eager", fullgraph=True)(torch.ones(2)).tolist() == [2.0, 2.0]
        assert jax.jit(double)(np.ones(2, "f")).tolist() == [2.0, 2.0]
    assert values(seen) == [{}]


# --- events ---------------------------------------------------------------------------------------


def test_events_are_in_their_step() -> None:
    """An event is a log record in the trace of the step in which it happened, with attributes that anyone can hold."""
    clock = FakeClock()
    with capture(clock=clock) as seen:
        train(clock, [1.0], lambda: otel_ml.event("stage", "second stage", n=2, api_key="hidden", x=torch.ones(2, 3)))
        end(clock)
    ((event,), (step,)) = seen.events("stage"), seen.named(names.SPAN_STEP)
    assert (event["trace_id"], event["span_id"], event["body"]) == (step["trace_id"], step["span_id"], "second stage")
    assert event["attributes"] == {"n": 2, "api_key": "****", "x": "float32[2, 3] cpu", names.STEP_NUMBER: 0}


def test_events_of_ours_stay_ours(caplog: pytest.LogCaptureFixture) -> None:
    """An event whose name begins like ours goes by another, which is said once."""
    with capture() as seen:
        otel_ml.event("ml.step", n=1)
        otel_ml.event("ml.step", n=2)
    assert [one["attributes"] for one in seen.events("user.ml.step")] == [{"n": 1}, {"n": 2}]
    assert len([one for one in caplog.records if "may not begin with ml." in one.message]) == 1


def test_events_are_bounded() -> None:
    """Events beyond the limit are counted."""
    with capture() as seen:
        for n in range(5000):
            otel_ml.event("tick", n=n)
    left_out = seen.points(names.LEFT_OUT)[(("otel_ml.limit.kind", "event"),)]
    assert len(seen.events("tick")) + left_out == 5000
    assert left_out > 2000


# --- the run and what is in it --------------------------------------------------------------------


def test_a_run_joins_the_one_that_is_recorded() -> None:
    """A named part tells its configuration, is a span inside the run's, and ends with its error; parts nest."""
    secret = {"token": "hidden"}
    with (
        capture() as seen, otel_ml.run("sweep"), pytest.raises(ValueError, match="no"),
        otel_ml.run("a", lr=0.5, **secret),
    ):  # fmt: skip
        refuse("no")
    inner, outer = (
        next(s for s in seen.named(names.SPAN_RUN) if s["attributes"].get(names.RUN_NAME) == name)
        for name in ("a", "sweep")
    )
    (whole,) = (s for s in seen.named(names.SPAN_RUN) if s["parent_span_id"] is None)
    assert (inner["parent_span_id"], outer["parent_span_id"]) == (whole["span_id"], whole["span_id"])
    assert (inner["status"], inner["attributes"][names.ERROR_TYPE], outer["status"]) == ("error", "ValueError", "unset")
    told = [log["attributes"] for log in seen.events(names.EVENT_CONFIG) if names.RUN_NAME in log["attributes"]]
    prefix = names.CONFIG_VALUE
    assert told[1] == {names.RUN_NAME: "a", f"{prefix}.lr": 0.5, f"{prefix}.token": "****"}


def test_steps_phases_and_epochs() -> None:
    """What the program calls a step is one: its record has the program's number, epoch, phases and values."""
    clock = FakeClock()
    with capture(clock=clock) as seen, otel_ml.epoch(2):
        for number in (4, 5):
            with otel_ml.step(number):
                with otel_ml.phase("augment"):
                    clock.advance(0.25)
                train(clock, [1.0])
                otel_ml.record("x", number)
            clock.advance(1)
    phases = {"data_wait": 0.004, "forward": 0.011, "backward": 0.02, "optimizer": 0.005, "augment": 0.25}
    assert seen.steps() == [
        {
            names.OUTCOME: "ok", names.STEP_DURATION_S: STEP + 0.25, names.STEP_MICRO_BATCHES: 1,
            **{f"{names.STEP_PHASE}.{phase}": spent for phase, spent in phases.items()},
            f"{names.STEP_PHASE}.residual": 0.003, names.LOSS.name: 1.0, f"{SCALAR}x": float(number),
            names.LEARNING_RATE.name: 0.1, names.STEP_SAMPLES: 8, names.EPOCH_NUMBER: 2, names.STEP_NUMBER: number,
        }
        for number in (4, 5)
    ]  # fmt: skip
    (epoch,) = seen.events(names.EVENT_EPOCH_FINISHED)
    assert epoch["attributes"] == {
        names.OUTCOME: "ok", names.EPOCH_DURATION_S: pytest.approx(2 * (STEP + 1.25)), names.EPOCH_NUMBER: 2,
    }  # fmt: skip
    children = [s["name"] for s in seen.spans if s["parent_span_id"] == seen.named(names.SPAN_STEP)[0]["span_id"]]
    assert sorted(children) == ["augment", "backward", "data_wait", "forward", "optimizer"]


def test_decorated_steps() -> None:
    """Every call of a function under `step()` is a step, of any kind of function."""
    with capture() as seen:
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        @otel_ml.step()
        def both(x: torch.Tensor) -> None:
            for _ in range(2):  # two rounds, one step
                optimizer.zero_grad()
                model(x).sum().backward()
                optimizer.step()

        for _ in range(3):
            both(torch.ones(2, 3))
    assert [(row[names.STEP_NUMBER], row[names.STEP_MICRO_BATCHES]) for row in seen.steps()] == [(0, 2), (1, 2), (2, 2)]


def test_a_failed_step() -> None:
    """An exception that leaves a step makes it failed; what is caught and tried again is the next one."""
    with capture() as seen:
        for fails in (True, False):
            try:
                with otel_ml.step():
                    _ = 1 / (not fails)
            except ZeroDivisionError:  # noqa: PERF203
                otel_ml.event("caught")
    assert [(row[names.STEP_NUMBER], row[names.OUTCOME]) for row in seen.steps()] == [(0, "failed"), (1, "ok")]
    ((event,), (step, _)) = seen.events("caught"), seen.named(names.SPAN_STEP)
    assert event["span_id"] == step["span_id"]


@pytest.mark.parametrize("number", [-1, 0.5, "7", 1 << 60])
def test_numbers_that_are_none(number: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A step without a usable number is counted on, which is said."""
    with capture() as seen:
        with otel_ml.step():
            pass
        with otel_ml.step(number):
            pass
    assert [row[names.STEP_NUMBER] for row in seen.steps()] == [0, 1]
    assert [one.message for one in caplog.records if "a step is a whole number from 0" in one.message]


def test_a_number_that_was_there_before(caplog: pytest.LogCaptureFixture) -> None:
    """Numbers that begin anew in each epoch are counted on, which is said once."""
    with capture() as seen:
        for _ in range(2):
            for number in range(3):
                with otel_ml.step(number):
                    pass
    assert [row[names.STEP_NUMBER] for row in seen.steps()] == [0, 1, 2, 3, 4, 5]
    assert len([one for one in caplog.records if "there was one of this number before" in one.message]) == 1


def test_a_step_in_a_step() -> None:
    """The outer one holds; the evaluation in it is a part of it."""
    with capture() as seen, otel_ml.step(), otel_ml.step(5), otel_ml.evaluation("test"):
        otel_ml.record("x", 1)
    assert values(seen) == [{"test/x": 1.0}]
    assert seen.named(names.SPAN_EVALUATION) == []


def test_threads_have_steps_of_their_own() -> None:
    """Two threads that mark their steps count each for itself."""

    def work() -> None:
        for _ in range(3):
            with otel_ml.step():
                otel_ml.record("x", 1)

    with capture() as seen:
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(row[names.STEP_NUMBER] for row in seen.steps()) == [0, 0, 1, 1, 2, 2]
    assert seen.points(names.STEPS) == {(("ml.outcome", "ok"),): 6}


# --- checkpoints, data, requests -------------------------------------------------------------------


def test_a_checkpoint_of_any_kind(tmp_path: Path) -> None:
    """Whatever is written inside is one checkpoint, with its path and size; one that fails says so."""
    path = tmp_path / "model.bin"
    with capture() as seen:
        with otel_ml.step():
            pass
        with otel_ml.checkpoint(path):
            torch.save({}, tmp_path / "other.pt")
            path.write_bytes(b"0123456789")
        with pytest.raises(OSError, match="full"), otel_ml.checkpoint(path):
            raise OSError("full")  # noqa: EM101
    (saved,) = seen.events(names.EVENT_CHECKPOINT_SAVED)
    assert (saved["attributes"][names.CHECKPOINT_PATH], saved["attributes"][names.CHECKPOINT_SIZE_BY]) == (
        str(path),
        10,
    )
    assert set(seen.points(names.CHECKPOINT_DURATION)) == {
        (("ml.checkpoint.operation", "save"),), (("error.type", "OSError"), ("ml.checkpoint.operation", "save")),
    }  # fmt: skip
    with pytest.raises(ValueError, match="type operation='save' or operation='load'"):
        otel_ml.checkpoint(path, operation="keep")  # type: ignore[arg-type]


def test_data_of_any_kind() -> None:
    """An iterable's waits are the steps' data waits, their arrays' rows its samples; it ends as it ends."""
    clock = FakeClock()

    def batches() -> Any:
        for rows in (2, 3):
            clock.advance(0.5)
            yield np.zeros((rows, 4))

    with capture(clock=clock) as seen:
        source = otel_ml.data(batches())
        for _ in source:
            with otel_ml.step():
                clock.advance(1)
        assert list(otel_ml.data([1, 2, 3])) == [1, 2, 3]
        assert (len(otel_ml.data([1, 2])), next(otel_ml.data(iter("ab"))), bool(otel_ml.data([]))) == (2, "a", False)
    assert [(row[names.STEP_DURATION_S], row[names.STEP_SAMPLES]) for row in seen.steps()] == [(1.5, 2), (1.5, 3)]
    assert [row[f"{names.STEP_PHASE}.data_wait"] for row in seen.steps()] == [0.5, 0.5]


def test_requests(caplog: pytest.LogCaptureFixture) -> None:
    """A request's id is on its span and on what is logged inside; one that cannot be is replaced."""
    logger = logging.getLogger("serving")
    caplog.set_level(logging.INFO, "serving")
    with capture() as seen:
        with otel_ml.request("abc-1", route="/"):
            logger.info("inside")
            otel_ml.event("answered")
            with otel_ml.request() as inner:
                assert inner.is_recording()
        logger.info("outside")
        with otel_ml.request(id="no good/"):
            otel_ml.event("minted")
    first, again, other = seen.named(names.SPAN_REQUEST)
    assert first["attributes"] == {"route": "/", names.REQUEST_ID: "abc-1"}
    assert again["parent_span_id"] == first["span_id"]
    assert re.fullmatch("[0-9a-f]{32}", other["attributes"][names.REQUEST_ID])
    logs = {log["body"]: log["attributes"].get(names.REQUEST_ID) for log in seen.logs}
    assert (logs["inside"], logs["answered"], logs["outside"]) == ("abc-1", "abc-1", None)
    assert logs["minted"] == other["attributes"][names.REQUEST_ID]
