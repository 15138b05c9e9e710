"""optax: adam behind MultiSteps, value_and_grad with aux, the state in one tuple."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax

optimizer = optax.MultiSteps(optax.adam(1e-2), every_k_schedule=2)


def forward(params, batch):
    x, y = batch
    logits = x @ params["kernel"] + params["bias"]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
    return loss, (logits.argmax(-1) == y).mean()


@jax.jit
def train(state, batch):
    params, opt_state = state
    (loss, accuracy), grads = jax.value_and_grad(forward, has_aux=True)(params, batch)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), {"loss": loss, "accuracy": accuracy}


rng = np.random.default_rng(0)
params = {"kernel": jnp.zeros((8, 3), "float32"), "bias": jnp.zeros((3,), "float32")}
state = params, optimizer.init(params)
for number in range(20):
    batch = rng.normal(size=(16, 8)).astype("f"), rng.integers(0, 3, size=16)
    state, metrics = train(state, batch)
    print("loss", number, float(metrics["loss"]), float(metrics["accuracy"]))
print(
    "truth",
    json.dumps({"exit": 0, "steps": 20, "samples": 320, "micro_batches": 20, "recompiles": 0, "evaluations": 0}),
)
