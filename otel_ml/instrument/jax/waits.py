"""Waiting for a device: where the program reads an array's value, or blocks until it is there.

Seen: `float()`, `bool()`, `repr()`, `tolist()`, `.item()`, `jax.device_get`, `block_until_ready`, of one array or a
tree. Not seen: `np.asarray` of an array in the host's memory, which is read past Python.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from otel_ml.core.clock import now
from otel_ml.core.context import recorders
from otel_ml.core.recorder import DEVICE_WAIT, WIDTH

if TYPE_CHECKING:
    from otel_ml.instrument.patching import Patches

__all__ = ["install", "reader"]

local = recorders.local


def reader(jax: Any) -> Any:
    """How to read an array's value as NumPy without its being noted as the program's.

    What is in the host's memory already is copied from there: a sixth of what JAX's own way takes. That is one step
    under the interpreter lock, so that no other thread gives the array to the device while its memory is held here.
    """
    np = jax._src.array.np  # JAX's own: it needs NumPy, we do not
    value = vars(jax._src.array.ArrayImpl)["_value"].fget
    allowed = jax.transfer_guard_device_to_host

    def read(array: Any) -> Any:
        try:
            found = np.frombuffer(b"".join((array,)), array.dtype)
        except TypeError:  # on another device, on several, or of a type that a buffer cannot have
            with allowed("allow"):  # what the program forbids itself is not said of us
                return value(array)
        return found[0] if found.size == 1 else found

    return read


def install(jax: Any, patches: Patches) -> None:
    """Time what waits, in threads that have called a compiled function."""
    array = jax._src.array.ArrayImpl
    read = vars(array)["_value"].fget
    block = vars(array)["block_until_ready"]
    block_all = jax._src.api.block_until_ready

    def timed(original: Any, *, cached: bool) -> Any:
        @functools.wraps(original, assigned=("__doc__",))  # those of C have names that are no strings
        def wait(self: Any) -> Any:
            recorder = getattr(local, "recorder", None)
            if recorder is None or (cached and self._npy_value is not None):
                return original(self)
            start = now()
            try:
                result = original(self)
            finally:
                recorder.record(DEVICE_WAIT, start, now())
            if cached and recorder.kept is not None:
                _seen(recorder, self, result)
            return result

        return wait

    blocks = timed(block, cached=False)
    blocks.__name__, blocks.__qualname__, blocks.__module__ = (
        "block_until_ready",
        "ArrayImpl.block_until_ready",
        array.__module__,
    )
    patches.set(array, "_value", property(timed(read, cached=True), doc=vars(array)["_value"].__doc__))
    patches.set(array, "block_until_ready", blocks)
    patches.set(array, "item", _item(array.item))
    waits = timed(block_all, cached=False)

    @functools.wraps(block_all)
    def block_until_ready(x: Any) -> Any:
        return waits(x)

    patches.set(jax._src.api, "block_until_ready", block_until_ready)
    patches.set(jax, "block_until_ready", block_until_ready)


def _item(original: Any) -> Any:
    """Time `.item()`, which reads the host's memory past Python, and another device's through what is timed already."""

    @functools.wraps(original)
    def item(self: Any, *args: int) -> Any:
        recorder = getattr(local, "recorder", None)
        if recorder is None:
            return original(self, *args)
        start = now()
        try:
            result = original(self, *args)
        finally:
            end, last = now(), recorder.buffer[-WIDTH:]
            if not last or last[1] < start:
                recorder.record(DEVICE_WAIT, start, end)
        if recorder.kept is not None:
            _seen(recorder, self, result)
        return result

    return item


def _seen(recorder: Any, array: Any, value: Any) -> None:
    """What the program has read, the drain need not."""
    kept = recorder.kept
    if kept is not None and not kept.seen(array, value):
        recorder.kept = None
