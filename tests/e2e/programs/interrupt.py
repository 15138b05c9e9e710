"""A program that gets a Ctrl-C after its fifth step: it sends itself the signal."""

import json
import os
import signal

import torch
from torch import nn

# A shell that starts a job in the background has it ignore Ctrl-C; this program must not.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.manual_seed(0)
model = nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for step in range(100):
    if step == 5:
        truth = {"steps": step, "skipped": 0, "failed": 0, "evaluations": 0, "inference": 0}
        print("truth", json.dumps({**truth, "micro_batches": step, "samples": None, "exit": -2}), flush=True)
        os.kill(os.getpid(), signal.SIGINT)
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(torch.randn(4, 8)), torch.randn(4, 1))
    loss.backward()
    optimizer.step()
    print("loss", step, repr(loss.item()))
