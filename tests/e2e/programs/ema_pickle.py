"""A model copied deeply for an average of its weights, pickled, and the average evaluated at the end."""

import copy
import hashlib
import io
import json
import pickle
import zipfile

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
average = copy.deepcopy(model).requires_grad_(False)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
steps = 10
for step in range(steps):
    x, y = torch.randn(4, 8), torch.randn(4, 1)
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    for mean, parameter in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(parameter.detach(), 0.1)
    print("loss", step, repr(loss.item()))
    if step == 4:
        model_again = pickle.loads(pickle.dumps(model))
        snapshot = copy.deepcopy(model)
        print("attributes", sorted(vars(model)) == sorted(vars(model_again)) == sorted(vars(snapshot)))

saved = io.BytesIO()
torch.save(model, saved)
with zipfile.ZipFile(saved) as archive:
    [pickled] = [name for name in archive.namelist() if name.endswith("data.pkl")]
    print("data.pkl", hashlib.sha256(archive.read(pickled)).hexdigest())
with torch.no_grad():
    print("average", repr(average(torch.ones(2, 8)).sum().item()))
    print("snapshot", repr(snapshot(torch.ones(2, 8)).sum().item()))
truth = {"steps": steps, "skipped": 0, "failed": 0, "evaluations": 1, "inference": 0}
print("truth", json.dumps({**truth, "micro_batches": steps, "samples": None, "exit": 0}))
