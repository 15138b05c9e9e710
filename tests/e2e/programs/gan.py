"""A GAN without a DataLoader: one step holds a turn of each of its two optimizers."""

import json

import torch
from torch import nn

torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
discriminator = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))
criterion = nn.BCEWithLogitsLoss()
discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
generator_optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3)


def play(step: int, real: torch.Tensor) -> None:
    ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
    noise = torch.randn(len(real), 4)

    discriminator_optimizer.zero_grad()
    fake = generator(noise)
    discriminator_loss = criterion(discriminator(real), ones) + criterion(discriminator(fake.detach()), zeros)
    discriminator_loss.backward()
    discriminator_optimizer.step()

    generator_optimizer.zero_grad()
    generator_loss = criterion(discriminator(fake), ones)
    generator_loss.backward()
    generator_optimizer.step()
    print("loss", step, "discriminator", repr(discriminator_loss.item()))
    print("loss", step, "generator", repr(generator_loss.item()))


steps = 10
for step in range(steps):
    play(step, torch.randn(8, 2) + 3)
truth = {"steps": steps, "skipped": 0, "failed": 0, "evaluations": 0, "inference": 0, "micro_batches": 2 * steps}
print("truth", json.dumps({**truth, "samples": None, "exit": 0, "optimizers": ["discriminator", "generator"]}))
