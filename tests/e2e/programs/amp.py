"""Mixed precision on the CPU with a GradScaler; the gradients of step 3 overflow, so it is skipped."""

import json

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
attempts = 10
for step in range(attempts):
    x, y = torch.randn(4, 8), torch.randn(4, 1)
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nn.functional.mse_loss(model(x).float(), y)
    scaler.scale(loss).backward()
    if step == 3:
        model[0].weight.grad[0, 0] = torch.inf
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    print("loss", step, repr(loss.item()), "scale", scaler.get_scale())
truth = {"steps": attempts - 1, "skipped": 1, "failed": 0, "evaluations": 0, "inference": 0}
print("truth", json.dumps({**truth, "micro_batches": attempts, "samples": None, "exit": 0, "skipped_steps": [3]}))
