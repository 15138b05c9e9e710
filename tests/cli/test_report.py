"""`otel-ml report`: from the store to the page or the JSON, whichever run was meant."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.resources import Resource

from otel_ml.cli import report
from otel_ml.errors import StoreError
from otel_ml.overview import print_totals
from otel_ml.store.writer import StoreWriter
from otel_ml.totals import Distribution, RunTotals

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """80 columns, no colour, and nothing set by whoever runs the tests."""
    for name in ("FORCE_COLOR", "OTEL_ML_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


def totals_of(run_id: str, **more: object) -> RunTotals:
    """Totals of a short training that finished."""
    totals = RunTotals(
        run_id=run_id,
        run_name="train.py",
        pid=1,
        started_unix_ns=1_795_264_803_000_000_000,
        ended_unix_ns=1_795_264_813_000_000_000,
        outcome="finished",
        duration_s=10.0,
        steps=100,
        micro_batches=100,
        step_time=Distribution(100, 8.0, 0.08, 0.09, 0.1),
        phases={"forward": 4.0, "backward": 4.0},
        time={"productive": 8.0, "startup": 2.0},
    )
    return RunTotals.from_dict({**totals.to_dict(), **more})


def store(directory: Path, totals: RunTotals) -> None:
    """A finished process of a run on disk, through the writer itself."""
    writer = StoreWriter(directory, totals.run_id, run_bytes=10_000_000, total_bytes=100_000_000, total_age_s=1e9)
    resource = Resource({"ml.run.id": totals.run_id, "ml.run.name": totals.run_name})
    provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(writer.log_exporter))
    writer.open_gate()
    provider.get_logger("test").emit(event_name="ml.run.started", timestamp=totals.started_unix_ns)
    writer.finish(
        totals=totals.to_dict(),
        ended_unix_ns=totals.ended_unix_ns or 0,
        outcome=totals.outcome,
        exit_code=totals.exit_code,
    )
    writer.close()


def otel_ml_report(*words: str) -> int:
    """The command with these words."""
    parser = argparse.ArgumentParser()
    report.prepare_parser(parser)
    return report.run(parser.parse_args(words))


def test_the_report_is_the_summary_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was printed at the end is printed again, to stdout, by id, by its beginning or by name."""
    totals = totals_of("2026-a")
    store(tmp_path, totals)
    assert otel_ml_report("2026-a", "--dir", str(tmp_path)) == 0
    page = capsys.readouterr()
    assert (page.out.count("otel-ml report 2026-a"), page.err) == (1, "")
    for words in (["--dir", str(tmp_path)], ["2026", "--dir", str(tmp_path)], ["train.py", "--dir", str(tmp_path)]):
        assert otel_ml_report(*words) == 0
        assert capsys.readouterr().out == page.out
    print_totals([totals])
    assert capsys.readouterr().err == page.out


def test_without_a_folder_the_setting_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """OTEL_ML_DIR is where the program wrote, so it is where the report looks."""
    store(tmp_path, totals_of("here"))
    monkeypatch.setenv("OTEL_ML_DIR", str(tmp_path))
    assert otel_ml_report() == 0
    assert "otel-ml report here" in capsys.readouterr().out


def test_the_json_of_a_run_of_two_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every process is in the JSON with all of its totals, the shown one first."""
    ranks = [totals_of("job", rank=rank, world_size=2, pid=rank + 1) for rank in (1, 0)]
    for totals in ranks:
        store(tmp_path, totals)
    assert otel_ml_report("job", "--json", "--dir", str(tmp_path)) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["run"]["id"] == "job"
    assert [RunTotals.from_dict(process) for process in data["processes"]] == [ranks[1], ranks[0]]


def test_a_rank_that_left_nothing_is_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report sees the whole folder, so it says when a rank is not in it."""
    store(tmp_path, totals_of("job", rank=0, world_size=2))
    assert otel_ml_report("--dir", str(tmp_path)) == 0
    assert "  ▲ 1 of 2 ranks left no record in this folder.\n" in capsys.readouterr().out


def test_a_damaged_file_costs_a_line_and_not_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What can be read is shown; what cannot is said on stderr, so that --json stays JSON."""
    store(tmp_path, totals_of("job"))
    (tmp_path / "job" / "zzz.sqlite").write_bytes(b"not a database at all" * 100)
    assert otel_ml_report("job", "--json", "--dir", str(tmp_path)) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["run"]["outcome"] == "finished"
    assert printed.err.startswith(f"otel-ml: {tmp_path}/job/zzz.sqlite cannot be read")


def test_a_run_that_is_not_there_is_an_error_that_helps(tmp_path: Path) -> None:
    """A typing error names the run that was probably meant; an empty folder says how to fill it."""
    with pytest.raises(StoreError, match=r"no run in .* yet; type `otel-ml run"):
        otel_ml_report("--dir", str(tmp_path))
    store(tmp_path, totals_of("gpt-42"))
    with pytest.raises(StoreError, match=r"no run 'gtp-42' in .*; did you mean gpt-42 \(train.py\)"):
        otel_ml_report("gtp-42", "--dir", str(tmp_path))
