"""The smallest training there is; the programs beside it import it."""

import torch
from torch import nn


class Tiny:
    """A linear model with its optimizer and a batch."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(4, 8, generator=generator)
        self.y = torch.randn(4, 1, generator=generator)
        self.model = nn.Linear(8, 1)
        with torch.no_grad():
            self.model.weight.copy_(torch.randn(1, 8, generator=generator))
            self.model.bias.zero_()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
        self.made = 0

    def step(self) -> float:
        self.optimizer.zero_grad()
        loss = nn.functional.mse_loss(self.model(self.x), self.y)
        loss.backward()
        self.optimizer.step()
        self.made += 1
        return loss.item()

    def train(self, steps: int) -> None:
        for _ in range(steps):
            number = self.made
            print("loss", number, repr(self.step()), flush=True)
