"""A program that only serves: it calls a model under `no_grad` and never trains."""

import json

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
calls, rows = 20, 0
with torch.no_grad():
    for call in range(calls):
        x = torch.randn(4, 8)
        print("answer", call, model(x).argmax(dim=1).tolist())
        rows += len(x)
truth = {"steps": 0, "skipped": 0, "failed": 0, "evaluations": 0, "inference": calls, "inference_samples": rows}
print("truth", json.dumps({**truth, "micro_batches": 0, "samples": None, "exit": 0}))
