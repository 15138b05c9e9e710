"""A program that gevent has changed beneath us runs as it would, and says what it would."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.launching import LAUNCHERS, totals
from tests.e2e.receivers import http_receiver
from tests.faults.processes import PROGRAMS, run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_patched(launcher: str, tmp_path: Path) -> None:
    """After `monkey.patch_all()` its TLS works, no thread of ours ends with an error, and all is recorded and sent."""
    runs = tmp_path / "runs"
    with http_receiver() as received:
        ended = run(
            LAUNCHERS[launcher], PROGRAMS / "greenlets.py", cwd=tmp_path,
            OTEL_ML_DIR=str(runs), OTEL_ML_SUMMARY="0", OTEL_EXPORTER_OTLP_ENDPOINT=received.endpoint,
        )  # fmt: skip
    assert (ended.code, ended.stdout, ended.stderr) == (0, "answered 100.0\n", "")
    assert totals(runs).inference.count == 50
    assert received.sent() == ["logs", "metrics", "traces"]
