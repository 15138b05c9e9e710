"""What `distro` registers here so that hooks reach the pipeline without importing it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["coming", "enabled", "framework", "frameworks", "helpers"]

frameworks: dict[str, str] = {}
helpers: list[Callable[[], bool]] = []
"""Each says whether this process only prepares data for another: what such a one computes is no run."""


def coming() -> bool:
    """Whether the program has begun to import a framework: there will be something to tell of."""
    return "torch" in sys.modules or "jax" in sys.modules


def framework(name: str, version: str) -> None:
    """A framework has been hooked."""
    frameworks[name] = version


def enabled() -> bool:
    """Whether this process may be recorded: not switched off, and the SDK not disabled."""
    return os.environ.get("OTEL_ML_ENABLED", "1") not in ("0", "false") and (
        os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() != "true"
    )
