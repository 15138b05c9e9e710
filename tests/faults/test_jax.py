"""However a JAX program ends, it ends as it would have, and what it did is on disk."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from tests.e2e.launching import LAUNCHERS, RUN, recorded, step_records, totals
from tests.faults.processes import (
    at_best,
    killed_while_watched,
    missing_s,
    run,
    side_by_side,
    steps_said,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.launching import Outcome


def test_leaving_while_the_device_computes(tmp_path: Path) -> None:
    """A program that ends while its device still computes ends well; what was not ready in time is absent."""

    def work(launcher: str) -> Outcome:
        return run(LAUNCHERS[launcher], "compiled.py", "busy", cwd=tmp_path, OTEL_ML_DIR=str(tmp_path / launcher))

    outcomes = side_by_side(work, LAUNCHERS)

    assert {(o.code, o.stdout.splitlines()[-1]) for o in outcomes.values()} == {(0, "LEAVING False")}
    for launcher in LAUNCHERS:
        said = totals(tmp_path / launcher)
        assert (said.outcome, said.steps, said.errors) == ("finished", 3, 0)


def test_killed(tmp_path: Path) -> None:
    """SIGKILL costs at most the last second, losses included."""

    def killed(runs: Path) -> float:
        looks, outcome = killed_while_watched(tmp_path, runs, "compiled.py", "endless")
        said = steps_said(outcome)
        losses = [float(loss) for _, loss, _ in said]
        kept = [row["ml.training.loss"] for row in step_records(runs)]
        assert outcome.code == -signal.SIGKILL
        assert looks[-1][1] <= len(kept) <= len(said) + 1
        assert kept[: len(losses)] == losses[: len(kept)]
        return missing_s(looks, said)

    assert at_best(killed, tmp_path) <= 1


def test_raising(tmp_path: Path) -> None:
    """An exception ends the run as it ends the program, and is told with its step."""
    runs = tmp_path / "runs"
    outcome = run(RUN, "compiled.py", "raising", cwd=tmp_path, OTEL_ML_DIR=str(runs))

    assert outcome.code == 1
    assert "ValueError: enough" in outcome.stderr
    said = totals(runs)
    assert (said.outcome, said.steps + said.steps_failed, said.error) == ("failed", 2, "ValueError: enough")
    (told,) = recorded(runs).logs(event="ml.exception")
    assert told.attributes["ml.step.number"] == 1
