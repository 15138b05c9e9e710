"""Gradients clipped by their norm: the norm that torch returns is printed."""

import json

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
steps, norms = 12, []
for step in range(steps):
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(torch.randn(4, 8)), torch.randn(4, 1))
    loss.backward()
    norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
    optimizer.step()
    print("loss", step, repr(loss.item()), "norm", repr(norms[-1]))
truth = {"steps": steps, "skipped": 0, "failed": 0, "evaluations": 0, "inference": 0}
print("truth", json.dumps({**truth, "micro_batches": steps, "samples": None, "exit": 0, "grad_norms": norms}))
