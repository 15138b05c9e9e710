"""TraceML: its launcher, its patches, and its annotation around the step."""

# mypy: disable-error-code="import-not-found, import-untyped, no-untyped-call, unused-ignore"
from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench.conditions import TRAININGS, Condition

if TYPE_CHECKING:
    from tests.bench.loops import Training

CONDITIONS = (
    Condition(
        "traceml",
        "TraceML",
        "init(), trace_step() around the step",
        packages=("traceml-ai",),
        loops=__name__,
        evidence="logs/*/*",
        command=("{bin}/traceml", "run", "{script}", "--mode=summary"),
        workloads=TRAININGS,
    ),
)


def train(task: Training) -> None:
    """Train, each step inside `trace_step`."""
    import traceml_ai as traceml

    traceml.init(mode="auto")
    for inputs, targets in task.batches:
        with traceml.trace_step(task.model):
            task.optimizer.zero_grad()
            loss = task.loss(task.model(inputs), targets)
            loss.backward()
            task.optimizer.step()
        task.watch.lap(loss.item())
