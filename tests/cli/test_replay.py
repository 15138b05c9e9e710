"""`otel-ml replay`: what it sends, what it says, and what it leaves alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from otel_ml.cli.main import main
from tests.export.far import TAKEN, Far, recorded
from tests.store.conftest import Program

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The runs are in the test's folder, and no endpoint is set."""
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_HEADERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OTEL_ML_DIR", str(tmp_path))


def test_the_newest_run_is_sent_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a run's name it is the newest; columns with tabs between say what became of each signal."""
    recorded(tmp_path)
    with Far() as far:
        code = main(["replay", "--endpoint", far.endpoint])

    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["run", "signal", "sent", "refused", "left"],
        ["run-1", "traces", "3", "0", "0"],
        ["run-1", "logs", "2", "0", "0"],
        ["run-1", "metrics", "2", "0", "0"],
    ]
    assert (code, far.spans()) == (0, ["s0", "s1", "s2"])


def test_every_run_is_sent_and_told_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--all` sends every run; what an endpoint refuses is there with its reason, and what it has is no more."""
    recorded(tmp_path, "run-1")
    recorded(tmp_path, "run-2", spans=1)
    with Far(
        lambda signal, request: (400, {}, b"no logs") if signal == "logs" and request.resource_logs else TAKEN
    ) as far:
        code = main(["replay", "--all", "--json", "--endpoint", far.endpoint])

    told = json.loads(capsys.readouterr().out)
    logs = {"sent": 0, "refused": 2, "left": 0, "reason": "400 no logs"}
    assert {run["id"]: run["signals"]["logs"] for run in told["runs"]} == {"run-1": logs, "run-2": logs}
    assert {run["id"]: run["signals"]["traces"]["sent"] for run in told["runs"]} == {"run-1": 3, "run-2": 1}
    assert (code, told["schema"]) == (0, 1)


def test_a_file_that_cannot_be_read_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is damaged is told, the other runs are sent all the same, and the exit code says that not all is well."""
    recorded(tmp_path, "run-1")
    (tmp_path / "run-2").mkdir()
    (tmp_path / "run-2" / "rank0-0.sqlite").write_bytes(b"no database" * 500)
    with Far() as far:
        code = main(["replay", "--all", "--endpoint", far.endpoint])

    assert (code, far.spans()) == (1, ["s0", "s1", "s2"])
    assert "rank0-0.sqlite" in capsys.readouterr().err


def test_a_password_is_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An endpoint without a scheme is refused without a word of it."""
    recorded(tmp_path)
    assert main(["replay", "--endpoint", "ada:hunter2hunter2@collector:4318"]) == 2
    said = capsys.readouterr().err
    assert "an OTLP/HTTP endpoint begins with http:// or https://" in said
    assert "hunter2" not in said


def test_a_dry_run_sends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It needs no endpoint, says what is left, and exits with 1 for it; `--local` counts what had no endpoint."""
    recorded(tmp_path, owed=False)
    codes = [main(["replay", "--dry-run"]), main(["replay", "--dry-run", "--local"])]

    left = [line.split("\t")[-1] for line in capsys.readouterr().out.splitlines()]
    assert (codes, left) == ([0, 1], ["left", "0", "0", "0", "left", "3", "2", "2"])


def test_an_endpoint_that_is_away_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code is 1, what is left is counted, and one line says why."""
    recorded(tmp_path)
    with Far() as far:
        nobody = far.endpoint
    code = main(["replay", "--wait", "0", "--endpoint", nobody])

    said = capsys.readouterr()
    assert code == 1
    assert [line.split("\t")[2:] for line in said.out.splitlines()[1:]] == [
        ["0", "0", "3"],
        ["0", "0", "2"],
        ["0", "0", "2"],
    ]
    assert said.err.startswith(f"otel-ml: run-1: {nobody}/v1/traces: ConnectionRefused")


def test_without_an_endpoint_it_says_what_to_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing leaves the machine to a place that nobody named."""
    recorded(tmp_path)

    assert main(["replay"]) == 2
    assert capsys.readouterr().err == (
        "otel-ml: where to? Set OTEL_EXPORTER_OTLP_ENDPOINT, or type --endpoint http://localhost:4318\n"
    )


def test_a_process_that_runs_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own exporters and spool see to it."""
    program = Program(tmp_path)
    program.span("live")
    program.flush()
    with Far() as far:
        code = main(["replay", "--local", "--endpoint", far.endpoint])
    program.end()

    assert (code, far.asked) == (0, [])
    assert "still runs and sends by itself" in capsys.readouterr().err
