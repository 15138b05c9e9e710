"""What is C in torch's hooks counts as Python does, asks torch what Python asks it, and passes on what it is given."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from otel_ml.core import recorder as r
from otel_ml.core.context import recorders
from otel_ml.core.native import load
from otel_ml.core.recorder import Recorder
from otel_ml.instrument.patching import takes
from otel_ml.testing import capture

hooks = load("otel_ml.instrument.torch._hooks")
compiled = pytest.mark.skipif(hooks is None, reason="nothing is compiled here")


class Thing:
    """Stands for an optimizer; it has a number and nothing else."""


def counted(recorder: Recorder) -> tuple[Any, ...]:
    """Where a recorder's step counter is."""
    return recorder.number, recorder.state, recorder.seen, recorder.expected, recorder.merged_from


@compiled
@given(st.lists(st.sampled_from(["begins", "edge", "fetch", *range(4), 70]), max_size=40))
def test_turns_are_counted_as_python_counts_them(events: list[Any]) -> None:
    """Whatever optimizers take their turns, in whatever order, C and Python agree on the step after each."""
    recorder, other = recorders.mine(), Recorder(10)
    recorder.restart(1_000)
    things = {n: Thing() for n in (*range(4), 70)}
    numbers = {id(thing): n for n, thing in things.items()}
    step = hooks.step(lambda _: None, numbers, None, lambda _: None)
    zero_grad = hooks.zero_grad(lambda _: None, numbers)
    try:
        for event in events:
            if event == "begins":
                zero_grad(things[0])
                if other.state != r.OPEN:
                    other.candidate()
            elif event == "edge":
                recorder.edge()
                other.edge()
            elif event == "fetch":
                assert recorder.fetching() == other.fetching()
            else:
                step(things[event], (), {})
                other.turn(event)
            assert counted(recorder) == counted(other)
    finally:
        r.changed()
        recorder.restart(65_536)


@pytest.mark.parametrize("library", [torch._C.__file__, "libm.so.6"])
def test_a_traced_model_is_not_recorded(library: str) -> None:
    """torch.jit's own call of a model is none of the program's, whether torch tells so in C or in Python."""
    if hooks is not None:
        assert hooks.find_in(library) is (library == torch._C.__file__)
    try:
        with capture(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            model = nn.Linear(3, 2)
            model(torch.ones(4, 3))
            before = recorders.mine().buffer[0 :: r.WIDTH].count(r.FORWARD)
            torch.jit.trace(model, torch.ones(4, 3), check_trace=False)
            assert recorders.mine().buffer[0 :: r.WIDTH].count(r.FORWARD) == before == 1
    finally:
        if hooks is not None:
            hooks.find_in(torch._C.__file__)


@pytest.mark.parametrize("plain", [True, False])
def test_what_is_given_is_passed_on(monkeypatch: pytest.MonkeyPatch, *, plain: bool) -> None:
    """Backward and zero_grad get what they were given, by place or by name, of torch's signature or another."""
    given: list[Any] = []
    backward, zero_grad = torch.autograd.backward, torch.optim.Optimizer.zero_grad

    def other_backward(*args: Any, **kwargs: Any) -> None:
        given.append((len(args), sorted(kwargs)))
        backward(*args, **kwargs)

    def other_zero_grad(self: Any, *args: Any, **kwargs: Any) -> None:
        given.append((args, kwargs))
        zero_grad(self, *args, **kwargs)

    if not plain:
        monkeypatch.setattr(torch.autograd, "backward", other_backward)
        monkeypatch.setattr(torch.optim.Optimizer, "zero_grad", other_zero_grad)
    weight = nn.Parameter(torch.tensor(3.0))
    with capture():
        optimizer = torch.optim.SGD([weight], lr=0.0)
        torch.autograd.backward(tensors=weight * 2, inputs=[weight])
        assert weight.grad == 2.0
        optimizer.zero_grad(set_to_none=False)
        assert weight.grad == 0.0
        optimizer.zero_grad(True)
        assert weight.grad is None
        (weight * 5).backward(torch.tensor(2.0))
        assert weight.grad == 10.0
        flat = recorders.mine().buffer[:]
        with pytest.raises(TypeError, match=r"backward\(\)"):
            torch.autograd.backward()
        with pytest.raises(TypeError, match="zero_grad"):
            optimizer.zero_grad(otherwise=1)
    losses = [flat[at + 3] for at in range(0, len(flat), r.WIDTH) if flat[at] == r.BACKWARD]
    assert losses == [6.0, 15.0]
    if not plain:
        assert given[:3] == [(0, ["inputs", "tensors"]), ((), {"set_to_none": False}), ((True,), {})]


def test_a_loss_that_is_seen_negated_is_read_as_it_is() -> None:
    """A view that negates, and a loss of any type, are read as `item()` reads them."""
    complex_one = torch.tensor(1 + 2j, requires_grad=True)
    with capture():
        losses = [complex_one.conj().imag, torch.tensor(1.5, dtype=torch.float16, requires_grad=True) * 1]
        for loss in losses:
            loss.backward()
        flat = recorders.mine().buffer[:]
    read = [flat[at + 3] for at in range(0, len(flat), r.WIDTH) if flat[at] == r.BACKWARD]
    assert read == [loss.item() for loss in losses]


WITHOUT_MEMORY = """
import torch
from _testcapi import remove_mem_hooks, set_nomemory
from otel_ml.core import recorder as r
from otel_ml.core.context import recorders
from otel_ml.core.native import load

hooks, tensor = load("otel_ml.instrument.torch._hooks"), torch.ones(2, 3)

class Thing(int):
    _call_impl = staticmethod(callable)  # it takes no memory to answer False, and here the program does nothing else
    param_groups = [{"lr": 1}, {"lr": 2}]

thing, loss = Thing(1000), torch.ones(())
no, none = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack
makes = {
    "step": (lambda: hooks.step(callable, {}, abs, abs), (thing, (), {})),
    "zero_grad": (lambda: hooks.zero_grad(callable, {}), (thing,)),
    "forward": (lambda: hooks.forward({}, abs, torch.Tensor, torch.is_grad_enabled, torch._C._is_tracing, none, None),
                (thing, tensor)),
    "backward": (lambda: hooks.backward(callable, torch.Tensor, none, no, id), (loss,)),
    "backward of several": (lambda: hooks.backward(callable, torch.Tensor, none, no, id), ([loss],)),
}
recorder = recorders.mine()
for name, (make, args) in makes.items():
    answers = set()
    for first in range(30):
        for last in (first + 1, 0):  # a single one that fails, and all from the first on
            recorder.restart(100)
            hook = make()
            r.changed()
            set_nomemory(first, last)
            try:
                answer = hook(*args)
            except BaseException as error:
                answer = type(error)
            remove_mem_hooks()
            answers.add(answer)
    print(name, *answers)
"""


@compiled
def test_no_memory_for_us() -> None:
    """Whichever allocation inside a hook fails, the program's own call is made, its answer comes, and no error."""
    pytest.importorskip("_testcapi", reason="this Python cannot be told to have no memory")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MEMORY], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.stdout.splitlines() == [
        f"{name} False" for name in ("step", "zero_grad", "forward", "backward", "backward of several")
    ], done.stderr
    assert done.returncode == 0


def test_takes() -> None:
    """A signature is the expected one in names, defaults and kind, or it is another."""
    assert takes(lambda a, b=1: (a, b), "a", "b", defaults=(1,))
    others: list[Any] = [
        lambda a, b=2: (a, b),
        lambda a, c=1: (a, c),
        lambda a, b=1, *c: (a, b, c),
        lambda a, b=1, **c: (a, b, c),
        lambda a, b=1, *, c=1: (a, b, c),
        print,
    ]
    assert [takes(other, "a", "b", defaults=(1,)) for other in others] == [False] * len(others)
