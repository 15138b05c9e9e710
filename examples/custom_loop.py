"""A training that no framework knows of: NumPy, gradients by hand. It says itself where its steps are.

otel-ml run examples/custom_loop.py
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import otel_ml

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Batch = tuple[NDArray[np.float64], NDArray[np.float64]]

TRUTH = np.array([1.5, -2.0, 0.5])


def batches(count: int, chance: np.random.Generator) -> Iterator[Batch]:
    for _ in range(count):
        inputs = chance.normal(size=(32, 3))
        yield inputs, (inputs @ TRUTH > 0).astype(float)


def loss_of(weights: NDArray[np.float64], inputs: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
    chances = 1 / (1 + np.exp(-inputs @ weights))
    return float(-np.mean(targets * np.log(chances + 1e-9) + (1 - targets) * np.log(1 - chances + 1e-9)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Fit a logistic regression by hand.")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    chance = np.random.default_rng(0)
    weights = np.zeros(3)
    with otel_ml.run("by hand", rate=0.5, batch=32):
        for epoch in range(options.epochs):
            with otel_ml.epoch(epoch):
                for inputs, targets in otel_ml.data(batches(options.steps, chance)):
                    with otel_ml.step():
                        with otel_ml.phase("forward"):
                            chances = 1 / (1 + np.exp(-inputs @ weights))
                        with otel_ml.phase("backward"):
                            gradient = inputs.T @ (chances - targets) / len(targets)
                        weights -= 0.5 * gradient
                        otel_ml.record({"loss": loss_of(weights, inputs, targets), "norm": np.linalg.norm(gradient)})
            with otel_ml.evaluation("test"):
                ((inputs, targets),) = batches(1, chance)
                otel_ml.record("accuracy", np.mean((inputs @ weights > 0) == targets))
            print(f"epoch {epoch}: weights {weights.round(2)}")
        path = Path(tempfile.mkdtemp()) / "weights.npy"
        with otel_ml.checkpoint(path):
            np.save(path, weights)


if __name__ == "__main__":
    main()
