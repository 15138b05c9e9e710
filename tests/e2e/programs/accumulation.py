"""Gradient accumulation: four micro-batches a step, each loss divided by four."""

import json

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
loader = DataLoader(TensorDataset(torch.randn(96, 8), torch.randn(96, 1)), batch_size=4)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
accumulate = 4
step = samples = 0
parts: list[float] = []
for x, y in loader:
    loss = nn.functional.mse_loss(model(x), y) / accumulate
    loss.backward()
    parts.append(loss.item())
    samples += len(x)
    if len(parts) == accumulate:
        optimizer.step()
        optimizer.zero_grad()
        print("loss", step, repr(sum(parts)))
        parts = []
        step += 1
truth = {"steps": step, "skipped": 0, "failed": 0, "evaluations": 0, "inference": 0}
print("truth", json.dumps({**truth, "micro_batches": accumulate * step, "samples": samples, "exit": 0}))
