"""flax nnx: a module, its optimizer and nnx.jit; the library's own jitted functions are none of the program's."""

import json

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(8, 16, rngs=rngs)
        self.second = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))


@nnx.jit
def train(model, optimizer, x, y):
    loss, grads = nnx.value_and_grad(lambda m: jnp.mean((m(x) - y) ** 2))(model)
    optimizer.update(model, grads)
    return loss


@nnx.jit
def evaluate(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


model = Net(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(32, 8)).astype("f"), rng.normal(size=(32, 1)).astype("f")
for number in range(12):
    print("loss", number, float(train(model, optimizer, x, y)))
    if number % 4 == 3:
        print("evaluation", float(evaluate(model, x, y)))
print("truth", json.dumps({"exit": 0, "steps": 12, "evaluations": 3, "micro_batches": 12, "recompiles": 0}))
