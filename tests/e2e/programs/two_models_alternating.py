"""Two models with an optimizer each, trained in alternation: each batch is a step of one of them."""

import json

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
loader = DataLoader(TensorDataset(torch.randn(96, 8), torch.randn(96, 1)), batch_size=8)
even = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 1))
odd = nn.Linear(8, 1)
even_optimizer = torch.optim.SGD(even.parameters(), lr=0.05)
odd_optimizer = torch.optim.AdamW(odd.parameters(), lr=0.01)
for step, (x, y) in enumerate(loader):
    name, model, optimizer = ("odd", odd, odd_optimizer) if step % 2 else ("even", even, even_optimizer)
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    print("loss", step, name, repr(loss.item()))
truth = {"steps": 12, "skipped": 0, "failed": 0, "evaluations": 0, "inference": 0, "micro_batches": 12}
print("truth", json.dumps({**truth, "samples": 96, "exit": 0, "optimizers": ["even", "odd"]}))
