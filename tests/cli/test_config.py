"""`otel-ml config` shows what is in force, where it came from, and no secret."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from otel_ml.cli.config import describe
from otel_ml.cli.main import main
from otel_ml.settings import SETTINGS

SECRET = "hunter2hunter2"  # noqa: S105 - it must not be printed


@pytest.fixture(autouse=True)
def _environ(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few variables set, secrets among them, and nothing else of OTel's."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("OTEL_ML_STEPS_PER_SECOND", "0.5")
    monkeypatch.setenv("OTEL_ML_VIEWS_DROP", "ml.run.*, ml.training.loss")
    monkeypatch.setenv("OTEL_ML_RUN_NAME", f"token={SECRET}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://ada:{SECRET}@collector:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"x-key={SECRET}")


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    """--json has every setting with value, source, default, doc and example, OTel's own that are set, and exporters."""
    assert main(["config", "--json"]) == 0
    out = capsys.readouterr().out
    described = json.loads(out)
    assert SECRET not in out
    assert {row["name"]: (row["value"], row["source"]) for row in described["settings"]} == {
        name: ({**DEFAULTS, **SET}[name], "env" if name in SET else "default") for name in SETTINGS
    }
    assert described["settings"][0] == {
        "name": "OTEL_ML_ENABLED", "value": True, "source": "default", "default": "1",
        "doc": "0 switches all of otel-ml off.", "example": "0",
    }  # fmt: skip
    assert described["otel"] == [
        {"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://****@collector:4318", "source": "env"},
        {"name": "OTEL_EXPORTER_OTLP_HEADERS", "value": "****", "source": "env"},
    ]
    assert described["exporters"] == {signal: ["otlp", "store"] for signal in ("traces", "metrics", "logs")}
    assert list(described) == ["settings", "otel", "exporters"]


SET = {
    "OTEL_ML_STEPS_PER_SECOND": 0.5, "OTEL_ML_VIEWS_DROP": ["ml.run.*", "ml.training.loss"],
    "OTEL_ML_RUN_NAME": "token=****",
}  # fmt: skip
DEFAULTS = {
    "OTEL_ML_ENABLED": True, "OTEL_ML_SUMMARY": True, "OTEL_ML_VERBOSE": False,
    "OTEL_ML_NATIVE": True,
    "OTEL_ML_DIR": "/home/ada/.local/share/otel-ml", "OTEL_ML_STORE": True, "OTEL_ML_STORE_RUN_MB": 256,
    "OTEL_ML_STORE_TOTAL_MB": 2048, "OTEL_ML_STORE_DAYS": 30, "OTEL_ML_RUN_ID": None,
    "OTEL_ML_POINTS_PER_SECOND": 128.0, "OTEL_ML_POINTS_BURST": 2000, "OTEL_ML_BUFFER": 262144,
    "OTEL_ML_SHUTDOWN_TIMEOUT": 5.0, "OTEL_ML_STRICT": False, "OTEL_ML_VIEWS_EXPONENTIAL": [],
    "OTEL_ML_PROFILE_STEPS": None, "OTEL_ML_PROFILE_SIGNAL": None, "OTEL_ML_DEBUG": [],
    "OTEL_ML_BACKENDS": None, "OTEL_ML_STACK_DIR": "/home/ada/.local/share/otel-ml-stack",
    "OTEL_ML_LISTEN": "127.0.0.1",
    "OTEL_ML_CONFIG": None,
}  # fmt: skip


def test_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What the configuration file says is shown as that file's."""
    file = tmp_path / "otel-ml.yaml"
    file.write_text(f"service_name: gpt\ndirectory: {tmp_path}\n", encoding="utf-8")
    monkeypatch.setenv("OTEL_ML_CONFIG", str(file))
    assert main(["config"]) == 0
    rows = [line.split("\t")[:3] for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if row[2] == "file"] == [
        ["OTEL_ML_DIR", str(tmp_path), "file"], ["OTEL_SERVICE_NAME", "gpt", "file"],
    ]  # fmt: skip


def test_tabs(capsys: pytest.CaptureFixture[str]) -> None:
    """Where stdout is no terminal each line is name, value, source and meaning, as a user would type the value."""
    assert main(["config"]) == 0
    rows = [text.split("\t") for text in capsys.readouterr().out.splitlines()]
    assert {len(row) for row in rows} == {4}
    assert [row for row in rows if row[2] == "env"] == [
        ["OTEL_ML_RUN_NAME", "token=****", "env", SETTINGS["OTEL_ML_RUN_NAME"].doc],
        ["OTEL_ML_STEPS_PER_SECOND", "0.5", "env", SETTINGS["OTEL_ML_STEPS_PER_SECOND"].doc],
        ["OTEL_ML_VIEWS_DROP", "ml.run.*,ml.training.loss", "env", SETTINGS["OTEL_ML_VIEWS_DROP"].doc],
        ["OTEL_EXPORTER_OTLP_ENDPOINT", "http://****@collector:4318", "env", ""],
        ["OTEL_EXPORTER_OTLP_HEADERS", "****", "env", ""],
    ]


def test_values_can_be_typed_back() -> None:
    """What config shows for a default is what the setting reads back as the same value."""
    for row in describe({"HOME": str(Path.home())})["settings"]:
        setting = SETTINGS[row["name"]]
        assert setting.parse(row["default"]) == setting.parse(setting.default_text({"HOME": str(Path.home())}))
