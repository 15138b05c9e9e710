"""Seeded trainings are the same to the bit, and so is all that the program says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.safety.parity import both, compare, same

if TYPE_CHECKING:
    from pathlib import Path

# Makes the SDK's own sources of chance busy: samples kept beside metrics, and sending again what was refused.
RESTLESS = {
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
    "OTEL_METRICS_EXEMPLAR_FILTER": "always_on",
    "OTEL_ML_VIEWS_EXPONENTIAL": "ml.training.step.duration",
    "OTEL_METRIC_EXPORT_INTERVAL": "250",
    "OTEL_BSP_SCHEDULE_DELAY": "100",
    "OTEL_ML_SHUTDOWN_TIMEOUT": "1",
}


def test_trainings(tmp_path: Path) -> None:
    """Losses, weights and the state of every generator are the same to the bit, from the first line to the end."""
    compare("trainings", tmp_path)


def test_trainings_beside_a_restless_sdk(tmp_path: Path) -> None:
    """Exemplars and exports that fail and are tried again draw nothing from the program's generators."""
    ran = both("trainings", "untouched_at_the_start", "for_some_seconds", cwd=tmp_path, **RESTLESS)
    same(ran.hooked.facts, ran.plain.facts)
    assert sum(totals.records for totals in ran.totals()) > 0


def test_output(tmp_path: Path) -> None:
    """Both streams, to the byte, and the exit code: prints, logs, warnings and the traceback at the end."""
    ran = both("talking", cwd=tmp_path)
    assert ran.plain.code == 1
    assert "FloatingPointError: the end" in ran.plain.stderr
    assert ran.hooked == ran.plain
    assert sum(totals.steps for totals in ran.totals()) > 0


def test_garbage_collection(tmp_path: Path) -> None:
    """No full garbage collection that would not happen without us, in hundreds of steps."""
    ran = both("collecting", cwd=tmp_path)
    plain, hooked = ran.plain.facts, ran.hooked.facts
    assert hooked["full"] <= plain["full"]
    assert hooked["settings"] == plain["settings"]
    assert sum(totals.steps for totals in ran.totals()) > 0
