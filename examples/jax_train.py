"""Train a next-character predictor with flax and optax on the Python language reference, in about twenty seconds.

The text is the one behind `help("if")`, which ships with every CPython, so nothing is
downloaded. Run it as it is, or look for another size:

    pip install flax optax
    python examples/jax_train.py
    python examples/jax_train.py --epochs 4 --width 256
"""

from __future__ import annotations

import argparse
import math
from pydoc_data.topics import topics
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

if TYPE_CHECKING:
    from collections.abc import Iterator

Array = jax.Array | np.ndarray
Batch = tuple[np.ndarray, np.ndarray]


class Predictor(nnx.Module):
    """Embeds the characters before, mixes them, and scores the next one."""

    def __init__(self, vocabulary: int, context: int, width: int, *, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(vocabulary, 32, rngs=rngs)
        self.mix = nnx.Linear(context * 32, width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, vocabulary, rngs=rngs)

    def __call__(self, x: Array) -> jax.Array:
        hidden = self.embed(jnp.asarray(x)).reshape(x.shape[0], -1)
        return self.head(nnx.gelu(self.norm(self.mix(hidden))))


def loss_of(model: Predictor, x: Array, y: Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()


@nnx.jit
def train(model: Predictor, optimizer: nnx.Optimizer[Predictor], x: Array, y: Array) -> jax.Array:
    loss, gradients = nnx.value_and_grad(loss_of)(model, x, y)
    optimizer.update(model, gradients)
    return loss


@nnx.jit
def evaluate(model: Predictor, x: Array, y: Array) -> jax.Array:
    return loss_of(model, x, y)


def load(context: int) -> tuple[str, np.ndarray, np.ndarray]:
    """The alphabet, every window of characters, and the character after each."""
    text = "\n".join(topics.values())
    alphabet = "".join(sorted(set(text)))
    codes = np.array([alphabet.index(c) for c in text], "int32")
    windows = np.lib.stride_tricks.sliding_window_view(codes, context + 1)
    return alphabet, windows[:, :-1], windows[:, -1]


def shuffled(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, size: int) -> Iterator[Batch]:
    order = rng.permutation(len(x))
    for first in range(0, len(order) - size + 1, size):
        chosen = order[first : first + size]
        yield x[chosen], y[chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a next-character predictor.")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--context", type=int, default=16)
    parser.add_argument("--width", type=int, default=128)
    arguments = parser.parse_args()

    alphabet, x, y = load(arguments.context)
    held_out = len(x) // 10
    x, y, test_x, test_y = x[:-held_out], y[:-held_out], x[-held_out:], y[-held_out:]
    model = Predictor(len(alphabet), arguments.context, arguments.width, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adamw(2e-3), wrt=nnx.Param)
    rng = np.random.default_rng(0)
    for epoch in range(arguments.epochs):
        losses = []
        for number, (inputs, targets) in enumerate(shuffled(rng, x, y, arguments.batch_size)):
            loss = train(model, optimizer, inputs, targets)
            if number % 100 == 0:
                losses.append(float(loss))
        parts = [slice(n, n + 4096) for n in range(0, len(test_x) - 4096, 4096)]
        test = np.mean([float(evaluate(model, test_x[p], test_y[p])) for p in parts])
        print(f"epoch {epoch + 1}: loss {np.mean(losses[-5:]):.3f}, held out {test / math.log(2):.3f} bits a character")


if __name__ == "__main__":
    main()
