"""A training that goes wrong: from step 6 on its loss is no number."""

import json
import math

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
steps, nonfinite = 10, 0
for step in range(steps):
    x = torch.randn(4, 8)
    if step == 6:
        x[0, 0] = torch.nan
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x), torch.randn(4, 1))
    loss.backward()
    optimizer.step()
    nonfinite += not math.isfinite(loss.item())
    print("loss", step, repr(loss.item()))
truth = {"steps": steps, "skipped": 0, "failed": 0, "evaluations": 0, "inference": 0, "micro_batches": steps}
print("truth", json.dumps({**truth, "samples": None, "exit": 0, "nonfinite_losses": nonfinite}))
