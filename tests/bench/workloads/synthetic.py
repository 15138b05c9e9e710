"""Train next to nothing at a given rate: for the curve of cost over steps per second.

A step is a forward, a backward and an optimizer's step with as little work in each as
torch allows, so a rate is reached that no real training has. What a rate above the
machine's reach comes to, the result says.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import torch
from torch import nn

from tests.bench.loops import Training, run, stopwatch

if TYPE_CHECKING:
    from collections.abc import Iterator

ONE = torch.ones(())


class Scalar(nn.Module):
    """A module of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.ones(()))

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        """Return the number."""
        return self.number


class Idle(torch.optim.Optimizer):
    """An optimizer that takes its steps and changes nothing."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module.parameters(), {"lr": 0.0})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Nothing."""


def paced(rate: float, steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches that come `rate` times a second, as far as the loop keeps up; asleep in between where there is time."""
    period = 1e9 / rate
    due = float(time.perf_counter_ns())
    for _ in range(steps):
        wait = due - time.perf_counter_ns()
        if wait > 100_000:  # the kernel wakes a sleeper some 60 µs late
            time.sleep((wait - 60_000) / 1e9)
        elif wait < -50e6:  # far behind: do not make up for it in a burst
            due -= wait
        due += period
        yield ONE, ONE


def train(task: Training) -> None:
    """Step, and nothing else."""
    for inputs, _ in task.batches:
        task.model(inputs).backward(ONE)
        task.optimizer.step()
        task.watch.lap(1.0)


def main() -> None:
    """Step at the rate in `BENCH_RATE`."""
    torch.set_num_threads(1)
    rate = float(os.environ.get("BENCH_RATE", "1000"))
    watch = stopwatch(3000, warmup=max(2, int(rate / 4)))
    model = Scalar()
    task = Training(
        model=model,
        optimizer=Idle(model),
        loss=lambda output, _: output,
        batches=paced(rate, watch.total),
        batch_size=1,
        watch=watch,
    )
    run(task, plain=train)


if __name__ == "__main__":
    main()
