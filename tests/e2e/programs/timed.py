"""Sleeps planted in every phase of a step; each is timed where it happens and printed by phase.

    data_wait the dataset     forward the model and the loss     backward a custom Function
    optimizer its step        residual what follows the step

`planted {"step": 0, "data_wait": 0.0121, …}`, in seconds, once a step.
"""

import argparse
import json
import time
from collections import Counter

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

planted_ns: Counter[str] = Counter()


def pause(phase: str, seconds: float) -> None:
    started = time.perf_counter_ns()
    time.sleep(seconds)
    planted_ns[phase] += time.perf_counter_ns() - started


class SlowData(Dataset[Tensor]):
    """Rows that take a while to load: 3 ms each."""

    def __init__(self, rows: int) -> None:
        self.rows = torch.randn(rows, 8)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        pause("data_wait", 0.003)
        return self.rows[index]


class SlowBackward(torch.autograd.Function):
    """The identity, with a backward pass that takes 9 ms."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        pause("backward", 0.009)
        return gradient


class SlowModel(nn.Module):
    """A linear model that takes 6 ms."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        pause("forward", 0.006)
        return SlowBackward.apply(self.layer(x))


class SlowSGD(torch.optim.SGD):
    """SGD with a step that takes 7 ms."""

    def step(self, closure: None = None) -> None:
        pause("optimizer", 0.007)
        super().step(closure)


parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=20)
steps = parser.parse_args().steps
torch.manual_seed(0)
loader = DataLoader(SlowData(4 * steps), batch_size=4)
model = SlowModel()
optimizer = SlowSGD(model.parameters(), lr=0.05)
planted = []
for x in loader:
    optimizer.zero_grad()
    output = model(x)
    pause("forward", 0.004)  # a slow loss
    loss = output.square().mean()
    loss.backward()
    optimizer.step()
    pause("residual", 0.005)
    planted.append({phase: ns / 1e9 for phase, ns in planted_ns.items()})
    planted_ns.clear()
for step, seconds in enumerate(planted):
    print("planted", json.dumps({"step": step, **seconds}))
truth = {"steps": steps, "skipped": 0, "failed": 0, "evaluations": 0, "inference": 0}
print("truth", json.dumps({**truth, "micro_batches": steps, "samples": 4 * steps, "exit": 0}))
