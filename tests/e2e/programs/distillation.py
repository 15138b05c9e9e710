"""A student that learns from a teacher: inside each step the teacher answers without gradients."""

import json

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
loader = DataLoader(TensorDataset(torch.randn(96, 8)), batch_size=8)
teacher = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
student = nn.Linear(8, 4)
optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
for step, (x,) in enumerate(loader):
    with torch.no_grad():
        target = teacher(x).softmax(dim=1)
    loss = nn.functional.cross_entropy(student(x), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print("loss", step, repr(loss.item()))
truth = {"steps": 12, "skipped": 0, "failed": 0, "evaluations": 0, "inference": 0}
print("truth", json.dumps({**truth, "micro_batches": 12, "samples": 96, "exit": 0}))
