"""Reads a scalar that is already on the host; never waits for a device, never disturbs a mode."""

from __future__ import annotations

import sys
from collections import UserDict
from typing import Any

from otel_ml.core.deferred import Deferred, Values
from otel_ml.errors import swallow

__all__ = ["parts", "recorded", "scalar", "shape"]

_CHANNELS = frozenset({1, 3, 4})  # of images


def scalar(value: Any) -> float | None:
    """The value of a one-element CPU tensor, exactly; None for what is not ready on the host."""
    torch = sys.modules["torch"]
    c = torch._C
    plain = type(value) is torch.Tensor
    if not plain:
        if type(value) in (float, int):
            return float(value)
        if not issubclass(type(value), torch.Tensor) or _dispatches(value):
            return None
    try:
        if plain and not c._len_torch_dispatch_stack() and not c._len_torch_function_stack():
            return float(value.item()) if value.is_cpu and value.numel() == 1 else None
        base = c.TensorBase  # whose methods are nobody's own
        with c._DisableTorchDispatch(), c.DisableTorchFunction():
            return float(base.item(value)) if base.is_cpu.__get__(value) and base.numel(value) == 1 else None
    except RuntimeError:
        if c._functorch.maybe_current_level() is None:
            raise
        return None  # inside vmap a tensor stands for many values


def _dispatches(value: Any) -> bool:
    """Whether a tensor's class has operators of its own: it may have no value where others have theirs."""
    return type(value).__torch_dispatch__ is not sys.modules["torch"]._C._disabled_torch_dispatch_impl


class _OnDevice(Deferred):
    """A copy of a scalar on a device, read once the device has made it, on a stream of its own."""

    __slots__ = ("copy", "made")

    def __init__(self, tensor: Any) -> None:
        self.copy = tensor.clone()
        self.made = sys.modules["torch"].Event(tensor.device)
        self.made.record()

    def ready(self) -> bool:
        """Whether the device has come that far."""
        try:
            return bool(self.made.query())
        except Exception:  # noqa: BLE001 - the device is gone
            return True

    def read(self) -> Values:
        """The value, if it is there."""
        scalars: dict[str, float] = {}
        try:
            if self.made.query():
                torch = sys.modules["torch"]
                with torch.Stream(self.copy.device):
                    scalars[""] = float(self.copy.item())
        except Exception:  # noqa: BLE001 - the law: never break the program
            swallow("reading a device's value")
        self.copy = self.made = None
        return Values(-1, scalars)


def recorded(value: Any) -> float | Deferred | None:
    """A scalar that the program records: at once from the host, from a device later; None where it is none."""
    torch = sys.modules["torch"]
    c, base = torch._C, torch._C.TensorBase
    if not issubclass(type(value), torch.Tensor):
        return None
    if type(value) is torch.Tensor and not c._len_torch_function_stack():
        tensor = value.detach() if value.numel() == 1 else None
    else:
        with c.DisableTorchFunction():
            tensor = base.as_subclass(base.detach(value), torch.Tensor) if base.numel(value) == 1 else None
    if tensor is None:
        return None
    return scalar(tensor) if tensor.is_cpu else _OnDevice(tensor)


def parts(batch: Any) -> Any:
    """What a list or tuple holds, past what a subclass makes of it; None of anything else."""
    kind = type(batch)
    if kind is list or kind is tuple:
        return batch
    if issubclass(kind, list):
        return list(list.__iter__(batch))
    return list(tuple.__iter__(batch)) if issubclass(kind, tuple) else None


def shape(batch: Any, *, unwatched: bool = False) -> tuple[int, int]:
    """Samples and tokens of a batch, -1 for what its shapes do not tell.

    Samples are the leading dimension that all tensors of a list, tuple or dict share, or the
    length of tuples that `zip()` made of rows. A list of nothing but three-dimensional tensors
    may be one of images, which have their channels first. Tokens are the elements of `input_ids`,
    or of two equal two-dimensional integer tensors (a language model's input and target).
    """
    torch = sys.modules["torch"]
    if torch._C._len_torch_function_stack() and not unwatched:
        with torch._C.DisableTorchFunction():  # who watches with a mode does not see what we ask
            return shape(batch, unwatched=True)
    tensor: Any = torch.Tensor
    kind = type(batch)
    try:
        if kind is list or kind is tuple:
            return _shape(batch, tensor)
        if kind is tensor:
            size = batch.shape
            return (size[0] if size else 1), -1
        held = batch if kind is dict else _mapped(batch)
        if held is not None:
            ids: Any = dict.get(held, "input_ids")
            if type(ids) is tensor and ids.ndim:
                return ids.shape[0], ids.numel()
            return _shared(dict.values(held), tensor)[0], -1
        if kind is torch.nn.utils.rnn.PackedSequence:
            return _packed(*parts(batch)), -1
        held = parts(batch)
        return (-1, -1) if held is None else _shape(held, tensor)
    except RuntimeError:  # a nested tensor has no shape
        return -1, -1


def _shape(held: Any, tensor: Any) -> tuple[int, int]:
    samples, first, second, size = _shared(held, tensor)
    if first is None:
        return _zipped(held, tensor), -1
    if len(size) == 2:
        pair = second is not None and second.shape == size
        if pair and not first.is_floating_point() and not second.is_floating_point():
            return samples, first.numel()
    elif len(size) == 3 and size[0] in _CHANNELS and all(type(t) is tensor and t.ndim == 3 for t in held):
        return -1, -1
    return samples, -1


def _shared(held: Any, tensor: Any) -> tuple[int, Any, Any, Any]:
    """The leading dimension of all tensors that have one; the first two of them, and the first one's shape."""
    samples, first, second, size = -1, None, None, None
    for thing in held:
        if type(thing) is tensor:
            own = thing.shape
            if not own:
                continue
            if first is None:
                first, size, samples = thing, own, own[0]
            else:
                if second is None:
                    second = thing
                if own[0] != samples:
                    return -1, first, second, size
    return samples, first, second, size


def _mapped(batch: Any) -> Any:
    """The dict that a batch is, or that a `UserDict` keeps; None of anything else."""
    kind = type(batch)
    if issubclass(kind, dict):
        return batch
    if type.__subclasscheck__(UserDict, kind):  # an ABC's own would ask the class
        kept = object.__getattribute__(batch, "__dict__").get("data")
        return kept if issubclass(type(kept), dict) else None
    return None


def _packed(_data: Any, sizes: Any, order: Any = None, *_: Any) -> int:
    """How many sequences a PackedSequence holds: those that are longer than nothing."""
    if order is not None:
        return int(order.shape[0])
    with sys.modules["torch"]._C._DisableTorchDispatch():
        return int(sizes[0])


def _zipped(held: Any, tensor: Any) -> int:
    """How many rows `zip()` made tuples of; one of these holds what is no batch."""
    if type(held) is not tuple or len(held) < 2 or any(type(part) is not tuple for part in held):
        return -1
    if any(len(part) != len(held[0]) for part in held):
        return -1
    if all(any(type(thing) is tensor and thing.ndim for thing in part) for part in held):
        return -1
    return len(held[0]) or -1
