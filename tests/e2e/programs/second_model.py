"""From step 5 on a second model, with an optimizer of its own, is trained instead of the first."""

import json

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Late(nn.Module):
    """A class that nobody had seen before step 5."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x).tanh()


torch.manual_seed(0)
loader = DataLoader(TensorDataset(torch.randn(80, 8), torch.randn(80, 1)), batch_size=8)
model: nn.Module = nn.Linear(8, 1)
optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for step, (x, y) in enumerate(loader):
    if step == 5:
        model = Late()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    print("loss", step, repr(loss.item()))
truth = {"steps": 10, "skipped": 0, "failed": 0, "evaluations": 0, "inference": 0}
print("truth", json.dumps({**truth, "micro_batches": 10, "samples": 80, "exit": 0}))
