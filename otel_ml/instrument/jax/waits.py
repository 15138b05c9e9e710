"""Waiting for a device: where the program reads an array's value, or blocks until it is there.

Seen: `float()`, `bool()`, `repr()`, `tolist()`, `jax.device_get`, `block_until_ready`, of one array or a tree. Not
seen: what reads an array's memory past Python (`np.asarray`, `.item()`).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from otel_ml.core.clock import now
from otel_ml.core.context import recorders
from otel_ml.core.recorder import DEVICE_WAIT

if TYPE_CHECKING:
    from otel_ml.instrument.patching import Patches

__all__ = ["install", "reader"]

local = recorders.local


def reader(jax: Any) -> Any:
    """How to read an array's value as NumPy without its being noted as the program's."""
    value = vars(jax._src.array.ArrayImpl)["_value"].fget
    allowed = jax.transfer_guard_device_to_host

    def read(array: Any) -> Any:
        with allowed("allow"):  # what the program forbids itself is not said of us
            return value(array)

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
                return original(self)
            finally:
                recorder.record(DEVICE_WAIT, start, now())

        return wait

    blocks = timed(block, cached=False)
    blocks.__name__, blocks.__qualname__, blocks.__module__ = (
        "block_until_ready",
        "ArrayImpl.block_until_ready",
        array.__module__,
    )
    patches.set(array, "_value", property(timed(read, cached=True), doc=vars(array)["_value"].__doc__))
    patches.set(array, "block_until_ready", blocks)
    waits = timed(block_all, cached=False)

    @functools.wraps(block_all)
    def block_until_ready(x: Any) -> Any:
        return waits(x)

    patches.set(jax._src.api, "block_until_ready", block_until_ready)
    patches.set(jax, "block_until_ready", block_until_ready)
