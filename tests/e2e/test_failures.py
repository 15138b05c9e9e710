"""Programs that fail: what they say is what they said without us, and the failure is told with its step and trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.launching import LAUNCHERS, launch, plainly, recorded, totals

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_exception(launcher: str, tmp_path: Path, scratch: Path) -> None:
    """Traceback and exit code are as without us; the step is a failed span, the error and the program's log in it."""
    plain = plainly("exception.py", scratch)
    runs = str(tmp_path / "runs")
    ours = launch(LAUNCHERS[launcher], "exception.py", cwd=tmp_path, OTEL_ML_DIR=runs, OTEL_ML_SUMMARY="0")

    assert (ours.stdout, ours.stderr, ours.code) == (plain.stdout, plain.stderr, plain.code)
    assert plain.code == 1
    run, stored = totals(tmp_path / "runs"), recorded(tmp_path / "runs")
    said = "ValueError: the loss is not a number"
    assert (run.outcome, run.exit_code, run.error, run.steps_failed) == ("failed", 1, said, 1)
    (step,) = stored.spans(name="ml.step", step=5)
    assert (step.status, step.attributes["ml.outcome"]) == ("error", "failed")
    (error,) = stored.logs(event="ml.exception")
    (logged,) = [log for log in stored.logs() if log.body == "batch 5 is not finite"]
    assert (error.trace_id, error.span_id) == (logged.trace_id, logged.span_id) == (step.trace_id, step.span_id)
    assert error.attributes["exception.stacktrace"].endswith(f"{said}\n")
    assert [a.get("ml.step.number") for a in (error.attributes, logged.attributes)] == [5, 5]
    assert error.attributes["ml.run.id"] == stored.resource()["ml.run.id"] == run.run_id


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_interrupt(launcher: str, tmp_path: Path, scratch: Path) -> None:
    """A program that dies of Ctrl-C dies of it under us, with its traceback, and no step of it is called failed."""
    plain = plainly("interrupt.py", scratch)
    runs = str(tmp_path / "runs")
    ours = launch(LAUNCHERS[launcher], "interrupt.py", cwd=tmp_path, OTEL_ML_DIR=runs, OTEL_ML_SUMMARY="0")

    assert (ours.stdout, ours.stderr, ours.code) == (plain.stdout, plain.stderr, plain.code)
    assert plain.code == -2
    run = totals(tmp_path / "runs")
    assert (run.outcome, run.steps, run.steps_failed) == ("interrupted", 5, 0)
