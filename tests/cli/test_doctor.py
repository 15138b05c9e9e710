"""`otel-ml doctor` says what is installed, what wins and where data goes, and what to type where it is broken."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from otel_ml.cli.doctor import Check, examine, hook_report
from otel_ml.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path


def found(section: str, **environ: str) -> list[Check]:
    """The checks of one section."""
    return [check for check in examine(environ) if check.section == section]


def test_data_stays_here(tmp_path: Path) -> None:
    """With nothing set everything goes to the local store."""
    assert found("data", OTEL_ML_DIR=str(tmp_path / "new")) == [
        Check("data", "store", "ok", str(tmp_path / "new")),
        Check("data", "traces", "ok", "the local store"),
        Check("data", "metrics", "ok", "the local store"),
        Check("data", "logs", "ok", "the local store"),
    ]
    assert not (tmp_path / "new").exists()


def test_data_goes_out(tmp_path: Path) -> None:
    """Each signal's exporters and endpoints are named, without their secrets."""
    checks = found(
        "data",
        OTEL_ML_DIR=str(tmp_path),
        OTEL_ML_STORE="0",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://ada:pw@collector:4318",
        OTEL_METRICS_EXPORTER="console",
        OTEL_LOGS_EXPORTER="none",
    )
    assert checks == [
        Check("data", "store", "note", "switched off by OTEL_ML_STORE=0"),
        Check("data", "traces", "ok", "otlp (http://****@collector:4318)"),
        Check("data", "metrics", "ok", "console"),
        Check("data", "logs", "note", "nowhere"),
    ]


@pytest.mark.parametrize(
    ("environ", "broken"),
    [
        (
            {"OTEL_TRACES_EXPORTER": "carrier-pigeon"},
            Check("data", "traces", "broken", "exporter carrier-pigeon is not installed"),
        ),
        (
            {"OTEL_LOGS_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/yaml"},
            Check(
                "data", "logs", "broken",
                "OTLP over 'http/yaml' is not known; set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
            ),
        ),
        (
            {"OTEL_CONFIG_FILE": "/no/such.yaml"},
            Check("data", "OTEL_CONFIG_FILE", "broken", "/no/such.yaml does not exist"),
        ),
        (
            {"OTEL_ML_STOR": "0"},
            Check(
                "data", "settings", "broken", "OTEL_ML_STOR: there is no such setting. Did you mean OTEL_ML_STORE?"
            ),
        ),
        (
            {"OTEL_ML_DIR": __file__ + "/runs"},
            Check("data", "store", "broken", f"{__file__} is no folder; set OTEL_ML_DIR to another"),
        ),
        (
            {"OTEL_ML_DIR": "/proc/self/runs"},
            Check(
                "data", "store", "broken", "/proc/self cannot be written to; set OTEL_ML_DIR to another folder"
            ),
        ),
        (
            {"OTEL_PYTHON_DISTRO": "lost"},
            Check(
                "launcher", "distro", "broken",
                "lost is not installed (OTEL_PYTHON_DISTRO); also installed: otel_ml",
            ),
        ),
    ],
)  # fmt: skip
def test_broken(environ: dict[str, str], broken: Check) -> None:
    """What is broken is said once, with what to do."""
    assert [check for check in examine(environ) if check.status == "broken"] == [broken]


def test_launcher() -> None:
    """Our distro and configurator win, and what is switched off is marked."""
    checks = {check.name: check for check in found("launcher", OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="otel_ml_torch")}
    assert checks["distro"].detail.startswith("otel_ml wins")
    assert checks["configurator"].detail.startswith("otel_ml wins")
    assert "otel_ml_torch (switched off)" in checks["instrumentors"].detail


def test_sdk_disabled() -> None:
    """With the SDK disabled nothing is said about exporters: nothing is recorded."""
    assert found("data", OTEL_SDK_DISABLED="true") == [
        Check("data", "sdk", "note", "switched off by OTEL_SDK_DISABLED=true: nothing is recorded")
    ]


def test_json_and_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """--json has the same checks; the exit code is 1 exactly when one is broken."""
    monkeypatch.setenv("OTEL_ML_DIR", str(tmp_path))
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report) == ["ok", "checks"]
    assert report["ok"] is True
    assert {tuple(check) for check in report["checks"]} == {("section", "name", "status", "detail")}
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "carrier-pigeon")
    assert main(["doctor"]) == 1
    assert "data\ttraces\tbroken\texporter carrier-pigeon is not installed" in capsys.readouterr().out.splitlines()


def test_no_framework_is_imported() -> None:
    """The doctor reads versions from metadata and imports neither torch nor the SDK."""
    program = (
        "import sys; from otel_ml.cli.main import main; main(['doctor', '--json'])\n"
        "print([m for m in ('torch', 'jax', 'numpy', 'opentelemetry.sdk') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_hooks(framework: str, tmp_path: Path) -> None:
    """--hooks reports every hook of a real process, and with the tested release each one is there."""
    import os

    report = hook_report(framework, {**os.environ, "OTEL_ML_DIR": str(tmp_path)})
    assert report
    assert {name: state for name, state in report.items() if state != "hooked"} == {}
