"""What a device holds and what the program asks of it: asked for by the drain, never in the program's threads."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from otel_ml import names
from otel_ml.errors import guard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_ml.instrument.jax.calls import Calls
    from otel_ml.names import Metric

__all__ = ["PEAK_FLOPS", "Sampler"]

_EVERY_S = 10.0
_SHARE = 0.001  # of the time, that counting the live arrays may take

# Dense bfloat16 FLOP a second of one device, by the kind JAX gives it; from the makers' data sheets.
PEAK_FLOPS = {
    "NVIDIA A100-SXM4-40GB": 312e12, "NVIDIA A100-SXM4-80GB": 312e12, "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12, "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5": 459e12, "TPU v6 lite": 918e12,
}  # fmt: skip


class Sampler:
    """Called at each turn of the drain; yields `(metric, value, attributes)`."""

    def __init__(self, jax: Any, calls: Calls) -> None:
        self.jax = jax
        self.calls = calls
        self._next = 0.0
        self._since: float | None = None

    def __call__(self) -> Iterator[tuple[Metric, float, dict[str, Any] | None]]:
        """At each turn of the drain; what takes longer to ask, every ten seconds at most."""
        if not self.jax._src.xla_bridge.backends_are_initialized():
            return
        with guard("the cost of a function"):
            self._ask_costs()
        yield from self._operations()
        at = time.monotonic()
        if at < self._next:
            return
        self._next = at + _EVERY_S
        for device in self.jax.local_devices():
            tags: dict[str, Any] = {names.HW_ID: f"{device.platform}:{device.id}"}
            stats = device.memory_stats() or {}
            for metric, key in (
                (names.MEMORY_ALLOCATED, "bytes_in_use"),
                (names.MEMORY_DEVICE_PEAK, "peak_bytes_in_use"),
                (names.MEMORY_LIMIT, "bytes_limit"),
            ):
                if key in stats:
                    yield metric, stats[key], tags
        yield names.MEMORY_LIVE, sum(a.nbytes for a in self.jax.live_arrays() if not a.is_deleted()), None
        self._next = max(self._next, at + (time.monotonic() - at) / _SHARE)

    def _ask_costs(self) -> None:
        """What XLA says of each new executable: it has counted already, nothing is compiled."""
        asked = self.calls.executables
        while asked:
            function, executable = asked.pop()
            said = executable.cost_analysis() or {}
            if function.flops != 0.0:  # it has met another size meanwhile
                continue
            function.flops = float((said[0] if isinstance(said, list) else said).get("flops", 0.0))

    def _operations(self) -> Iterator[tuple[Metric, float, dict[str, Any] | None]]:
        total = 0.0
        ended, self.calls.ended = self.calls.ended, []
        for function in (*list(self.calls.functions.values()), *ended):
            calls = function.calls
            more, function.told = calls - function.told, calls
            if more:
                yield names.FUNCTION_CALLS, more, {names.FUNCTION_NAME: function.name}
            if function.learns and function.flops is not None and function.flops > 0:
                total += more * function.flops
        if total <= 0:
            return
        yield names.TRAINING_FLOPS, total, None
        at = time.monotonic()
        before, self._since = self._since, at
        devices = self.jax.local_devices()
        peak = PEAK_FLOPS.get(devices[0].device_kind)
        if peak is not None and before is not None and at > before:
            yield names.MFU, total / (at - before) / peak, None
