"""Four trainings as the libraries' own documentation has them: flax linen, optax, equinox and flax nnx.

What the libraries jit for themselves is none of the program's; nor is what sets a training up before the first.
"""

import json

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.training.train_state import TrainState

rng = np.random.default_rng(0)
x, y = rng.normal(size=(32, 8)).astype("f"), rng.normal(size=(32, 1)).astype("f")
number = 0


def told(loss):
    global number
    print("loss", number, float(loss))
    number += 1


# --- linen: a TrainState, made by a jitted function ------------------------------------


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.relu(nn.Dense(16)(x)))


@jax.jit
def create(key):
    model = Dense()
    params = model.init(key, jnp.zeros((1, 8)))["params"]
    return TrainState.create(apply_fn=model.apply, params=params, tx=optax.sgd(0.05, momentum=0.9))


@jax.jit
def train_linen(state, x, y):
    def loss_of(params):
        return jnp.mean((state.apply_fn({"params": params}, x) - y) ** 2)

    loss, grads = jax.value_and_grad(loss_of)(state.params)
    return state.apply_gradients(grads=grads), loss


state = create(jax.random.key(0))
for _ in range(8):
    state, loss = train_linen(state, x, y)
    told(loss)

# --- optax: adam behind MultiSteps, the state in a tuple, aux ---------------------------

optimizer = optax.MultiSteps(optax.adam(1e-2), every_k_schedule=2)
labels = rng.integers(0, 3, size=32)


def forward(params, batch):
    logits = batch[0] @ params["kernel"] + params["bias"]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()
    return loss, (logits.argmax(-1) == batch[1]).mean()


@jax.jit
def train_optax(state, batch):
    params, opt_state = state
    (loss, accuracy), grads = jax.value_and_grad(forward, has_aux=True)(params, batch)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), {"loss": loss, "accuracy": accuracy}


params = {"kernel": jnp.zeros((8, 3), "float32"), "bias": jnp.zeros((3,), "float32")}
state = params, optimizer.init(params)
for _ in range(8):
    state, metrics = train_optax(state, (x, labels))
    told(metrics["loss"])

# --- equinox: filter_jit, an evaluation every fourth step -------------------------------

model = eqx.nn.MLP(8, 1, 16, 1, key=jax.random.PRNGKey(0))
adam = optax.adam(1e-2)
opt_state = adam.init(eqx.filter(model, eqx.is_array))


def loss_of(model, x, y):
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


@eqx.filter_jit
def train_equinox(model, opt_state, x, y):
    loss, grads = eqx.filter_value_and_grad(loss_of)(model, x, y)
    updates, opt_state = adam.update(grads, opt_state)
    return eqx.apply_updates(model, updates), opt_state, loss


@eqx.filter_jit
def evaluate_equinox(model, x, y):
    return loss_of(model, x, y)


for turn in range(8):
    model, opt_state, loss = train_equinox(model, opt_state, x, y)
    told(loss)
    if turn % 4 == 3:
        print("evaluation", float(evaluate_equinox(model, x, y)))

# --- nnx: a module and its optimizer, changed in place ----------------------------------


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(8, 16, rngs=rngs)
        self.second = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))


@nnx.jit
def train_nnx(model, optimizer, x, y):
    loss, grads = nnx.value_and_grad(lambda m: jnp.mean((m(x) - y) ** 2))(model)
    optimizer.update(model, grads)
    return loss


@nnx.jit
def evaluate_nnx(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


net = Net(nnx.Rngs(0))
descent = nnx.Optimizer(net, optax.adam(1e-2), wrt=nnx.Param)
for turn in range(8):
    told(train_nnx(net, descent, x, y))
    if turn % 4 == 3:
        print("evaluation", float(evaluate_nnx(net, x, y)))

truth = {"exit": 0, "steps": 32, "micro_batches": 32, "evaluations": 4, "inference": 0, "recompiles": 0}
print("truth", json.dumps(truth))
