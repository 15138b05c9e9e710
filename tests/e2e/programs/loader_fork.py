"""Two epochs over a DataLoader with two forked workers."""

import json

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main() -> None:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(42, 8), torch.randn(42, 1))
    loader = DataLoader(data, batch_size=8, shuffle=True, num_workers=2, multiprocessing_context="fork")
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    step = samples = 0
    for _epoch in range(2):
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            print("loss", step, repr(loss.item()))
            step += 1
            samples += len(x)
    truth = {"steps": step, "skipped": 0, "failed": 0, "evaluations": 0, "inference": 0}
    print("truth", json.dumps({**truth, "micro_batches": step, "samples": samples, "exit": 0}))


if __name__ == "__main__":
    main()
