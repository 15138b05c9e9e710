"""A program that serves batches of many sizes under `inference_mode`, one decorated call each."""

import json

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
sizes = [1, 2, 3, 5, 8, 13, 21, 34, 1, 1, 1, 64]


@torch.inference_mode()
def answer(x: torch.Tensor) -> list[int]:
    return model(x).argmax(dim=1).tolist()


for call, size in enumerate(sizes):
    print("answer", call, answer(torch.randn(size, 8)))
truth = {"steps": 0, "skipped": 0, "failed": 0, "evaluations": 0, "inference": len(sizes), "micro_batches": 0}
print("truth", json.dumps({**truth, "samples": None, "exit": 0, "inference_samples": sum(sizes), "batches": sizes}))
