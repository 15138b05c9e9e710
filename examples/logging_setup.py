"""Log lines that know their step: short ones on the terminal, JSON in a file, from every kind of logger.

    pip install 'otel-ml[logging]'
    python examples/logging_setup.py
    otel-ml run examples/logging_setup.py

With `otel-ml run` in front, each line also tells its run, step, trace and span.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

from otel_ml.logs import LogContext, get_logger, setup_logging

log = get_logger("training")
EPOCHS, STEPS = 2, 10


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(STEPS):
        inputs = torch.randn(16, 8)
        optimizer.zero_grad()
        loss = (model(inputs).squeeze() - inputs.sum(1)).square().mean()
        loss.backward()
        optimizer.step()
        log.info("trained", loss=loss.item(), inputs=inputs)  # a tensor is told by its shape, never read


@LogContext(stage="evaluation")
def evaluate(model: nn.Module) -> None:
    with torch.no_grad():
        inputs = torch.ones(4, 8)
        error = (model(inputs).squeeze() - inputs.sum(1)).abs().max().item()
    logging.getLogger("evaluation").info("off by %.3f", error, extra={"error": error})


def resume(path: str) -> None:
    try:
        Path(path).read_bytes()
    except FileNotFoundError:
        log.exception("nothing to resume from", path=path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--file", type=Path, help="where the JSON lines go (default: a temporary file)")
    file = parser.parse_args().file or Path(tempfile.mkdtemp()) / "train.jsonl"
    setup_logging("INFO", file=file, rotate="10 MB")

    torch.manual_seed(0)
    model = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with LogContext(experiment="baseline"):
        resume("missing.pt")
        for epoch in range(EPOCHS):
            with LogContext(epoch=epoch):
                train(model, optimizer)
                evaluate(model)
        warnings.warn("two epochs are few", stacklevel=1)
    print(file)


if __name__ == "__main__":
    main()
