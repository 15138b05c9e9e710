"""How torch looks to who inspects it: signatures, names, documentation, sources, pickles of functions."""

import copy
import functools
import inspect
import io
import os
import pickle
import pydoc
import typing
import zipfile
from pathlib import Path

import torch
import torch._dynamo.utils
from cases import case, digest, main, nameless, said
from torch import nn, optim
from torch.nn.utils import clip_grad
from torch.utils.data import DataLoader, dataloader


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.hidden(x).tanh())


def built():
    model = Net()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(12):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    optim.Adam(model.parameters())
    optim.LBFGS(model.parameters())
    return model, optimizer


def everything():
    """Functions and methods that a training goes through, by the place where people find them."""
    model, optimizer = built()
    places = {
        "torch": torch, "torch.serialization": torch.serialization, "torch.autograd": torch.autograd,
        "torch.nn.Module": nn.Module, "torch.nn.Linear": nn.Linear, "Net": Net, "torch.Tensor": torch.Tensor,
        "torch.nn.utils": nn.utils, "clip_grad": clip_grad, "torch.amp.GradScaler": torch.amp.GradScaler,
        "Optimizer": optim.Optimizer, "SGD": optim.SGD, "Adam": optim.Adam, "AdamW": optim.AdamW, "LBFGS": optim.LBFGS,
        "DataLoader": DataLoader, "_BaseDataLoaderIter": dataloader._BaseDataLoaderIter,
        "_SingleProcessDataLoaderIter": dataloader._SingleProcessDataLoaderIter,
        "_MultiProcessingDataLoaderIter": dataloader._MultiProcessingDataLoaderIter,
        "torch.compiler": torch.compiler, "torch.jit": torch.jit, "dynamo": torch._dynamo.utils,
        "a model": model, "an optimizer": optimizer, "lr_scheduler": optim.lr_scheduler.LRScheduler,
    }  # fmt: skip
    for place, owner in places.items():
        for name in sorted(dir(owner)):
            if name == "_compiled_call_impl":
                continue
            value = inspect.getattr_static(owner, name, None)
            value = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
            if inspect.isfunction(value):
                yield f"{place}.{name}", value


@case
def functions():
    found = {}
    for where, function in everything():
        try:
            signature = nameless(inspect.signature(function))
        except Exception as error:
            signature = said(error)
        try:
            source = digest(inspect.getsource(inspect.unwrap(function)))
        except Exception as error:
            source = said(error)
        found[where] = [
            function.__name__, function.__qualname__, function.__module__, digest(function.__doc__), signature, source,
            sorted(map(str, getattr(function, "__annotations__", {}))), type(function).__name__,
        ]  # fmt: skip
    return found


@case
def bound():
    model, optimizer = built()
    found = []
    of_model, of_optimizer = (model.__call__, model.compile, model.eval), (optimizer.step, optimizer.zero_grad)
    for method in (*of_model, *of_optimizer, iter(DataLoader([1])).__next__):
        found.append([
            str(inspect.signature(method)), inspect.ismethod(method), inspect.isfunction(method), method.__qualname__,
            type(method.__self__).__name__, inspect.iscoroutinefunction(method), inspect.isgeneratorfunction(method),
        ])  # fmt: skip
    return found


@case
def documentation():
    places = (nn.Module, optim.SGD, dataloader._BaseDataLoaderIter, torch.amp.GradScaler)
    shown = {p.__name__: pydoc.plain(pydoc.render_doc(p)).splitlines() for p in places}
    for function in (torch.save, torch.load, torch.autograd.backward, nn.utils.clip_grad_norm_):
        shown[function.__qualname__] = pydoc.plain(pydoc.render_doc(function)).splitlines()
    kept = {name: [line for line in lines if "_compiled_call_impl" not in line] for name, lines in shown.items()}
    return {name: digest(lines) for name, lines in kept.items()}


@case
def pickles_of_functions():
    """Functions go to pools and clusters by name."""
    found = {}
    built()
    for where, function in everything():
        if "<locals>" in function.__qualname__:
            continue
        try:
            found[where] = pickle.loads(pickle.dumps(function)) is function
        except Exception as error:
            found[where] = type(error).__name__
    return found


@case
def aliases():
    """Names that are one object are one object."""
    built()
    pairs = {
        "save": (torch.save, torch.serialization.save), "load": (torch.load, torch.serialization.load),
        "norm": (nn.utils.get_total_norm, clip_grad._get_total_norm),
        "clip": (nn.utils.clip_grads_with_norm_, clip_grad._clip_grads_with_norm_),
        "clip norm": (nn.utils.clip_grad_norm_, clip_grad.clip_grad_norm_),
        "call": (nn.Module.__call__, nn.Module._wrapped_call_impl), "linear": (nn.Linear.__call__, nn.Module.__call__),
        "step": (optim.AdamW.step, optim.Adam.step),
        "scaler": (torch.amp.GradScaler.step, torch.cpu.amp.GradScaler.step),
        "iterator": (dataloader._BaseDataLoaderIter.__next__, dataloader._SingleProcessDataLoaderIter.__next__),
        "overrides": (nn.Module.compile, Net.compile), "eval": (nn.Module.eval, Net.eval),
    }  # fmt: skip
    return {name: a is b for name, (a, b) in pairs.items()}


@case
def who_overrides():
    """Whether a class overrides a method, as libraries ask it."""
    model, optimizer = built()

    class Own(optim.SGD):
        pass

    Own(model.parameters(), lr=0.1)
    return [
        "step" in vars(optim.SGD), "step" in vars(Own), Own.step is optim.SGD.step, "zero_grad" in vars(optim.SGD),
        type(model).__call__ is nn.Module.__call__, type(model).eval is nn.Module.eval,
        type(optimizer).__name__, isinstance(optimizer, optim.Optimizer), hasattr(optimizer.step, "__func__"),
        callable(optimizer.step), getattr(optim.SGD.step, "hooked", None), inspect.getfile(Net) == __file__,
        [c.__name__ for c in inspect.getmro(type(model))], inspect.getsource(Net) != "",
        typing.get_type_hints(torch.save).keys() == typing.get_type_hints(torch.serialization.save).keys(),
    ]  # fmt: skip


@case
def user_patches():
    """What a program wraps around torch's functions reaches torch, and unwraps to what was there."""
    calls = []
    places = [(torch, "save"), (torch.autograd, "backward"), (optim.SGD, "step")]
    places += [(nn.Module, "eval"), (nn.Module, "__call__")]
    model, optimizer = built()
    originals = []
    for owner, name in places:
        original = getattr(owner, name)
        originals.append(original)

        @functools.wraps(original)
        def counting(*args, name=name, original=original, **kwargs):
            calls.append(name)
            return original(*args, **kwargs)

        setattr(owner, name, counting)
    model.eval()
    model.train()
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    torch.save(model.state_dict(), io.BytesIO())
    for (owner, name), original in zip(places, originals, strict=True):
        setattr(owner, name, original)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    return [sorted(calls), digest(model.state_dict())]


@case
def saved():
    """What is written with torch.save and pickle, to the byte where bytes hold no addresses."""
    model, optimizer = built()
    scripted = torch.jit.script(model)
    compiled = Net()
    compiled.load_state_dict(model.state_dict())
    compiled.compile(backend="eager")
    compiled(torch.ones(1, 4))
    things = {
        "model": model, "weights": model.state_dict(), "optimizer": optimizer, "turns": optimizer.state_dict(),
        "compiled": compiled, "copy": copy.deepcopy(model), "parts": {"model": model, "step": 3},
    }  # fmt: skip
    found = {}
    for name, thing in things.items():
        out = io.BytesIO()
        torch.save(thing, out)
        with zipfile.ZipFile(out) as archive:
            data = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            found[name] = [len(archive.read(data)), digest(archive.read(data)), sorted(archive.namelist())]
        torch.save(thing, f"{name}.pt")
        out.seek(0)
        again = torch.load(out, weights_only=name in ("weights", "turns"))
        found[name].append(digest(again.state_dict()) if hasattr(again, "state_dict") else digest(list(again)))
    with Path("pickled.pkl").open("wb") as out:
        pickle.dump(model, out)
    scripted.save("scripted.pt")
    torch.export.save(torch.export.export(model, (torch.ones(2, 4),)), "exported.pt2")
    found["pickled"] = Path("pickled.pkl").stat().st_size
    found["scripted"] = digest(scripted(torch.ones(1, 4)))
    return found


@case
def saving_goes_wrong():
    found = []
    for wrong in (
        lambda: torch.save(1), lambda: torch.save(lambda: 1, io.BytesIO()), lambda: torch.load("no such file"),
        lambda: torch.save(1, "no/such/folder/x.pt"), lambda: torch.load(io.BytesIO(b"junk")), lambda: torch.load(f=3),
        lambda: torch.save(1, f=os.devnull), lambda: torch.save(obj=torch.ones(1), f=io.BytesIO()), torch.load,
    ):  # fmt: skip
        try:
            found.append(repr(wrong()))
        except Exception as error:
            found.append(said(error))
    return found


main()
