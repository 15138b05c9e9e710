"""An ordinary training script that says four things more: three functions to trace, and two values a step.

    otel-ml run examples/decorators.py
    opentelemetry-instrument python examples/decorators.py

The spans of `augment`, `train` and `evaluate` are inside the step in which they were called; the values are in its
record. Started without a launcher, the same lines do nothing. With `--configure`, it needs none.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import otel_ml


@otel_ml.traced
def augment(inputs: Tensor) -> Tensor:
    return inputs + 0.01 * torch.randn_like(inputs)


@otel_ml.traced(name="train", arguments=["inputs"])  # as its type and shape, never by its values
def train(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor) -> Tensor:
    optimizer.zero_grad()
    scores = model(inputs)
    loss = nn.functional.cross_entropy(scores, targets)
    loss.backward()
    optimizer.step()
    otel_ml.record("train/accuracy", (scores.argmax(1) == targets).float().mean())
    return loss


@otel_ml.traced
def evaluate(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    with torch.no_grad():
        return (model(inputs).argmax(1) == targets).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description="Tell two rings apart.")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--configure", action="store_true", help="record without a launcher")
    options = parser.parse_args()
    if options.configure:
        otel_ml.configure(service_name="rings")
    torch.manual_seed(0)
    angle, ring = torch.rand(512) * 6.283, torch.arange(512) % 2
    points = torch.stack([angle.cos(), angle.sin()], 1) * (1 + ring[:, None]) + 0.1 * torch.randn(512, 2)
    loader = DataLoader(TensorDataset(points, ring), batch_size=64, shuffle=True)
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for epoch in range(options.epochs):
        for inputs, targets in loader:
            loss = train(model, optimizer, augment(inputs), targets)
            otel_ml.record("train/loss", loss)
        accuracy = evaluate(model, points, ring)
        otel_ml.record("accuracy", accuracy, split="validation")
        print(f"epoch {epoch}: {accuracy:.1%} right")
    otel_ml.event("rings.told_apart", accuracy=accuracy)


if __name__ == "__main__":
    main()
