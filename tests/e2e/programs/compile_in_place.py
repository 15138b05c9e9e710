"""A module compiled in place, by its own `compile()`."""

import json

import torch
import torch._dynamo.utils
from torch import nn


class Net(nn.Module):
    """Two layers; torch compiles the forward of a class of ours, not that of its own containers."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(8, 16), nn.Linear(16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.hidden(x).tanh())


torch.manual_seed(0)
model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
model.compile(backend="aot_eager")
steps = 6
for step in range(steps):
    x, y = torch.randn(4, 8), torch.randn(4, 1)
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    print("loss", step, repr(loss.item()))
counters = torch._dynamo.utils.counters
compiled = {"graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values())}
print("compiled", json.dumps(compiled))
truth = {"steps": steps, "skipped": 0, "failed": 0, "evaluations": 0, "inference": 0}
print("truth", json.dumps({**truth, "micro_batches": steps, "samples": None, "exit": 0}))
