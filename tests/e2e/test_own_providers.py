"""Programs that set up OpenTelemetry themselves keep what they set up, and get ours through it."""

from __future__ import annotations

import json
from itertools import groupby
from typing import TYPE_CHECKING

import pytest

from tests.e2e.launching import LAUNCHERS, launch, plainly, recorded, step_records, totals

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_own_providers(launcher: str, tmp_path: Path, scratch: Path) -> None:
    """A program's own providers get its telemetry as without us, and ours beside it: one stream under its own View."""
    plain = plainly("own_providers.py", scratch)
    ours = launch(LAUNCHERS[launcher], "own_providers.py", cwd=tmp_path, OTEL_ML_DIR=str(tmp_path / "runs"))

    assert (ours.stdout, ours.code) == (plain.stdout, plain.code)
    exported = json.loads((tmp_path / "telemetry.json").read_text())
    assert exported["durations"] == [[[0.5, 60.0], 5]]
    assert exported["run"] == totals(tmp_path / "runs").run_id
    # The steps come as one event or as several: the drain may take a turn between two of them.
    events = [name for name, _ in groupby("ml.steps" if e == "ml.step" else e for e in exported["events"])]
    assert events == ["ml.run.started", "ml.config", "ml.steps", "ml.diagnosis", "ml.run.finished"]
    steps = {trace for name, trace in exported["spans"] if name == "ml.step"}
    assert len(steps) == 5
    assert {trace for name, trace in exported["spans"] if name == "own"} == steps
    assert [name for name, _ in exported["spans"]].count("ml.run") == 1
    stored = recorded(tmp_path / "runs")
    assert sorted(s.name for s in stored.spans()) == sorted(name for name, _ in exported["spans"])
    assert len(step_records(tmp_path / "runs")) == totals(tmp_path / "runs").steps == 5
