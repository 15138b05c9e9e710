"""The parts of the hot path that are written in C, where they were built.

A step's hooks cost half as much with them: between torch's operations everything is cold, and
C touches less. Everything else is the same, and works without them: where there is no compiler,
outside Linux, and with `OTEL_ML_NATIVE=0`. `otel-ml doctor` says which it is.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["load", "wanted"]


def wanted(environ: Mapping[str, str]) -> bool:
    """Whether what is written in C is to be used where it is there."""
    return environ.get("OTEL_ML_NATIVE", "1") not in ("0", "false")


def load(name: str) -> Any:
    """A module that is written in C; None where it is not there, or not wanted."""
    if not wanted(os.environ):
        return None
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
