"""LBFGS: each step calls a closure several times, and the first loss is the step's."""

import json

import torch
from torch import nn

torch.manual_seed(0)
x, y = torch.randn(32, 8), torch.randn(32, 1)
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=5)
backwards = 0


def closure() -> torch.Tensor:
    global backwards
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    backwards += 1
    return loss


steps = 6
for step in range(steps):
    print("loss", step, repr(optimizer.step(closure).item()))
truth = {"steps": steps, "skipped": 0, "failed": 0, "evaluations": 0, "inference": 0}
print("truth", json.dumps({**truth, "micro_batches": backwards, "samples": None, "exit": 0}))
