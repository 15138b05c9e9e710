"""Runs the cases of a program in order and prints what can be seen of each, as one line of JSON.

Nothing in this folder knows of otel-ml: what differs between a plain run and one under
the launcher is the launcher's doing. `python program.py NAME…` runs only those cases.
"""

import contextlib
import hashlib
import io
import json
import random
import re
import sys
import traceback
import warnings

import torch

CASES = {}
_ADDRESS = re.compile(r"0x[0-9a-f]+|\b\d{9,}\b")


def case(function):
    """Make a function a case: its name is the case's, what it returns is compared."""
    CASES[function.__name__] = function
    return function


def digest(*things):
    """A short hash of every bit of tensors, numbers and containers of them, with their types and layouts."""
    found = hashlib.sha256()
    _feed(found, things)
    return found.hexdigest()[:16]


def _feed(found, thing):
    if isinstance(thing, torch.Tensor):
        with torch.no_grad():
            plain = thing.detach()
            plain = plain.to_dense() if plain.layout != torch.strided else plain
            about = (type(thing).__name__, str(thing.dtype), tuple(thing.shape), thing.requires_grad)
            found.update(repr(about).encode())
            found.update(plain.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    elif isinstance(thing, dict):
        found.update(b"{")
        for key, value in thing.items():
            found.update(repr(key).encode())
            _feed(found, value)
    elif isinstance(thing, (list, tuple)):
        found.update(type(thing).__name__.encode() + b"[%d" % len(thing))
        for value in thing:
            _feed(found, value)
    else:
        found.update(_ADDRESS.sub("#", repr(thing)).encode())


def nameless(text):
    """The text without addresses and object ids, which differ from run to run."""
    return _ADDRESS.sub("#", str(text))


def own(cls):
    """A class's own attributes, without the one of `nn.Module` that is put there by whoever takes its calls."""
    return sorted(set(vars(cls)) - {"_compiled_call_impl"})


def said(error):
    """An exception as its user meets it."""
    return {
        "type": type(error).__qualname__,
        "text": nameless(error).splitlines()[:1],
        "cause": repr(type(error.__cause__)),
        "context": repr(type(error.__context__)),
    }


def seed(number=0):
    """Seed every generator."""
    random.seed(number)
    torch.manual_seed(number)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(number)


def generators():
    """A hash of the state of each generator."""
    states = {"random": random.getstate(), "torch": torch.get_rng_state()}
    if "numpy" in sys.modules:
        states["numpy"] = [str(part) for part in sys.modules["numpy"].random.get_state()]
    return {name: digest(state) for name, state in states.items()}


def train(model, make_optimizer, batch, steps=12, loss=None):
    """Train, and return a hash of every loss and of all that came of it."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(parameters)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        out = model(*batch())
        value = loss(out) if loss else out.square().mean()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return {"losses": digest(losses), "state": digest(model.state_dict()), "optimizer": digest(optimizer.state_dict())}


def seen_of(function):
    """Everything one case does that anybody could notice."""
    seed()
    facts = {}
    out = io.StringIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with contextlib.redirect_stdout(out):
            try:
                facts["seen"] = function()
            except Exception as error:
                facts["raised"] = said(error)
                traceback.print_exc()
        facts["warnings"] = [[w.category.__name__, nameless(w.message)] for w in caught]
    facts["printed"] = out.getvalue()
    facts["generators"] = generators()
    facts["modes"] = [
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype().__repr__(), torch.get_num_threads(), torch.is_anomaly_enabled(),
    ]  # fmt: skip
    return facts


def main():
    """Run the cases named on the command line, or all."""
    chosen = sys.argv[1:] or list(CASES)
    print("facts", json.dumps({name: seen_of(CASES[name]) for name in chosen}))
