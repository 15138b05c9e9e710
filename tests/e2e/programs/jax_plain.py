"""JAX alone: a jitted step that donates its weights, a short last batch, an evaluation a epoch."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np


def loss_of(params, x, y):
    hidden = jnp.tanh(x @ params["w1"] + params["b1"])
    return jnp.mean((hidden @ params["w2"] - y) ** 2)


@functools.partial(jax.jit, donate_argnums=0)
def train(params, x, y):
    loss, grads = jax.value_and_grad(loss_of)(params, x, y)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), loss


evaluate = jax.jit(loss_of)
rng = np.random.default_rng(0)
params = {
    "w1": jnp.asarray(rng.normal(size=(16, 32)), "float32"),
    "b1": jnp.zeros((32,), "float32"),
    "w2": jnp.asarray(rng.normal(size=(32, 1)), "float32"),
}
x, y = rng.normal(size=(100, 16)).astype("f"), rng.normal(size=(100, 1)).astype("f")
steps = samples = 0
for _epoch in range(3):
    for first in range(0, 100, 32):
        batch = slice(first, first + 32)
        params, loss = train(params, x[batch], y[batch])
        print("loss", steps, float(loss))
        steps += 1
        samples += len(x[batch])
    print("evaluation", float(evaluate(params, x, y)))
truth = {"exit": 0, "steps": steps, "samples": samples, "evaluations": 3, "recompiles": 1, "micro_batches": steps}
print("truth", json.dumps(truth))
