"""A notebook, cell by cell: open it as one (Jupyter, VS Code), or run it as a script.

python examples/notebook.py
"""

# %% In the first cell, before or after the framework is imported
import torch
from torch import nn

import otel_ml

otel_ml.configure(service_name="notebook", exporter="local", run_name="notebook")

# %% Any cell that trains is recorded as it is
torch.manual_seed(0)
model = nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(256, 8)
targets = inputs.sum(1, keepdim=True)

for first in range(0, 256, 16):
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(inputs[first : first + 16]), targets[first : first + 16])
    loss.backward()
    optimizer.step()

# %% What is worth a name
with otel_ml.run("another rate", lr=0.2):
    optimizer.param_groups[0]["lr"] = 0.2
    for _ in otel_ml.data(range(20)):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        otel_ml.record("distance", (model.weight - 1).norm())

# %% What it came to so far; nothing has to end for it
otel_ml.flush()
otel_ml.summary()
