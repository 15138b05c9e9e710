"""A program whose sixth batch is bad: it logs an error and dies of a ValueError inside the step."""

import json
import logging

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x_all = torch.randn(80, 8)
x_all[45, 2] = torch.nan
loader = DataLoader(TensorDataset(x_all, torch.randn(80, 1)), batch_size=8)
model = nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
truth = {"steps": 5, "skipped": 0, "failed": 1, "evaluations": 0, "inference": 0}
print("truth", json.dumps({**truth, "micro_batches": 5, "samples": None, "exit": 1, "failed_steps": [5]}))
for step, (x, y) in enumerate(loader):
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x), y)
    if loss.isnan():
        logging.getLogger("training").error("batch %d is not finite", step)
        raise ValueError("the loss is not a number")
    loss.backward()
    optimizer.step()
    print("loss", step, repr(loss.item()))
