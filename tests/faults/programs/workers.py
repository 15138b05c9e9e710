"""Trains from a DataLoader with many workers, each of which logs, opens a span and counts the threads in it."""

import logging
import sys
from pathlib import Path

import torch
from opentelemetry import trace
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Data(Dataset):
    def __init__(self, size: int) -> None:
        self.x = torch.randn(size, 8)
        self.transform = nn.LayerNorm(8)
        self.threads = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int):
        scaled = self.transform(self.x[index]).detach()
        if sys.argv[1] == "fork":  # what a program's spawned worker says for itself is its own telemetry
            logging.getLogger("program").warning("in a worker")
            trace.get_tracer("program").start_span("in a worker").end()
        if self.threads is None:  # once in each worker: later its queue has a thread as well
            self.threads = len(list(Path("/proc/self/task").iterdir()))
        return scaled, self.threads


def main() -> None:
    torch.manual_seed(0)
    kind, workers = sys.argv[1], int(sys.argv[2])
    loader = DataLoader(Data(4 * workers), batch_size=2, num_workers=workers, multiprocessing_context=kind)
    model = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for x, threads in loader:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        print("loss", repr(loss.item()), "threads", *(threads.tolist() if kind == "fork" else ("of its own",)))


if __name__ == "__main__":
    main()
