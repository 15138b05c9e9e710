"""Train by hand in JAX alone, on the text behind `help("if")`: a jitted step that donates its weights.

Run it as it is: `python examples/jax_plain.py`. It needs nothing but JAX.
"""

from __future__ import annotations

import functools
from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

CONTEXT, WIDTH, BATCH, STEPS = 8, 256, 512, 1500


def loss_of(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    hidden = jnp.tanh(params["embed"][x].reshape(x.shape[0], -1) @ params["mix"])
    scores = jax.nn.log_softmax(hidden @ params["head"])
    return -jnp.take_along_axis(scores, y[:, None], axis=1).mean()


@functools.partial(jax.jit, donate_argnums=0)
def train(params: Any, x: jax.Array, y: jax.Array, rate: jax.Array) -> tuple[Any, jax.Array]:
    loss, gradients = jax.value_and_grad(loss_of)(params, x, y)
    return jax.tree.map(lambda p, g: p - rate * g, params, gradients), loss


def main() -> None:
    codes = np.frombuffer("\n".join(topics.values()).encode("ascii", "replace"), "uint8").astype("int32")
    rng = np.random.default_rng(0)
    shapes = {"embed": (128, 32), "mix": (CONTEXT * 32, WIDTH), "head": (WIDTH, 128)}
    params = {name: jnp.asarray(rng.normal(size=shape) / 16, "float32") for name, shape in shapes.items()}
    for step in range(STEPS):
        starts = rng.integers(0, len(codes) - CONTEXT - 1, BATCH)
        windows = codes[starts[:, None] + np.arange(CONTEXT + 1)]
        params, loss = train(params, windows[:, :-1], windows[:, -1], np.float32(0.5))
        if step % 250 == 0 or step == STEPS - 1:
            print(f"step {step}: loss {float(loss):.3f}")


if __name__ == "__main__":
    main()
