"""Gradient accumulation without a DataLoader: three micro-batches a step."""

import json

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
steps, accumulate = 8, 3
for step in range(steps):
    optimizer.zero_grad()
    parts = []
    for _ in range(accumulate):
        loss = nn.functional.mse_loss(model(torch.randn(4, 8)), torch.randn(4, 1)) / accumulate
        loss.backward()
        parts.append(loss.item())
    optimizer.step()
    print("loss", step, repr(sum(parts)))
truth = {"steps": steps, "skipped": 0, "failed": 0, "evaluations": 0, "inference": 0}
print("truth", json.dumps({**truth, "micro_batches": accumulate * steps, "samples": None, "exit": 0}))
