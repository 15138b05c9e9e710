"""Train a tiny MLP: a step of about a third of a millisecond, where overhead shows most."""

from __future__ import annotations

from itertools import cycle, islice

import torch
from torch import nn

from tests.bench.loops import Training, run, sized, stopwatch


def main() -> None:
    """Train on batches that are ready in memory."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    watch = stopwatch(6000, warmup=300)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
    batch = sized(32)
    batches = [(torch.randn(batch, 32), torch.randint(0, 10, (batch,))) for _ in range(64)]
    run(
        Training(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
            loss=nn.CrossEntropyLoss(),
            batches=islice(cycle(batches), watch.total),
            batch_size=batch,
            watch=watch,
        )
    )


if __name__ == "__main__":
    main()
