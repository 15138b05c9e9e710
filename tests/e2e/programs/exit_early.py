"""A program that leaves early, by `sys.exit(3)` in the middle of its loop."""

import json
import sys

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for step in range(100):
    if step == 5:
        truth = {"steps": step, "skipped": 0, "failed": 0, "evaluations": 0, "inference": 0}
        print("truth", json.dumps({**truth, "micro_batches": step, "samples": None, "exit": 3}))
        sys.exit(3)
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(torch.randn(4, 8)), torch.randn(4, 1))
    loss.backward()
    optimizer.step()
    print("loss", step, repr(loss.item()))
