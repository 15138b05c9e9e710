"""Trained on inputs that are attacked first: the attack's gradients are thrown away before the step's own."""

import json

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
loader = DataLoader(TensorDataset(torch.randn(64, 8), torch.randint(0, 4, (64,))), batch_size=8)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step, (x, y) in enumerate(loader):
    shift = torch.zeros_like(x, requires_grad=True)
    for _ in range(3):
        nn.functional.cross_entropy(model(x + shift), y).backward()
        shift = (shift + 0.01 * shift.grad.sign()).detach().requires_grad_()
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x + shift.detach()), y)
    loss.backward()
    optimizer.step()
    print("loss", step, repr(loss.item()))
truth = {"steps": 8, "skipped": 0, "failed": 0, "evaluations": 0, "inference": 0}
print("truth", json.dumps({**truth, "micro_batches": 32, "samples": 64, "exit": 0}))
