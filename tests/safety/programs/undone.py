"""Instruments, trains and uninstruments this process, and tells which of torch's objects are others than before.

The one program of this folder that knows of otel-ml: a plain Python runs it.
"""

import functools
import io
import json
import sys

import torch
import torch._dynamo.utils
from cases import digest
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from otel_ml.core import runtime
from otel_ml.core.context import recorders
from otel_ml.instrument.torch import TorchInstrumentor, report

instrumentor = TorchInstrumentor()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.body(x))


class Own(torch.optim.SGD):
    def step(self, closure=None):
        return super().step(closure)


def use(model=None):
    """Go through everything that is hooked; what came of it."""
    torch.manual_seed(0)
    model = model or Net()
    model(torch.ones(2, 4))
    found = []
    for kind in (torch.optim.Adam, Own, torch.optim.LBFGS):
        optimizer = kind(model.parameters(), lr=0.01)
        for (x,) in DataLoader(TensorDataset(torch.randn(24, 4)), batch_size=2):

            def closure(x=x, optimizer=optimizer):
                optimizer.zero_grad()
                loss = model(x).square().mean()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                return loss

            found.append(optimizer.step(closure).item())
    scaler = torch.amp.GradScaler("cpu")
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler.scale(model(torch.ones(1, 4)).sum()).backward()
    scaler.unscale_(sgd)
    scaler.step(sgd)
    scaler.update()
    model.eval()
    with torch.no_grad():
        found.append(model(torch.ones(1, 4)).item())
    out = io.BytesIO()
    torch.save(model.state_dict(), out)
    out.seek(0)
    torch.load(out)
    compiled = Net()
    compiled.compile(backend="eager")
    compiled(torch.ones(2, 4))
    torch._dynamo.reset()
    nn.Sequential(nn.LSTM(4, 4))
    return digest(found, model.state_dict())


def everything():
    """Every attribute of every module and class of torch, and what its registries of hooks hold."""
    found = {"sys.excepthook": sys.excepthook}
    for name, module in list(sys.modules.items()):
        if module is None or name.partition(".")[0] != "torch":
            continue
        for key, value in list(vars(module).items()):
            found[f"{name}.{key}"] = value
            if isinstance(value, type) and value.__module__.partition(".")[0] == "torch":
                found.update({f"{name}.{key}.{k}": v for k, v in list(vars(value).items())})
            elif "hook" in key and isinstance(value, dict):
                found.update({f"{name}.{key}[]": list(value.items())})
    found.update({f"Net.{k}": v for k, v in vars(Net).items()} | {f"Own.{k}": v for k, v in vars(Own).items()})
    return found


# What torch itself counts, beside all that its compiler does.
COUNTED = (
    ".COMPILE_COUNTER",
    ".DESCRIBER_NEXT_ID",
    ".FakeTensorMode.cache_hits",
    ".GenerationTracker.dynamic_classes",
    ".GenerationTracker.generation_values",
    ".RemovableHandle.next_id",
    ".op_count",
)


def changed(before):
    """Names whose object is another, is new or is gone, but for what torch itself counts."""
    after = everything()
    missing = object()
    found = []
    for name in {**before, **after}:
        a, b = before.get(name, missing), after.get(name, missing)
        if name.endswith("[]"):
            differs = a != b
        else:
            differs = a is not b
            counts = name.endswith(COUNTED) or name.startswith("torch._dynamo.")
            if counts and not any(v is missing or callable(v) or hasattr(type(v), "__get__") for v in (a, b)):
                differs = False
        if differs:
            found.append(name)
    return sorted(found)


def events():
    """How much was recorded so far."""
    return sum(len(r.buffer) for r in recorders.all)


facts = {"plain": use()}
facts["plain again"] = use()
before = everything()

instrumentor.instrument()
facts["hooked"] = use()
facts["report"] = report()
facts["patched"] = sorted({".".join(name.split(".")[-2:]) for name in changed(before)})
facts["recorded"] = events() > 0
facts["undone"] = {}
instrumentor.uninstrument()
facts["undone"]["once"] = changed(before)
count = events()
facts["after"] = use()
facts["silent after"] = events() == count
facts["undone"]["and used"] = changed(before)

instrumentor.instrument()
first = everything()
instrumentor.instrument()
facts["second time"] = changed(first)
count = events()
facts["again"] = use()
facts["recorded again"] = events() > count
instrumentor.uninstrument()
instrumentor.uninstrument()
facts["undone"]["twice"] = changed(before)

# A model that was compiled and used before us, goes on with us, and after us.
model = Net()
model.compile(backend="eager")
counters = torch._dynamo.utils.counters
counters.clear()
x = torch.ones(2, 4)
outs = [model(x)]
compilations = [counters["stats"]["unique_graphs"]]
for change in (instrumentor.instrument, instrumentor.uninstrument, instrumentor.instrument):
    change()
    outs += [model(x) for _ in range(12)]
    compilations.append(counters["stats"]["unique_graphs"])
facts["compilations"] = compilations
facts["same outputs"] = len({digest(o) for o in outs})

# One that was compiled with us, without us.
other = Net()
other.compile(backend="eager")
other(x)
instrumentor.uninstrument()
count = events()
other(x)
facts["compiled with us is silent after"] = events() == count

# What somebody put over ours stays, and leads to the original.
instrumentor.instrument()
ours = torch.save
calls = []


@functools.wraps(ours)
def theirs(*args, **kwargs):
    calls.append(1)
    return ours(*args, **kwargs)


torch.save = theirs
instrumentor.uninstrument()
out = io.BytesIO()
torch.save({"a": 1}, out)
out.seek(0)
facts["foreign"] = [torch.save is theirs, len(calls), torch.load(out)]
torch.save = before["torch.save"]

# An optimizer that exists already, around whose step a scheduler has put its own.
late = torch.optim.SGD(Net().parameters(), lr=0.01)
scheduler = torch.optim.lr_scheduler.StepLR(late, 1)
step = vars(late)["step"]
runtime.late = True
instrumentor.instrument()
facts["late"] = [vars(late)["step"] is not step]
instrumentor.uninstrument()
runtime.late = False
facts["late"].append(vars(late)["step"] is step)
facts["undone"]["at last"] = changed(before)

print("facts", json.dumps(facts))
