"""A compiled module that is compiled again for each of three batch sizes."""

import json

import torch
import torch._dynamo.utils
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
compiled_model = torch.compile(model, backend="aot_eager", dynamic=False)
steps = 6
for step in range(steps):
    x, y = torch.randn(2 + step // 2, 8), torch.randn(2 + step // 2, 1)
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(compiled_model(x), y)
    loss.backward()
    optimizer.step()
    print("loss", step, repr(loss.item()))
counters = torch._dynamo.utils.counters
compiled = {"graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values())}
print("compiled", json.dumps(compiled))
truth = {"steps": steps, "skipped": 0, "failed": 0, "evaluations": 0, "inference": 0}
print(
    "truth", json.dumps({**truth, "micro_batches": steps, "samples": None, "exit": 0, "compiles": 3, "recompiles": 2})
)
