"""Call a small model many times: about 50 µs a call, as a server under load does."""

from __future__ import annotations

from itertools import cycle, islice

import torch
from torch import nn

from tests.bench.loops import Serving, run, sized, stopwatch


def main() -> None:
    """Answer requests one after another."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    watch = stopwatch(100_000, warmup=2000)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    batch = sized(32)
    requests = [torch.randn(batch, 32) for _ in range(64)]
    with torch.inference_mode():
        run(Serving(model=model, requests=islice(cycle(requests), watch.total), watch=watch))


if __name__ == "__main__":
    main()
