"""JAX programs compute the same bits, compile the same functions as often, and raise the same errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.safety.parity import compare

if TYPE_CHECKING:
    from pathlib import Path


def test_jax(tmp_path: Path) -> None:
    """Every way to compile, transform, guard, read and break is as it is without us."""
    compare("compiled", tmp_path)
