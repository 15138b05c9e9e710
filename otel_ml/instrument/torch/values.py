"""Reads a scalar that is already on the host; never waits for a device, never disturbs a mode."""

from __future__ import annotations

import sys
from typing import Any

from otel_ml.core.deferred import Deferred, Values
from otel_ml.errors import swallow

__all__ = ["recorded", "scalar", "shape"]


def scalar(value: Any) -> float | None:
    """The value of a one-element CPU tensor, exactly; None for what is not ready on the host."""
    torch = sys.modules["torch"]
    if type(value) is not torch.Tensor:
        return float(value) if type(value) in (float, int) else None
    c = torch._C
    if c._len_torch_dispatch_stack() or c._len_torch_function_stack():
        with c._DisableTorchDispatch(), c.DisableTorchFunction():
            return float(value.item()) if value.is_cpu and value.numel() == 1 else None
    try:
        return float(value.item()) if value.is_cpu and value.numel() == 1 else None
    except RuntimeError:
        if c._functorch.maybe_current_level() is None:
            raise
        return None  # inside vmap a tensor stands for many values


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
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        return None
    tensor = value.detach()
    if tensor.is_cpu:
        return scalar(tensor.as_subclass(torch.Tensor))
    return _OnDevice(tensor)


def shape(batch: Any) -> tuple[int, int]:
    """Samples and tokens of a batch, -1 for what its shapes do not tell.

    Samples are the first tensor's leading dimension. Tokens are the elements of
    `input_ids`, or of two equal two-dimensional integer tensors (a language model's input
    and target).
    """
    tensor = sys.modules["torch"].Tensor
    if type(batch) is tensor:
        return (batch.shape[0] if batch.ndim else 1), -1
    if isinstance(batch, (list, tuple)):
        tensors = [t for t in batch if type(t) is tensor and t.ndim]
        if not tensors:
            return shape(batch[0]) if batch and isinstance(batch[0], (list, tuple, dict)) else (-1, -1)
        first = tensors[0]
        tokens = -1
        pair = first.ndim == 2 and len(tensors) > 1 and tensors[1].shape == first.shape
        if pair and not first.is_floating_point() and not tensors[1].is_floating_point():
            tokens = first.numel()
        return first.shape[0], tokens
    if isinstance(batch, dict):
        ids: Any = batch.get("input_ids")
        if type(ids) is tensor and ids.ndim:
            return ids.shape[0], ids.numel()
        for value in batch.values():
            if type(value) is tensor and value.ndim:
                return value.shape[0], -1
    return -1, -1
