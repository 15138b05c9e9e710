"""Where time goes: sleeps that a program plants are in the phase they were planted in, and in no other."""

from __future__ import annotations

import json
from statistics import median
from typing import TYPE_CHECKING

import pytest

from tests.e2e.launching import LAUNCHERS, launch, recorded, step_records, totals

if TYPE_CHECKING:
    from pathlib import Path

EXCESS = 0.5  # of the sleep, that a phase may hold beside it: the program's own work, and the machine's noise


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_phases(launcher: str, tmp_path: Path) -> None:
    """Each phase is at least what the program slept in it, by median at most half as much more; no other appears."""
    ours = launch(LAUNCHERS[launcher], "timed.py", "--steps", "30", cwd=tmp_path, OTEL_ML_DIR=str(tmp_path / "runs"))

    planted = [json.loads(line[8:]) for line in ours.stdout.splitlines() if line.startswith("planted ")]
    rows = step_records(tmp_path / "runs")
    phases = {"data_wait", "forward", "backward", "optimizer", "residual"}
    assert [row["ml.step.number"] for row in rows] == [p.pop("step") for p in planted] == list(range(30))
    found = [{k.removeprefix("ml.step.phase."): v for k, v in r.items() if ".phase." in k} for r in rows]
    assert [set(f) for f in found] == [set(p) for p in planted] == [phases] * 30
    excess = {phase: [f[phase] - p[phase] for f, p in zip(found, planted, strict=True)] for phase in phases}
    assert {phase: min(spans) >= 0 for phase, spans in excess.items()} == dict.fromkeys(phases, True)
    assert {phase: median(spans) <= EXCESS * median(p[phase] for p in planted) for phase, spans in excess.items()} == (
        dict.fromkeys(phases, True)
    )
    sums = [sum(f.values()) for f in found]
    assert sums == pytest.approx([row["ml.step.duration"] for row in rows], abs=1e-8)
    assert totals(tmp_path / "runs").phases.keys() == phases


def test_fast(tmp_path: Path) -> None:
    """Thousands of steps a second: the curve is thinned to mean, least and most, and says so; counts stay exact."""
    ours = launch(
        LAUNCHERS["otel-ml run"], "fast.py", "--steps", "12000", cwd=tmp_path, OTEL_ML_DIR=str(tmp_path / "runs")
    )

    run = totals(tmp_path / "runs")
    assert (run.steps, run.micro_batches, run.thinned, run.records_dropped) == (12_000, 12_000, True, 0)
    lines = {line.split()[0]: line.split() for line in ours.stdout.splitlines()}
    assert [repr(run.losses[""].first), repr(run.losses[""].last)] == [lines["losses"][3], lines["losses"][5]]
    assert repr(run.losses[""].best) == lines["lowest"][1]

    points = recorded(tmp_path / "runs").points(latest=True)
    assert [p.count for p in points if p.name == "ml.training.step.duration"] == [12_000]
    assert {p.attributes["ml.outcome"]: p.value for p in points if p.name == "ml.training.steps"} == {"ok": 12_000}

    rows = step_records(tmp_path / "runs")
    numbers = [row["ml.step.number"] for row in rows]
    strides = [row.get("ml.step.stride", 1) for row in rows]
    assert numbers[0] == 0
    assert [n + stride for n, stride in zip(numbers, strides, strict=True)] == [*numbers[1:], 12_000]
    thinned = [row for row in rows if "ml.step.stride" in row]
    assert len(thinned) > 0
    for row in thinned:
        assert row["ml.training.loss.min"] <= row["ml.training.loss"] <= row["ml.training.loss.max"]
        assert row["ml.step.duration.min"] <= row["ml.step.duration"] <= row["ml.step.duration.max"]
    lowest = min(row.get("ml.training.loss.min", row["ml.training.loss"]) for row in rows)
    assert lowest == pytest.approx(float(lines["lowest"][1]), rel=1e-5)
    assert "the curve is thinned" in ours.stderr


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_what_is_slow_at_first_is_done_before_the_first_step(launcher: str, tmp_path: Path) -> None:
    """The encoders of the local store are imported beside the framework, and leave no file where nothing trains."""
    ours = launch(LAUNCHERS[launcher], "patient.py", cwd=tmp_path, OTEL_ML_DIR=str(tmp_path / "runs"))

    assert (ours.stdout, ours.code) == ("before the first step: True True\n", 0)
    assert not (tmp_path / "runs").exists()
