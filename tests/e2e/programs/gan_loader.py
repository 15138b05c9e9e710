"""A GAN over a DataLoader: one step holds a turn of each of its two optimizers."""

import json

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

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


loader = DataLoader(TensorDataset(torch.randn(40, 2) + 3), batch_size=8, shuffle=True)
step = 0
for _epoch in range(2):
    for (real,) in loader:
        play(step, real)
        step += 1
truth = {"steps": step, "skipped": 0, "failed": 0, "evaluations": 0, "inference": 0, "micro_batches": 2 * step}
print("truth", json.dumps({**truth, "samples": 8 * step, "exit": 0, "optimizers": ["discriminator", "generator"]}))
