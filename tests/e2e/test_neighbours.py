"""Beside another OpenTelemetry distribution: ours is chosen, or joins the one that the user named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.launching import INSTRUMENT, launch, plainly, step_records, totals

if TYPE_CHECKING:
    from pathlib import Path

THEIRS = """
from opentelemetry.instrumentation.distro import BaseDistro
from opentelemetry.sdk._configuration import _OTelSDKConfigurator


class Distro(BaseDistro):
    def _configure(self, **kwargs):
        pass


class Configurator(_OTelSDKConfigurator):
    pass
"""
ENTRY_POINTS = """
[opentelemetry_distro]
a_theirs = theirs:Distro

[opentelemetry_configurator]
a_theirs = theirs:Configurator
"""


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder with another distribution, installed as pip would; by its name it comes before ours."""
    folder = tmp_path / "site"
    (folder / "theirs-1.0.dist-info").mkdir(parents=True)
    (folder / "theirs.py").write_text(THEIRS)
    (folder / "theirs-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (folder / "theirs-1.0.dist-info" / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({}, "distro otel_ml, configurator otel_ml, providers made here"),
        (
            {"OTEL_PYTHON_DISTRO": "a_theirs", "OTEL_PYTHON_CONFIGURATOR": "a_theirs"},
            "distro a_theirs, configurator a_theirs, providers joined",
        ),
    ],
    ids=["ours", "theirs"],
)
def test_neighbour(chosen: dict[str, str], said: str, theirs: Path, tmp_path: Path, scratch: Path) -> None:
    """Ours wins unless the user named the other; then it joins the other's providers. Either way all is recorded."""
    plain = plainly("plain_loop.py", scratch)
    environment = {"PYTHONPATH": str(theirs), "OTEL_ML_DIR": str(tmp_path / "runs"), "OTEL_ML_VERBOSE": "1", **chosen}
    ours = launch(INSTRUMENT, "plain_loop.py", cwd=tmp_path, timeout=120, **environment)

    assert (ours.stdout, ours.code) == (plain.stdout, plain.code)
    assert f"otel-ml: {said}\n" in ours.stderr
    assert "Configuration of a_theirs not loaded" not in ours.stderr
    assert totals(tmp_path / "runs").steps == plain.truth["steps"]
    losses = [row["ml.training.loss"] for row in step_records(tmp_path / "runs")]
    assert losses == [float(words[1]) for words in plain.losses()]
