"""The examples that go wrong, and the one that serves: each has the trouble that it is named after, and no other."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

import pytest

from tests.e2e.examples import EMPTY, REQUESTS, STEPS, TROUBLES
from tests.e2e.launching import step_records, totals

if TYPE_CHECKING:
    from otel_ml.totals import RunTotals
    from tests.e2e.examples import Examples

MIDDLE = STEPS // 2
WELL = {"outcome": "finished", "steps": STEPS, "skipped": 0, "failed": 0, "recompiles": 0, "nonfinite": 0, "saved": 1}
DIFFERS: dict[str, dict[str, object]] = {
    "nan": {"nonfinite": STEPS - MIDDLE},
    "skipped": {"steps": MIDDLE, "skipped": STEPS - MIDDLE},
    "recompiles": {"recompiles": 7},  # then torch gives up
    "crash": {"outcome": "failed", "steps": MIDDLE, "failed": 1, "saved": 0},
}


def seen(run: RunTotals) -> dict[str, object]:
    """What a trouble may change."""
    return {
        "outcome": run.outcome, "steps": run.steps, "skipped": run.steps_skipped, "failed": run.steps_failed,
        "recompiles": run.recompiles, "nonfinite": run.nonfinite.get("loss", 0), "saved": run.checkpoints_saved,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("trouble", TROUBLES)
def test_troubles(trouble: str, examples: Examples) -> None:
    """Each trouble is seen as what it is, and nothing else is seen."""
    ended, runs = examples[trouble].outcome, examples[trouble].runs
    assert ended.code == (1 if trouble == "crash" else 0), ended.stderr
    found = totals(runs)
    assert seen(found) == {**WELL, **DIFFERS.get(trouble, {})}
    waited = [row["ml.step.phase.data_wait"] / row["ml.step.duration"] for row in step_records(runs)]
    assert (median(waited) > 0.2) is (trouble == "slow-data")


@pytest.mark.slow
def test_serving(examples: Examples) -> None:
    """Each forward of the served model is a request, with the samples that it was given; those that raise too."""
    ended = examples["next-character"].outcome
    assert ended.code == 0, ended.stderr
    refused = REQUESTS // EMPTY
    assert ended.stdout.splitlines()[-1] == f"{REQUESTS} requests, {refused} refused"
    found = totals(examples["next-character"].runs)
    asked = [1 + number % 4 for number in range(REQUESTS) if number % EMPTY != EMPTY - 1]
    forwards = 8 * len(asked) + refused
    assert (found.steps, found.inference.count, found.inference_samples) == (0, forwards, 8 * sum(asked))
