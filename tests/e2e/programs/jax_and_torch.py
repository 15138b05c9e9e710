"""Both frameworks: torch loads the data and trains a teacher, JAX trains on the same batches."""

import json

import jax
import jax.numpy as jnp
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
data = TensorDataset(torch.randn(96, 8), torch.randn(96, 1))


@jax.jit
def train(w, x, y):
    loss, grad = jax.value_and_grad(lambda w: jnp.mean((x @ w - y) ** 2))(w)
    return w - 0.1 * grad, loss


model = nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
steps = 0
for x, y in DataLoader(data, batch_size=16):
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    print("loss", steps, loss.item())
    steps += 1
w = jnp.zeros((8, 1), "float32")
for x, y in DataLoader(data, batch_size=16):
    w, loss = train(w, x.numpy(), y.numpy())
    print("loss", steps, float(loss))
    steps += 1
print("truth", json.dumps({"exit": 0, "steps": steps, "samples": 192, "evaluations": 0}))
