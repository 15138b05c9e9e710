"""A wide slice of torch, plainly and hooked: the same results, types, errors, warnings and lifetimes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.safety.parity import compare, python

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("program", ["layers", "optimizers", "loaders", "gradients", "processes", "threads"])
def test_slice(program: str, tmp_path: Path) -> None:
    """Every case of the program does what it does without us."""
    compare(program, tmp_path)


def test_looks(tmp_path: Path) -> None:
    """What we patch looks as it did, and what is saved loads in a process that has never heard of us."""
    compare("looks", tmp_path)
    loaded = python("loaded", "plain", "hooked", cwd=tmp_path).facts
    assert set(loaded) == {"plain", "hooked"}
    assert "otel_ml" not in str(loaded)
    assert loaded["hooked"] == loaded["plain"]
    for file in (tmp_path / "hooked").iterdir():
        assert b"otel_ml" not in file.read_bytes()
