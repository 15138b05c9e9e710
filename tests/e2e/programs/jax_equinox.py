"""equinox: filter_jit, filter_value_and_grad, optax."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

model = eqx.nn.MLP(8, 1, 16, 1, key=jax.random.PRNGKey(0))
optimizer = optax.adam(1e-2)
state = optimizer.init(eqx.filter(model, eqx.is_array))


def loss_of(model, x, y):
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


@eqx.filter_jit
def train(model, state, x, y):
    loss, grads = eqx.filter_value_and_grad(loss_of)(model, x, y)
    updates, state = optimizer.update(grads, state)
    return eqx.apply_updates(model, updates), state, loss


@eqx.filter_jit
def evaluate(model, x, y):
    return loss_of(model, x, y)


rng = np.random.default_rng(0)
x, y = rng.normal(size=(32, 8)).astype("f"), rng.normal(size=(32, 1)).astype("f")
for number in range(12):
    model, state, loss = train(model, state, x, y)
    print("loss", number, float(loss))
    if number % 6 == 5:
        print("evaluation", float(evaluate(model, x, y)))
print("truth", json.dumps({"exit": 0, "steps": 12, "evaluations": 2, "micro_batches": 12, "recompiles": 0}))
