"""What is compiled, exported, traced and transformed is the same with us and without."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.safety.parity import compare

if TYPE_CHECKING:
    from pathlib import Path


def test_compile(tmp_path: Path) -> None:
    """torch.compile makes the same graphs, breaks and recompiles of modules, functions and whole steps."""
    compare("compiling", tmp_path)


def test_trace(tmp_path: Path) -> None:
    """torch.export, torch.jit, torch.fx, torch.func and checkpointing see the same program."""
    compare("tracing", tmp_path)


@pytest.mark.rare
def test_inductor(tmp_path: Path) -> None:
    """Inductor compiles the same kernels, and they compute the same bits."""
    compare("inductor", tmp_path, TORCHINDUCTOR_FORCE_DISABLE_CACHES="1")
