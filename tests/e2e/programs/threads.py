"""Two threads that train a model each, and a third that only fetches batches."""

import json
import threading

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
steps = 10
models = {name: nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)) for name in ("a", "b")}
batches = {name: [(torch.randn(4, 8), torch.randn(4, 1)) for _ in range(steps)] for name in models}
losses: dict[str, list[float]] = {name: [] for name in models}
fetched: list[int] = []
loader = DataLoader(TensorDataset(torch.randn(40, 8)), batch_size=8, generator=torch.Generator())


def train(name: str) -> None:
    optimizer = torch.optim.SGD(models[name].parameters(), lr=0.05)
    for x, y in batches[name]:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(models[name](x), y)
        loss.backward()
        optimizer.step()
        losses[name].append(loss.item())


def fetch() -> None:
    for _epoch in range(4):
        fetched.extend(len(x) for (x,) in loader)


workers = [threading.Thread(target=train, args=(name,)) for name in models] + [threading.Thread(target=fetch)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
for name, values in losses.items():
    for step, value in enumerate(values):
        print("loss", step, name, repr(value))
print("fetched", len(fetched), sum(fetched))
truth = {"steps": 2 * steps, "skipped": 0, "failed": 0, "evaluations": 0, "inference": 0}
print("truth", json.dumps({**truth, "micro_batches": 2 * steps, "samples": None, "exit": 0}))
