"""Seeded trainings of several kinds; the state of every generator when the program began and after each."""

import random
import time

import numpy as np
import torch
from cases import case, digest, main, seed
from torch import nn, optim
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

# Nobody seeded these yet. What can be told is whether a number was drawn since they were filled.
START = {
    "torch": torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(torch.initial_seed()).get_state()),
    "random": [random.getstate()[1][-1], random.getstate()[2]],
    "numpy": [str(part) for part in np.random.get_state()[2:]],
}


@case
def untouched_at_the_start():
    return START


def noisy(size):
    """A batch made with all three generators."""
    return torch.randn(size, 4) + random.random() + float(np.random.rand())


def run(model, optimizer, steps=30, clip=None, scheduler=None):
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(noisy(8)).float().square().mean()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if scheduler:
            scheduler.step()
        losses.append(loss.item())
    return [digest(losses), digest(model.state_dict()), digest(optimizer.state_dict())]


@case
def perceptron_with_dropout():
    model = nn.Sequential(nn.Linear(4, 32), nn.Dropout(0.3), nn.ReLU(), nn.Linear(32, 1))
    return run(model, optim.SGD(model.parameters(), lr=0.05, momentum=0.9), clip=1.0)


@case
def recurrent():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.LSTM(4, 8, 2, dropout=0.2), nn.Linear(8, 1)

        def forward(self, x):
            return self.head(self.body(x)[0])

    model = Recurrent()
    optimizer = optim.AdamW(model.parameters(), lr=0.01)
    return run(model, optimizer, scheduler=optim.lr_scheduler.CosineAnnealingLR(optimizer, 30))


@case
def transformer_with_checkpoints():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
            self.second = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

        def forward(self, x):
            return checkpoint(self.second, self.first(x[None]), use_reentrant=False)

    model = Model()
    return run(model, optim.Adam(model.parameters(), lr=0.01))


@case
def compiled():
    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 1))
    model.compile(backend="aot_eager")
    return run(model, optim.Adam(model.parameters(), lr=0.01), steps=12)


@case
def mixed_precision():
    model = nn.Linear(4, 1)
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(noisy(8)).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return [digest(losses), digest(model.state_dict()), scaler.state_dict()]


@case
def loader_with_workers():
    data = TensorDataset(torch.randn(64, 4))
    loader = DataLoader(data, batch_size=8, shuffle=True, num_workers=2)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 1))
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(2):
        model.train()
        for (x,) in loader:
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            losses.append(model(data.tensors[0]).sum().item())
    return [digest(losses), digest(model.state_dict())]


@case
def adversaries():
    maker, judge = nn.Linear(4, 4), nn.Linear(4, 1)
    optimizers = optim.Adam(maker.parameters(), lr=0.01), optim.Adam(judge.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        for turn, optimizer in enumerate(optimizers):
            optimizer.zero_grad()
            loss = judge(maker(noisy(8))).mean() * (-1) ** turn
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return [digest(losses), digest(maker.state_dict()), digest(judge.state_dict())]


@case
def for_some_seconds():
    """Long enough that whatever works beside the program has its turns."""
    model = nn.Linear(4, 1)
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    seed(5)
    found = []
    for _ in range(10):
        found.append(run(model, optimizer, steps=20))
        time.sleep(0.35)
    return found


main()
