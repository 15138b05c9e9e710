"""Counts garbage collections by generation during a training of a few hundred steps and some seconds."""

import gc
import json
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

counts = [0, 0, 0]


def count(phase, info):
    counts[info["generation"]] += phase == "start"


model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
loader = DataLoader(TensorDataset(torch.randn(160, 4), torch.randn(160, 1)), batch_size=4, shuffle=True)
gc.collect()
gc.callbacks.append(count)
for _ in range(15):
    for x, y in loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
    time.sleep(0.25)
gc.callbacks.remove(count)
settings = [gc.isenabled(), gc.get_threshold(), gc.get_debug(), gc.get_freeze_count(), len(gc.garbage)]
print("facts", json.dumps({"full": counts[2], "settings": settings}))
