"""An evaluation without a DataLoader, three forward passes after every fourth step."""

import json

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
x_test, y_test = torch.randn(3, 4, 8), torch.randn(3, 4, 1)
steps, evaluations = 12, 0
for step in range(steps):
    x, y = torch.randn(4, 8), torch.randn(4, 1)
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    print("loss", step, repr(loss.item()))
    if step % 4 == 3:
        with torch.no_grad():
            losses = [nn.functional.mse_loss(model(x), y).item() for x, y in zip(x_test, y_test, strict=True)]
        evaluations += 1
        print("evaluation", evaluations, repr(sum(losses) / len(losses)))
truth = {"steps": steps, "skipped": 0, "failed": 0, "evaluations": evaluations, "inference": 0}
print("truth", json.dumps({**truth, "micro_batches": steps, "samples": None, "exit": 0}))
