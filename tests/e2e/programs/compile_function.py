"""A compiled function that calls the model and computes the loss."""

import json

import torch
import torch._dynamo.utils
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)


@torch.compile(backend="aot_eager")
def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(model(x), y)


steps = 6
for step in range(steps):
    optimizer.zero_grad()
    loss = loss_of(torch.randn(4, 8), torch.randn(4, 1))
    loss.backward()
    optimizer.step()
    print("loss", step, repr(loss.item()))
counters = torch._dynamo.utils.counters
compiled = {"graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values())}
print("compiled", json.dumps(compiled))
truth = {"steps": steps, "skipped": 0, "failed": 0, "evaluations": 0, "inference": 0}
print("truth", json.dumps({**truth, "micro_batches": steps, "samples": None, "exit": 0}))
