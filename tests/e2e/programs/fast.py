"""A long training of a tiny model, as fast as torch goes: thousands of steps a second."""

import argparse
import json

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=6000)
steps = parser.parse_args().steps
torch.manual_seed(0)
torch.set_num_threads(1)
x, y = torch.randn(16, 32), torch.randn(16, 1)
model = nn.Linear(32, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
losses = []
for _step in range(steps):
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print("losses", len(losses), "first", repr(losses[0]), "last", repr(losses[-1]))
print("lowest", repr(min(losses)), "highest", repr(max(losses)))
truth = {"steps": steps, "skipped": 0, "failed": 0, "evaluations": 0, "inference": 0}
print("truth", json.dumps({**truth, "micro_batches": steps, "samples": None, "exit": 0}))
