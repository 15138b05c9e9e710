"""The backward pass: `torch.autograd.backward`, which `Tensor.backward` looks up at each call.

And whether the process differentiates without it: `torch.autograd.grad`, which torch.func calls as well, is not
replaced, for dynamo and torch's own modes know it by identity. What both it and `backward` end in is, until the first
call has shown which of them it is.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from otel_ml.core import runtime
from otel_ml.core.clock import now
from otel_ml.core.context import recorders
from otel_ml.core.native import load
from otel_ml.core.recorder import BACKWARD, OPEN
from otel_ml.errors import guard, swallow
from otel_ml.instrument.patching import takes
from otel_ml.instrument.torch.hidden import hide, hide_deep
from otel_ml.instrument.torch.values import parts, scalar

if TYPE_CHECKING:
    from otel_ml.instrument.patching import Patches

__all__ = ["install"]

_native = load("otel_ml.instrument.torch._hooks")
_PARAMETERS = ("tensors", "grad_tensors", "retain_graph", "create_graph", "grad_variables", "inputs")


def install(torch: Any, patches: Patches) -> None:
    """Time every backward and keep the value of the scalar it was given."""
    original = torch.autograd.backward
    tensor = torch.Tensor
    functions, dispatches = torch._C._len_torch_function_stack, torch._C._len_torch_dispatch_stack

    if _native is not None:
        timed = _native.backward(original, tensor, functions, dispatches, hide_deep(_read))

        if takes(original, *_PARAMETERS, defaults=(None, None, False, None, None)):

            @functools.wraps(original)
            def backward(
                tensors: Any,
                grad_tensors: Any = None,
                retain_graph: Any = None,
                create_graph: Any = False,  # noqa: FBT002 - torch's signature
                grad_variables: Any = None,
                inputs: Any = None,
            ) -> Any:
                return timed(tensors, grad_tensors, retain_graph, create_graph, grad_variables, inputs)

        else:

            @functools.wraps(original)
            def backward(*args: Any, **kwargs: Any) -> Any:
                return timed(*args, **kwargs)

    else:
        local = recorders.local

        @functools.wraps(original)
        def backward(*args: Any, **kwargs: Any) -> Any:
            try:
                recorder = local.recorder
            except AttributeError:
                recorder = recorders.mine()
            if recorder.state != OPEN:
                recorder.candidate()
            given: Any = args[0] if args else kwargs.get("tensors")
            loss = None
            if type(given) is tensor and not functions() and not dispatches() and given.is_cpu and not given.ndim:
                try:
                    loss = float(given.item())  # what `scalar()` comes to where nothing is special
                except RuntimeError:
                    loss = _read(given)
            else:
                loss = _read(given)
            start = now()
            try:
                return original(*args, **kwargs)
            finally:
                recorder.record(BACKWARD, start, now(), loss)

    hide(backward)
    backward._torchdynamo_inline = original  # type: ignore[attr-defined]
    patches.set(torch.autograd, "backward", backward)


def install_engine(torch: Any, patches: Patches) -> None:
    """Learn by the engine's first run whether the process differentiates without `backward`; then step aside."""
    name, owners = "_engine_run_backward", (torch.autograd, torch.autograd.graph)
    original = torch.autograd._engine_run_backward
    dispatches = torch._C._len_torch_dispatch_stack
    runtime.differentiates = False

    @functools.wraps(original)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not dispatches():  # a compiler differentiates, too, in what it traces
            with guard("the engine's first run"):
                if kwargs.get("accumulate_grad") is False:
                    runtime.differentiates = True
                for owner in owners:
                    patches.remove(owner, name)
        return original(*args, **kwargs)

    hide(run)
    patches.set(torch.autograd, name, run)


def _read(given: Any) -> float | None:
    """The sum of the scalars that backward is given; None where one of them is not on the host."""
    try:
        held = parts(given)
        if held is None:
            return scalar(given)
        losses = [scalar(t) for t in held]
        return sum(loss for loss in losses if loss is not None) if None not in losses else None
    except Exception:  # noqa: BLE001 - the law: never break the program
        swallow("reading the loss")
        return None
