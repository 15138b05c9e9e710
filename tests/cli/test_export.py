"""`otel-ml export`: a run as OTLP JSON lines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from otel_ml.cli.main import main
from tests.export.far import recorded

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The runs are in the test's folder."""
    monkeypatch.setenv("OTEL_ML_DIR", str(tmp_path / "runs"))


def exported(*arguments: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The documents that are written to stdout."""
    assert main(["export", *arguments]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_span_is_written_as_otlp_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ids are hex, enums and flags numbers, instants and whole numbers text, and keys in camel case."""
    recorded(tmp_path / "runs", spans=1)
    (document,) = exported("--signal", "traces", capsys=capsys)

    (outer,) = document["resourceSpans"]
    (inner,) = outer["scopeSpans"]
    (span,) = inner["spans"]
    assert sorted(outer["resource"]["attributes"], key=lambda a: str(a["key"])) == [
        {"key": "ml.rank", "value": {"intValue": "0"}},
        {"key": "ml.run.id", "value": {"stringValue": "run-1"}},
        {"key": "ml.run.name", "value": {"stringValue": "digits"}},
        {"key": "ml.world_size", "value": {"intValue": "2"}},
        {"key": "service.name", "value": {"stringValue": "train"}},
    ]
    assert (outer["schemaUrl"], inner["schemaUrl"], inner["scope"]) == (
        "https://example.test/schema",
        "https://example.test/scope",
        {"name": "otel_ml", "version": "1.0"},
    )
    assert {len(span["traceId"]), len(bytes.fromhex(span["traceId"])) * 2} == {32}
    assert len(bytes.fromhex(span["spanId"])) == 8
    rest = {key: value for key, value in span.items() if not key.endswith("Id")}
    assert rest == {
        "name": "s0", "kind": 1, "startTimeUnixNano": "10", "endTimeUnixNano": "20", "status": {}, "flags": 256,
    }  # fmt: skip


def test_each_line_is_a_request_of_one_signal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All three signals are written unless some are asked for."""
    recorded(tmp_path / "runs")
    every = exported(capsys=capsys)
    two = exported("--signal", "logs", "--signal", "metrics", capsys=capsys)

    assert [list(document) for document in every] == [["resourceSpans"], ["resourceMetrics"], ["resourceLogs"]]
    assert [list(document) for document in two] == [["resourceLogs"], ["resourceMetrics"]]
    (inner,) = every[2]["resourceLogs"][0]["scopeLogs"]
    assert [log["eventName"] for log in inner["logRecords"]] == ["ml.step", "ml.step"]


def test_many_records_are_many_lines_in_their_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is lost or said twice where a line ends."""
    recorded(tmp_path / "runs", spans=1500)
    documents = exported("--signal", "traces", capsys=capsys)

    spans = [s["name"] for d in documents for o in d["resourceSpans"] for i in o["scopeSpans"] for s in i["spans"]]
    assert spans == [f"s{number}" for number in range(1500)]
    assert len(documents) > 1


def test_a_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    """What a run recorded is private in a file as well."""
    recorded(tmp_path / "runs")
    path = tmp_path / "run.jsonl"
    assert main(["export", "-o", str(path)]) == 0
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_is_whole_or_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`-o` writes beside the place and moves it there; a folder that is missing is one line on stderr."""
    recorded(tmp_path / "runs")
    code = main(["export", "-o", str(tmp_path / "run.jsonl")])
    bad = main(["export", "-o", str(tmp_path / "nowhere" / "run.jsonl")])

    assert (code, bad) == (0, 2)
    assert "run.jsonl cannot be written: No such file or directory" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.jsonl", "runs"]
