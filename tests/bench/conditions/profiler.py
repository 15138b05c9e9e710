"""torch.profiler on a schedule: two steps of a hundred traced, written as Chrome traces."""

# mypy: disable-error-code="import-not-found, import-untyped, no-untyped-call, unused-ignore"
from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench.conditions import TRAININGS, Condition

if TYPE_CHECKING:
    from tests.bench.loops import Training

CONDITIONS = (
    Condition(
        "profiler",
        "torch.profiler, 2 steps of 100",
        "with, step() a step",
        loops=__name__,
        evidence="profile/*.json",
        workloads=TRAININGS,
    ),
)


def train(task: Training) -> None:
    """Train under the profiler."""
    from torch.profiler import ProfilerActivity, profile, schedule, tensorboard_trace_handler

    with profile(
        activities=[ProfilerActivity.CPU],
        schedule=schedule(wait=97, warmup=1, active=2),
        on_trace_ready=tensorboard_trace_handler("profile"),
    ) as profiler:
        for inputs, targets in task.batches:
            task.optimizer.zero_grad()
            loss = task.loss(task.model(inputs), targets)
            loss.backward()
            task.optimizer.step()
            value = loss.item()
            profiler.step()
            task.watch.lap(value)
