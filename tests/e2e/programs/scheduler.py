"""A learning-rate schedule stepped after the optimizer; torch must find no reason to warn."""

import json
import warnings

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
steps, rates = 12, []
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps + 1)
    for step in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(torch.randn(4, 8)), torch.randn(4, 1))
        loss.backward()
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
        print("loss", step, repr(loss.item()), "lr", repr(rates[-1]))
print("warnings", [str(warning.message) for warning in caught])
truth = {"steps": steps, "skipped": 0, "failed": 0, "evaluations": 0, "inference": 0}
print("truth", json.dumps({**truth, "micro_batches": steps, "samples": None, "exit": 0, "learning_rates": rates}))
