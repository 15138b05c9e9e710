"""An evaluation over its own DataLoader after every fifth step."""

import json

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
train_loader = DataLoader(TensorDataset(torch.randn(64, 8), torch.randn(64, 1)), batch_size=8, shuffle=True)
test_loader = DataLoader(TensorDataset(torch.randn(24, 8), torch.randn(24, 1)), batch_size=8)
model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.1), nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
step = samples = evaluations = 0
for _epoch in range(2):
    for x, y in train_loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        print("loss", step, repr(loss.item()))
        step += 1
        samples += len(x)
        if step % 5 == 0:
            model.eval()
            with torch.no_grad():
                losses = [nn.functional.mse_loss(model(x), y).item() for x, y in test_loader]
            model.train()
            evaluations += 1
            print("evaluation", evaluations, repr(sum(losses) / len(losses)))
truth = {"steps": step, "skipped": 0, "failed": 0, "evaluations": evaluations, "inference": 0}
print("truth", json.dumps({**truth, "micro_batches": step, "samples": samples, "exit": 0}))
