"""Loads what `looks.py` saved into the folders given, in a process where otel-ml cannot be imported."""

import json
import pickle
import sys
from pathlib import Path

sys.modules["otel_ml"] = None

import torch  # noqa: E402
from cases import digest  # noqa: E402
from torch import nn  # noqa: E402


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.hidden(x).tanh())


def account(folder):
    """What is in each file, and what the models in them compute and learn."""
    x = torch.full((2, 4), 0.5)
    found = {}
    for path in sorted(folder.glob("*.pt")):
        if path.stem == "scripted":
            found[path.stem] = digest(torch.jit.load(path)(x))
            continue
        thing = torch.load(path, weights_only=path.stem in ("weights", "turns"))
        model = thing["model"] if path.stem == "parts" else thing
        if isinstance(model, nn.Module):
            outs = [model(x) for _ in range(3)]
            outs[-1].sum().backward()
            found[path.stem] = [digest(outs), digest(model.head.weight.grad), sorted(vars(model))]
        elif isinstance(thing, torch.optim.Optimizer):
            thing.step()
            found[path.stem] = [digest(thing.state_dict()), sorted(vars(thing))]
        else:
            found[path.stem] = digest(thing)
    with (folder / "pickled.pkl").open("rb") as file:
        found["pickled"] = digest(pickle.load(file)(x))
    found["exported"] = digest(torch.export.load(folder / "exported.pt2").module()(x))
    return found


print("facts", json.dumps({folder: account(Path(folder)) for folder in sys.argv[1:]}))
