"""A process that only serves: every call of its jitted model is a request."""

import json

import jax
import jax.numpy as jnp
import numpy as np


@jax.jit
def model(weights, x):
    return jnp.tanh(x @ weights)


rng = np.random.default_rng(0)
weights = rng.normal(size=(16, 4)).astype("f")
total = 0.0
for _ in range(300):
    total += float(model(weights, rng.normal(size=(8, 16)).astype("f")).sum())
print("sum", total)
print("truth", json.dumps({"exit": 0, "steps": 0, "inference": 300, "inference_samples": 2400, "evaluations": 0}))
