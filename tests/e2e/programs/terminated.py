"""A program that is stuck in C when it is told to end: it says READY, then multiplies huge matrices."""

import json

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
huge = torch.zeros(10_000, 10_000)
steps = 5
for step in range(steps):
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(torch.randn(4, 8)), torch.randn(4, 1))
    loss.backward()
    optimizer.step()
    print("loss", step, repr(loss.item()))
truth = {"steps": steps, "skipped": 0, "failed": 0, "evaluations": 0, "inference": 0}
print("truth", json.dumps({**truth, "micro_batches": steps, "samples": None, "exit": -15}))
print("READY", flush=True)
print("finished", (huge @ huge)[0, 0].item())
