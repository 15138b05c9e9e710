"""The step curve: exact within its budget, and above it thinned so that it says what it left out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

from otel_ml import names
from otel_ml.pipeline.records import Records
from tests.loops import Still

SECOND = 1_000_000_000
MILLISECOND = 1_000_000
RATE, BURST = 128, 2000
LINE_LIMIT_BY, COLUMN_LIMIT = 48 * 1024, 160

LOSS, GRAD_NORM = names.LOSS.name, names.GRAD_NORM.name


class Curve:
    """Records into memory, with the budget that a run has."""

    def __init__(self) -> None:
        self._memory = InMemoryLogRecordExporter()
        provider = LoggerProvider(shutdown_on_exit=False)
        provider.add_log_record_processor(SimpleLogRecordProcessor(self._memory))
        self.records = Records(Still(), rate=RATE, burst=BURST, started=0)
        self.records.use(provider.get_logger("test"))

    def told(self) -> list[tuple[str, int, dict[str, Any]]]:
        """Event, time and attributes of everything that left since the last call."""
        logs = [log.log_record for log in self._memory.get_finished_logs()]
        self._memory.clear()
        return [
            (
                str(log.event_name),
                log.timestamp or 0,
                {str(k): list(v) if isinstance(v, tuple) else v for k, v in (log.attributes or {}).items()},
            )
            for log in logs
        ]

    def numbers(self) -> list[int]:
        """The step numbers of everything that left since the last call, where it left exactly."""
        found: list[int] = []
        for event, _, attributes in self.told():
            number = attributes[names.STEP_NUMBER]
            assert event == names.EVENT_STEP or attributes[names.STEP_STRIDE] == 1
            found += number if isinstance(number, list) else [number]
        return found


def step(number: int, **more: Any) -> dict[str, Any]:
    """The attributes of a step of a millisecond with its number as its loss."""
    return {
        names.OUTCOME: "ok", names.STEP_DURATION_S: 0.001, LOSS: number + 1 / 3, names.STEP_SAMPLES: 8,
        **more, names.STEP_NUMBER: number,
    }  # fmt: skip


def run(curve: Curve, steps: range, **more: Any) -> None:
    """Record these steps, one a millisecond."""
    for number in steps:
        curve.records.step((number + 1) * MILLISECOND, step(number, **more), None)


def test_one_step_is_one_event() -> None:
    """A step alone is an `ml.step` with its values as they are, at the time it ended, its number last."""
    curve = Curve()
    run(curve, range(1))
    curve.records.flush(SECOND)
    assert curve.told() == [(names.EVENT_STEP, MILLISECOND, step(0))]
    run(curve, range(1, 2))
    curve.records.flush(SECOND)
    assert list(curve.told()[0][2])[-1] == names.STEP_NUMBER


def test_several_steps_are_columns() -> None:
    """Steps that leave together are an `ml.steps`: a list a key, an entry a step, null where a step has no value."""
    curve = Curve()
    run(curve, range(2))
    run(curve, range(2, 3), **{GRAD_NORM: 0.5})
    curve.records.step(4 * MILLISECOND, {k: v for k, v in step(3).items() if k != LOSS}, None)
    curve.records.flush(SECOND)
    columns = {
        names.OUTCOME: ["ok"] * 4, names.STEP_DURATION_S: [0.001] * 4, LOSS: [1 / 3, 1 + 1 / 3, 2 + 1 / 3, None],
        names.STEP_SAMPLES: [8] * 4, GRAD_NORM: [None, None, 0.5, None],
        names.STEP_STRIDE: 1, names.STEP_NUMBER: [0, 1, 2, 3],
    }  # fmt: skip
    assert curve.told() == [(names.EVENT_STEPS, 4 * MILLISECOND, columns)]


class Told:
    """A logger that is not the SDK's own, in front of one that is."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def emit(self, record: Any) -> None:
        """Pass a record on."""
        self._logger.emit(record)


@pytest.mark.filterwarnings("ignore:Log record attributes were dropped due to limits")
@pytest.mark.parametrize("most", [None, "3"])
@pytest.mark.parametrize("longest", [None, "1"])
def test_a_record_is_what_the_sdk_makes_of_it(
    monkeypatch: pytest.MonkeyPatch, most: str | None, longest: str | None
) -> None:
    """Whether or not the SDK is spared a look at each value: the same values and types, and the limits that are set."""
    for name, value in (("COUNT", most), ("VALUE_LENGTH", longest)):
        if value is not None:
            monkeypatch.setenv(f"OTEL_LOGRECORD_ATTRIBUTE_{name}_LIMIT", value)
    sent = []
    for wrap in (lambda logger: logger, Told):
        memory = InMemoryLogRecordExporter()
        provider = LoggerProvider(shutdown_on_exit=False)
        provider.add_log_record_processor(SimpleLogRecordProcessor(memory))
        records = Records(Still(), rate=RATE, burst=BURST, started=0)
        records.use(wrap(provider.get_logger("test", "1")))
        for number, loss in enumerate((1.5, "text", Path("x"), math.nan, True, None, 2)):
            records.step(number * MILLISECOND, {**step(number), LOSS: loss}, None)
        records.flush(SECOND)
        (log,) = memory.get_finished_logs()
        record = log.log_record
        sent.append(
            (
                repr(dict(record.attributes or {})), record.event_name, record.body, record.timestamp,
                record.severity_number, log.instrumentation_scope, log.resource, log.dropped_attributes,
            )
        )  # fmt: skip
    assert sent[0] == sent[1]
    assert sent[0][-1] == (0 if most is None else 3)


def test_a_short_run_is_exact() -> None:
    """The first 2,000 steps are told one by one however fast they come, at most 160 an event."""
    curve = Curve()
    run(curve, range(BURST))
    curve.records.flush(0)
    events = curve.told()
    assert [len(attributes[names.STEP_NUMBER]) for _, _, attributes in events] == [160] * 12 + [80]
    losses = [loss for _, _, attributes in events for loss in attributes[LOSS]]
    assert losses == [number + 1 / 3 for number in range(BURST)]
    assert not curve.records.thinned


def test_a_steady_run_within_the_rate_stays_exact() -> None:
    """At 128 steps a second nothing is ever thinned, burst or not."""
    curve = Curve()
    run(curve, range(BURST))
    curve.records.flush(0)
    for second in range(1, 60):
        first = BURST + (second - 1) * RATE
        run(curve, range(first, first + RATE))
        curve.records.flush(second * SECOND)
    assert curve.numbers() == list(range(BURST + 59 * RATE))
    assert not curve.records.thinned


def test_above_the_budget_the_curve_is_thinned_and_says_so() -> None:
    """Each entry then stands for `stride` steps: means to six digits, least and greatest, sums of what is counted."""
    curve = Curve()
    run(curve, range(BURST))
    curve.records.flush(0)
    curve.told()
    for number in range(4):
        outcome = {names.OUTCOME: "skipped"} if number == 1 else {}
        curve.records.step(number, {**step(number, **outcome), LOSS: 10.0**number}, None)
    curve.records.budget.left = 2.0
    curve.records.flush(0)
    thinned = {
        names.OUTCOME: ["skipped", "ok"],
        names.STEP_DURATION_S: [0.001] * 2,
        f"{names.STEP_DURATION_S}.min": [0.001] * 2,
        f"{names.STEP_DURATION_S}.max": [0.001] * 2,
        LOSS: [5.5, 550.0], f"{LOSS}.min": [1.0, 100.0], f"{LOSS}.max": [10.0, 1000.0],
        names.STEP_SAMPLES: [16, 16], names.STEP_STRIDE: 2, names.STEP_NUMBER: [0, 2],
    }  # fmt: skip
    assert curve.told() == [(names.EVENT_STEPS, 3, thinned)]
    assert curve.records.thinned


def test_a_long_fast_run_keeps_to_its_budget_and_loses_no_sample() -> None:
    """At 3,000 steps a second there are at most the burst and 128 points a second, and every step is in one."""
    curve = Curve()
    seconds, rate = 60, 3000
    for second in range(seconds):
        columns = [step(second * rate + n) for n in range(rate)]
        ends = [(second * rate + n) * MILLISECOND // 3 for n in range(rate)]
        curve.records.steps(ends, {k: [c[k] for c in columns] for k in columns[0]})
        curve.records.flush((second + 1) * SECOND)
    curve.records.finish(seconds * SECOND)
    points = samples = steps = 0
    for _, _, attributes in curve.told():
        count = len(attributes[names.STEP_NUMBER])
        points += count
        steps += count * attributes[names.STEP_STRIDE]
        samples += sum(attributes[names.STEP_SAMPLES])
        assert count <= COLUMN_LIMIT
    assert (steps, samples) == (seconds * rate, 8 * seconds * rate)
    assert points <= BURST + RATE * seconds


def test_the_end_of_a_run_leaves_nothing_behind() -> None:
    """Steps that make no whole entry are told at the end as one, which says how many it stands for."""
    curve = Curve()
    curve.records.budget.left = 1.0
    run(curve, range(3))
    curve.records.finish(0)
    told = [
        (attributes[names.STEP_NUMBER], attributes.get(names.STEP_STRIDE), attributes[names.STEP_SAMPLES])
        for _, _, attributes in curve.told()
    ]
    assert told == [([0], 3, [24])]


def test_a_column_that_only_the_rest_has_waits_for_it() -> None:
    """A value that none of the thinned steps has costs nothing, and comes with the step that has it."""
    curve = Curve()
    curve.records.budget.left = 2.0
    run(curve, range(4))
    run(curve, range(4, 5), **{GRAD_NORM: 0.5})
    curve.records.flush(0)
    curve.records.finish(0)
    told = [(attributes[names.STEP_NUMBER], attributes.get(GRAD_NORM)) for _, _, attributes in curve.told()]
    assert told == [([0], None), (4, 0.5)]


def test_no_event_is_larger_than_backends_take() -> None:
    """Two hundred columns of long numbers are split until each event is at most 48 KiB, and no step is lost."""
    curve = Curve()
    wide = {f"{names.STEP_LOSS}.Optimizer#{n}": 1 / 3 for n in range(110)}
    run(curve, range(100), **wide)
    curve.records.flush(0)
    events = curve.told()
    assert [number for _, _, a in events for number in a[names.STEP_NUMBER]] == list(range(100))
    assert max(len(json.dumps(attributes)) for _, _, attributes in events) <= LINE_LIMIT_BY
    assert len(events) > 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_told(value: float) -> None:
    """A loss that is not a number is in the record as what it is."""
    curve = Curve()
    run(curve, range(1), **{GRAD_NORM: value})
    curve.records.flush(0)
    assert repr(curve.told()[0][2][GRAD_NORM]) == repr(value)
