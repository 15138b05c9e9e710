"""What `distro` registers here so that hooks reach the pipeline without importing it."""

from __future__ import annotations

import os

__all__ = ["enabled", "framework", "frameworks"]

frameworks: dict[str, str] = {}


def framework(name: str, version: str) -> None:
    """A framework has been hooked."""
    frameworks[name] = version


def enabled() -> bool:
    """Whether this process may be recorded: not switched off, and the SDK not disabled."""
    return os.environ.get("OTEL_ML_ENABLED", "1") not in ("0", "false") and (
        os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() != "true"
    )
