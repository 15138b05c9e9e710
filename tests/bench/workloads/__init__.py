"""Ordinary scripts that know nothing of telemetry, each run in a fresh process, and what is measured of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["WORKLOADS", "Workload"]


@dataclass(frozen=True)
class Workload:
    """How a script of this folder is measured, and what is promised of it."""

    steps: int
    """Of a process that runs alone."""
    abreast_steps: int
    """Of each of two processes that go by turns."""
    meant_us: float
    """How long a plain step is meant to last."""
    limit: float = 1.03
    """Times as long as plain: what a step under otel-ml is promised to last at most."""
    kind: Literal["training", "inference", "jax"] = "training"
    """Which loop it hands to `loops.run`."""


WORKLOADS = {
    "mlp": Workload(6000, 10_000, 350.0),
    "gpt": Workload(200, 400, 30_000.0, limit=1.005),
    "inference": Workload(100_000, 50_000, 50.0, kind="inference"),
    "jax_fast": Workload(8000, 10_000, 200.0, kind="jax"),
    "jax_slow": Workload(400, 1000, 10_000.0, limit=1.005, kind="jax"),
}
"""All but `synthetic`, whose rate is given: it is for the curve alone."""
