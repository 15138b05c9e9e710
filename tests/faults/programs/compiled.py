"""A compiled training: `endless` until it is killed, `busy` that leaves while its device computes, `raising`."""

import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

ROWS = 1600 if sys.argv[1] == "busy" else 8
X = np.ones((ROWS, ROWS), "f")


@jax.jit
def train(w, x):
    def loss_of(w):
        for _ in range(4):
            x_w = jnp.tanh(x @ w) / ROWS
            w = x_w
        return (w**2).mean()

    loss, grad = jax.value_and_grad(loss_of)(w)
    return w - 0.1 * grad, loss


w = jnp.ones((ROWS, ROWS), "float32") / ROWS
print("READY", os.getpid(), flush=True)
if sys.argv[1] == "endless":
    for number in range(1_000_000):
        w, loss = train(w, X)
        print("step", number, float(loss), time.time_ns(), flush=True)
        time.sleep(0.005)
for number in range(3):
    w, loss = train(w, X)
    if number == 1 and sys.argv[1] == "raising":
        message = "enough"
        raise ValueError(message)
print("LEAVING", loss.is_ready(), flush=True)
