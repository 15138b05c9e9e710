"""flax linen: a TrainState with apply_gradients, made by jitted functions before the training."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.relu(nn.Dense(16)(x)))


@jax.jit
def create(key):
    model = Net()
    params = model.init(key, jnp.zeros((1, 8)))["params"]
    return TrainState.create(apply_fn=model.apply, params=params, tx=optax.sgd(0.05, momentum=0.9))


@jax.jit
def train(state, x, y):
    def loss_of(params):
        return jnp.mean((state.apply_fn({"params": params}, x) - y) ** 2)

    loss, grads = jax.value_and_grad(loss_of)(state.params)
    return state.apply_gradients(grads=grads), loss


state = create(jax.random.key(0))
rng = np.random.default_rng(0)
x, y = rng.normal(size=(32, 8)).astype("f"), rng.normal(size=(32, 1)).astype("f")
for number in range(12):
    state, loss = train(state, x, y)
    print("loss", number, float(loss))
print("step", int(state.step))
print("truth", json.dumps({"exit": 0, "steps": 12, "samples": 384, "evaluations": 0, "inference": 0, "recompiles": 0}))
