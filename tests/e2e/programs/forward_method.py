"""A model called by its `forward` method, past torch's own call machinery."""

import json

import torch
from torch import nn


class Net(nn.Module):
    """Two layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x).relu()).relu())


torch.manual_seed(0)
model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
steps = 12
for step in range(steps):
    x, y = torch.randn(4, 8), torch.randn(4, 1)
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model.forward(x), y)
    loss.backward()
    optimizer.step()
    print("loss", step, repr(loss.item()))
truth = {"steps": steps, "skipped": 0, "failed": 0, "evaluations": 0, "inference": 0}
print("truth", json.dumps({**truth, "micro_batches": steps, "samples": None, "exit": 0}))
