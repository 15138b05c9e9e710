"""The examples that go wrong, and the one that serves: each has the trouble that it is named after, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.launching import RUN, launch, totals

if TYPE_CHECKING:
    from otel_ml.totals import RunTotals

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
STEPS = 60
MIDDLE = STEPS // 2
WELL = {"outcome": "finished", "steps": STEPS, "skipped": 0, "failed": 0, "recompiles": 0, "nonfinite": 0, "saved": 1}


def seen(run: RunTotals) -> dict[str, object]:
    """What a trouble may change."""
    return {
        "outcome": run.outcome, "steps": run.steps, "skipped": run.steps_skipped, "failed": run.steps_failed,
        "recompiles": run.recompiles, "nonfinite": run.nonfinite.get("loss", 0), "saved": run.checkpoints_saved,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "code", "differs"),
    [
        ("none", 0, {}),
        ("nan", 0, {"nonfinite": STEPS - MIDDLE}),
        ("spike", 0, {}),
        ("skipped", 0, {"steps": MIDDLE, "skipped": STEPS - MIDDLE}),
        ("slow-data", 0, {}),
        ("slowdown", 0, {}),
        ("recompiles", 0, {"recompiles": 7}),  # then torch gives up
        ("checkpoint-failed", 0, {}),
        ("stall", 0, {}),
        ("crash", 1, {"outcome": "failed", "steps": MIDDLE, "failed": 1, "saved": 0}),
    ],
)
def test_troubles(trouble: str, code: int, differs: dict[str, object], tmp_path: Path) -> None:
    """Each trouble is seen as what it is, and nothing else is seen."""
    words = (trouble, f"--steps={STEPS}", "--stall=0.1")
    ended = launch(RUN, EXAMPLES / "troubles.py", *words, cwd=tmp_path, OTEL_ML_DIR=str(tmp_path / "runs"))
    assert ended.code == code, ended.stderr
    found = totals(tmp_path / "runs")
    assert seen(found) == {**WELL, **differs}
    waited = found.phases["data_wait"] / found.step_time.total_s
    assert (waited > 0.2) is (trouble == "slow-data")


@pytest.mark.slow
def test_serving(tmp_path: Path) -> None:
    """Each forward of the served model is a request, with the samples that it was given; those that raise too."""
    words = ("--requests=40", "--empty=10")
    ended = launch(RUN, EXAMPLES / "torch_serve.py", *words, cwd=tmp_path, OTEL_ML_DIR=str(tmp_path / "runs"))
    assert ended.code == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "40 requests, 4 refused"
    found = totals(tmp_path / "runs")
    asked = [1 + number % 4 for number in range(40) if number % 10 != 9]
    assert (found.steps, found.inference.count, found.inference_samples) == (0, 8 * len(asked) + 4, 8 * sum(asked))
