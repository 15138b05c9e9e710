"""The backward pass: `torch.autograd.backward`, which `Tensor.backward` looks up at each call."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from otel_ml.core.clock import now
from otel_ml.core.context import recorders
from otel_ml.core.recorder import BACKWARD, OPEN
from otel_ml.errors import swallow
from otel_ml.instrument.torch.hidden import hide
from otel_ml.instrument.torch.values import scalar

if TYPE_CHECKING:
    from otel_ml.instrument.patching import Patches

__all__ = ["install"]


def install(torch: Any, patches: Patches) -> None:
    """Time every backward and keep the value of the scalar it was given."""
    original = torch.autograd.backward
    local = recorders.local
    tensor = torch.Tensor
    functions, dispatches = torch._C._len_torch_function_stack, torch._C._len_torch_dispatch_stack

    @functools.wraps(original)
    def backward(*args: Any, **kwargs: Any) -> Any:
        try:
            recorder = local.recorder
        except AttributeError:
            recorder = recorders.mine()
        state = recorder.state
        if state != OPEN:
            recorder.candidate()
        loss = None
        try:
            given: Any = args[0] if args else kwargs.get("tensors")
            if type(given) is tensor and not functions() and not dispatches() and given.is_cpu and not given.ndim:
                try:
                    loss = float(given.item())  # what `scalar()` comes to where nothing is special
                except RuntimeError:
                    loss = scalar(given)
            elif type(given) is not tensor and isinstance(given, (tuple, list)):
                parts = [scalar(t) for t in given]
                loss = sum(p for p in parts if p is not None) if None not in parts else None
            else:
                loss = scalar(given)
        except Exception:  # noqa: BLE001 - the law: never break the program
            swallow("reading the loss")
        start = now()
        try:
            return original(*args, **kwargs)
        finally:
            recorder.record(BACKWARD, start, now(), loss)

    hide(backward)
    backward._torchdynamo_inline = original  # type: ignore[attr-defined]
    patches.set(torch.autograd, "backward", backward)
