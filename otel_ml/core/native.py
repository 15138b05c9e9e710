"""The parts of the hot path that are written in C, where they were built.

A step's hooks cost less than half as much with them: between torch's operations everything is cold, and
C touches less. Everything else is the same, and works without them: where there is no compiler,
outside Linux, with `OTEL_ML_NATIVE=0`, and in a source tree that has changed since it was
installed. `otel-ml doctor` says which it is.
"""

from __future__ import annotations

import importlib
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["is_old", "load", "wanted"]

_RECORDER = "otel_ml.core._recorder"
_SHARED = "recorder.h"


def wanted(environ: Mapping[str, str]) -> bool:
    """Whether what is written in C is to be used where it is there."""
    return environ.get("OTEL_ML_NATIVE", "1") not in ("0", "false")


def load(name: str) -> Any:
    """A module that is written in C; None where it is not there, not wanted, or not of this source.

    Where the recorder is not C's, nothing is; and of several interpreters in a process, C is the main one's alone.
    """
    try:
        if not wanted(os.environ) or is_old(_RECORDER) or is_old(name):
            return None
        return importlib.import_module(name) if importlib.import_module(_RECORDER).usable() else None
    except Exception:  # noqa: BLE001 - all of it works without
        return None


def is_old(name: str) -> bool:
    """Whether it was compiled from a source that is here and has changed since."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        return False
    made = Path(spec.origin)
    sources = (made.with_name(f"{name.rpartition('.')[2]}.c"), Path(__file__).with_name(_SHARED))
    return any(source.exists() and source.stat().st_mtime > made.stat().st_mtime for source in sources)
