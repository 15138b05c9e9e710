"""Two devices: a pmapped step, then a sharded one."""

import functools
import json
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402


def loss_of(w, x, y):
    return jnp.mean((x @ w - y) ** 2)


@functools.partial(jax.pmap, axis_name="devices")
def mapped(w, x, y):
    loss, grad = jax.value_and_grad(loss_of)(w, x, y)
    return w - 0.1 * jax.lax.pmean(grad, "devices"), jax.lax.pmean(loss, "devices")


mesh = Mesh(np.array(jax.devices()), ("devices",))
rows = PartitionSpec("devices")


@jax.jit
@functools.partial(
    jax.shard_map, mesh=mesh, in_specs=(PartitionSpec(), rows, rows), out_specs=(PartitionSpec(), PartitionSpec())
)
def sharded(w, x, y):
    loss, grad = jax.value_and_grad(loss_of)(jax.lax.pcast(w, "devices", to="varying"), x, y)
    return w - 0.1 * jax.lax.pmean(grad, "devices"), jax.lax.pmean(loss, "devices")


rng = np.random.default_rng(0)
x, y = rng.normal(size=(16, 8)).astype("f"), rng.normal(size=(16, 2)).astype("f")
w = np.zeros((2, 8, 2), "f")
for number in range(6):
    w, loss = mapped(w, x.reshape(2, 8, 8), y.reshape(2, 8, 2))
    print("loss", number, float(loss[0]))
w = jax.device_put(np.asarray(w[0]), NamedSharding(mesh, PartitionSpec()))
for number in range(6, 12):
    w, loss = sharded(w, x, y)
    print("loss", number, float(loss))
print("truth", json.dumps({"exit": 0, "steps": 12, "samples": 192, "evaluations": 0}))
