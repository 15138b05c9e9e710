"""A prompt outlives what is typed at it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from otel_ml.store.runs import find_run
from tests.e2e.launching import BIN, environment

if TYPE_CHECKING:
    from pathlib import Path

TYPED = """
import otel_ml
for _ in range(3):
    with otel_ml.step():
        pass

{raised}
print("still here")
"""


@pytest.mark.parametrize("raised", ["1 / 0", "raise KeyboardInterrupt"])
def test_prompt(raised: str, tmp_path: Path) -> None:
    """A line that raised, or that Ctrl-C ended, is not how the interpreter ends: by code 0, and its run is finished."""
    done = subprocess.run(
        [BIN / "opentelemetry-instrument", sys.executable, "-i", "-q"],
        input=TYPED.format(raised=raised), env=environment(OTEL_ML_DIR=str(tmp_path / "runs")), cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "still here\n")
    run = find_run(tmp_path / "runs", None)
    assert run is not None
    assert run.state == "finished"
