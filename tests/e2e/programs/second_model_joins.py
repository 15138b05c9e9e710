"""At step 5 a second model, with an optimizer of its own, joins the first: from then on each batch trains both."""

import json

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
loader = DataLoader(TensorDataset(torch.randn(80, 8), torch.randn(80, 1)), batch_size=8)
pairs = {}


def add(name: str) -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 1))
    pairs[name] = (model, torch.optim.SGD(model.parameters(), lr=0.05))


add("first")
backwards = 0
for step, (x, y) in enumerate(loader):
    if step == 5:
        add("second")
    for name, (model, optimizer) in pairs.items():
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        backwards += 1
        print("loss", step, name, repr(loss.item()))
truth = {"steps": 10, "skipped": 0, "failed": 0, "evaluations": 0, "inference": 0, "micro_batches": backwards}
print("truth", json.dumps({**truth, "samples": 80, "exit": 0, "optimizers": ["first", "second"]}))
