"""What each measured process runs under: one module a way to observe a program.

A module here serves twice: the harness reads its `CONDITIONS`; the measured process,
where the condition asks its user to write something, runs its `train` or `infer`. So a
module imports what it measures inside its functions only.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.bench.workloads import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["EVERYTHING", "TRAININGS", "Condition", "registry"]

TRAININGS = tuple(name for name, workload in WORKLOADS.items() if workload.kind == "training")
EVERYTHING = (*WORKLOADS, "synthetic")


@dataclass(frozen=True)
class Condition:
    """One way to run a workload."""

    name: str
    title: str
    asks: str
    """What its user has to write."""
    packages: tuple[str, ...] = ()
    """What an environment of its own holds; nothing: it runs in the harness's environment."""
    needs: tuple[str, ...] = ()
    """Distributions that the harness's environment must have."""
    loops: str | None = None
    """The module whose `train` and `infer` replace the plain loops."""
    command: tuple[str, ...] = ("{python}", "{script}")
    variables: Mapping[str, str] = field(default_factory=dict)
    """Of its process; `{sink}`, `{folder}`, `{auto}` (OTel's sitecustomize folder) and `{root}` are filled in."""
    workloads: tuple[str, ...] = (*TRAININGS, "inference")
    """The workloads that it has something to say about."""
    evidence: str = ""
    """What a run must leave to count: `sink` for spans that arrived, else a pattern of files in its folder."""
    ours: bool = False
    blind: bool = False
    """Whether it sees no training at all, and is there for its start-up."""
    against: str | None = None
    """The condition after whose start-up its own is told."""


def registry() -> dict[str, Condition]:
    """All conditions by name, plain and its control first, ours next."""
    found: list[Condition] = []
    for module in pkgutil.iter_modules(__path__):
        found += importlib.import_module(f"{__name__}.{module.name}").CONDITIONS
    found.sort(key=lambda c: (not c.name.startswith("plain"), not c.ours, c.name != "by-hand"))
    return {c.name: c for c in found}
