"""`otel-ml runs`: what it lists on a terminal, into a pipe and as JSON, and what it will not delete."""

from __future__ import annotations

import argparse
import io
import json
import os
import pty
import re
import select
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.resources import Resource

from otel_ml.cli import runs
from otel_ml.errors import CommandError, StoreError
from otel_ml.store.writer import StoreWriter
from otel_ml.totals import RunTotals

if TYPE_CHECKING:
    from collections.abc import Iterator

STARTED_S = 1_795_264_803  # 2026-11-21 12:40:03 UTC


@pytest.fixture(autouse=True)
def _a_plain_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """80 columns, no colour, the clock in UTC, and nothing set by whoever runs the tests."""
    for name in ("FORCE_COLOR", "OTEL_ML_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def store(
    directory: Path, run_id: str, *, name: str = "train.py", day: int = 0, outcome: str | None = "finished"
) -> None:
    """A run of this process on disk, through the writer itself, dated back; without an outcome it goes on."""
    started = (STARTED_S + day * 86_400) * 10**9
    writer = StoreWriter(directory, run_id, run_bytes=10_000_000, total_bytes=100_000_000, total_age_s=1e9)
    provider = LoggerProvider(Resource({"ml.run.id": run_id, "ml.run.name": name}), shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(writer.log_exporter))
    writer.open_gate()
    provider.get_logger("test").emit(event_name="ml.run.started", timestamp=started)
    if outcome is not None:
        totals = RunTotals(run_id=run_id, run_name=name, outcome=outcome, steps=1200 + day)
        ended = started + 192_300_000_000
        writer.finish(totals=totals.to_dict(), ended_unix_ns=ended, outcome=outcome, exit_code=None)
    writer.close()
    assert writer.path is not None
    with closing(sqlite3.connect(writer.path)) as connection, connection:
        connection.execute("UPDATE process SET started_unix_ns = ?", (started,))


def otel_ml_runs(directory: Path, *words: str) -> int:
    """The command with these words."""
    parser = argparse.ArgumentParser()
    runs.prepare_parser(parser)
    return runs.run(parser.parse_args(["--dir", str(directory), *words]))


def left(directory: Path) -> list[str]:
    """The runs that are still there."""
    return sorted(path.name for path in directory.iterdir())


@dataclass
class Terminal:
    """The other side of a pseudo terminal: types, and sees what is shown."""

    master: int
    slave: int

    def types(self, text: str) -> None:
        """Type ahead."""
        os.write(self.master, text.encode())

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Be stdin, stdout and stderr for a while."""
        with (
            os.fdopen(os.dup(self.slave), encoding="utf-8") as typed,
            os.fdopen(os.dup(self.slave), "w", encoding="utf-8", buffering=1) as shown,
            redirect_stdout(shown),
            redirect_stderr(shown),
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(sys, "stdin", typed)
            yield

    def shown(self) -> str:
        """Everything that was shown so far, without its styles."""
        text = b""
        while select.select([self.master], [], [], 0.2)[0]:
            text += os.read(self.master, 65536)
        return re.sub(r"\x1b\[[\d;]*m", "", text.decode()).replace("\r\n", "\n")


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """A terminal of no real size."""
    master, slave = pty.openpty()
    yield Terminal(master, slave)
    os.close(slave)
    os.close(master)


def test_a_terminal_gets_a_table(tmp_path: Path, terminal: Terminal) -> None:
    """The newest run is first, ids are whole, and a name is cut where there is no room for it."""
    store(tmp_path, "20261121-124003-7f3a9c")
    store(tmp_path, "20261122-124003-0d81b2", name="fine_tune_the_large_model.py", day=1, outcome="failed")
    store(tmp_path, "sweep/7", name="[red]x\x1b[31m", day=2, outcome="interrupted")
    with terminal.attached():
        assert otel_ml_runs(tmp_path) == 0
    assert terminal.shown().splitlines() == [
        "RUN                     NAME              STATE        STARTED       TOOK  STEPS",
        "sweep/7                 [red]x\\x1b[31m    interrupted  11-23 12:40  3m12s  1,202",
        "20261122-124003-0d81b2  fine_tune_the_l…  failed       11-22 12:40  3m12s  1,201",
        "20261121-124003-7f3a9c  train.py          finished     11-21 12:40  3m12s  1,200",
    ]


def test_ids_that_take_all_the_room_are_still_whole(tmp_path: Path, terminal: Terminal) -> None:
    """Where no room is left for names, they go and the ids stay: an id is there to be copied."""
    store(tmp_path, "fine_tune_the_model-20261121-1240-44bpub", name="fine_tune_the_model")
    with terminal.attached():
        assert otel_ml_runs(tmp_path) == 0
    assert terminal.shown().splitlines() == [
        "RUN                                       STATE     STARTED       TOOK  STEPS",
        "fine_tune_the_model-20261121-1240-44bpub  finished  11-21 12:40  3m12s  1,200",
    ]


def test_a_wide_terminal_gets_the_size_as_well(
    tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is room, the table says what each run takes on disk."""
    monkeypatch.setenv("COLUMNS", "120")
    store(tmp_path, "20261121-124003-7f3a9c")
    with terminal.attached():
        assert otel_ml_runs(tmp_path) == 0
    head, row = terminal.shown().splitlines()
    assert head.split() == ["RUN", "NAME", "STATE", "STARTED", "TOOK", "STEPS", "SIZE"]
    assert re.fullmatch(
        r"20261121-124003-7f3a9c +train.py +finished +2026-11-21 12:40 +3m12s +1,200 +[\d.]+ KiB *", row
    )


def test_a_pipe_gets_columns_with_tabs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other programs get a header and a line a run, whatever is in a name."""
    store(tmp_path, "a", name="tab\there\nand a line")
    store(tmp_path, "b", day=1)
    assert otel_ml_runs(tmp_path) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    for line in lines[1:]:
        assert int(line.pop(6)) > 0
    assert lines == [
        ["id", "name", "state", "started", "duration_s", "steps", "size_by", "path"],
        ["b", "train.py", "finished", "2026-11-22T12:40:03+00:00", "192.300", "1201", str(tmp_path / "b")],
        [
            "a",
            "tab\\there\\nand a line",
            "finished",
            "2026-11-21T12:40:03+00:00",
            "192.300",
            "1200",
            str(tmp_path / "a"),
        ],
    ]


def test_the_json_has_the_documented_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The keys in the help are those that are printed; --limit keeps the newest."""
    store(tmp_path, "a")
    store(tmp_path, "b", day=1)
    assert otel_ml_runs(tmp_path, "--json", "--limit", "1") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["runs"][0].pop("size_by") > 0
    assert data == {
        "schema": 1,
        "runs": [
            {
                "id": "b",
                "name": "train.py",
                "state": "finished",
                "path": str(tmp_path / "b"),
                "started_unix_ns": (STARTED_S + 86_400) * 10**9,
                "ended_unix_ns": (STARTED_S + 86_400) * 10**9 + 192_300_000_000,
                "duration_s": 192.3,
                "steps": 1201,
                "processes": 1,
                "problems": [],
            }
        ],
    }


def test_no_run_is_said_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty folder is no error: stdout stays readable for programs, stderr says what to type."""
    assert otel_ml_runs(tmp_path / "none", "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"schema": 1, "runs": []}
    assert printed.err == f"otel-ml: no run in {tmp_path / 'none'} yet; type `otel-ml run script.py` to record one\n"


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1.5"])
def test_a_limit_that_is_no_number_is_refused(tmp_path: Path, limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The refusal says what is needed."""
    with pytest.raises(SystemExit):
        otel_ml_runs(tmp_path, f"--limit={limit}")
    assert f"need a whole number ≥ 1, not {limit!r}" in capsys.readouterr().err


def test_a_live_run_is_listed_and_never_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run whose process lives is running: rm refuses, and takes nothing else with it."""
    store(tmp_path, "alive", outcome=None)
    store(tmp_path, "over")
    assert otel_ml_runs(tmp_path) == 0
    assert sorted(line.split("\t")[2] for line in capsys.readouterr().out.splitlines()[1:]) == ["finished", "running"]
    with pytest.raises(
        CommandError, match=rf"run alive \(train.py\) is still running \(process {os.getpid()} on .*stop"
    ):
        otel_ml_runs(tmp_path, "rm", "-y", "over", "alive")
    assert left(tmp_path) == ["alive", "over"]


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_runs import store
store(Path(sys.argv[2]), "dead", outcome=None)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_all_that_is_over_goes_and_what_lives_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--all-finished means every run that is over, a killed one too."""
    here = Path(__file__).resolve().parent
    command = [sys.executable, "-c", KILLED, str(here), str(tmp_path)]
    assert subprocess.run(command, check=False, timeout=60, cwd=here.parents[1]).returncode == -signal.SIGKILL
    store(tmp_path, "alive", outcome=None)
    store(tmp_path, "failed", day=1, outcome="failed")
    assert otel_ml_runs(tmp_path, "rm", "--all-finished", "-y") == 0
    printed = re.sub(r"[\d.]+ KiB", "SIZE", capsys.readouterr().out)
    assert sorted(printed.splitlines()) == ["deleted dead (train.py), SIZE", "deleted failed (train.py), SIZE"]
    assert left(tmp_path) == ["alive"]
    assert otel_ml_runs(tmp_path, "rm", "--all-finished") == 0
    assert capsys.readouterr().err == f"otel-ml: no run in {tmp_path} is over; nothing was deleted\n"


@pytest.mark.parametrize(
    ("typed", "code", "stays"),
    [("y\n", 0, []), ("n\n", 1, ["20-a", "20-b"]), ("\n", 1, ["20-a", "20-b"])],
)
def test_a_terminal_is_asked(tmp_path: Path, terminal: Terminal, typed: str, code: int, stays: list[str]) -> None:
    """What would go is listed, and only a yes deletes it."""
    store(tmp_path, "20-a")
    store(tmp_path, "20-b", outcome="killed")
    terminal.types(typed)
    with terminal.attached():
        assert otel_ml_runs(tmp_path, "rm", "20-a", "20-b", "20-a") == code
    shown = re.sub(r"[\d.]+ KiB", "SIZE", terminal.shown())
    assert "  20-a (train.py), finished, SIZE\n  20-b (train.py), killed, SIZE\nDelete 2 runs (SIZE)? [y/N] " in shown
    assert left(tmp_path) == stays


def test_without_a_terminal_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script has to say -y; until then nothing goes."""
    store(tmp_path, "a")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(CommandError, match=r"this would delete 1 run \(.* KiB\); type -y as well"):
        otel_ml_runs(tmp_path, "rm", "a")
    assert left(tmp_path) == ["a"]


def test_what_is_meant_must_be_clear(tmp_path: Path) -> None:
    """Nothing named, a name that two runs bear, a beginning of two, a typing error: each says what to type."""
    store(tmp_path, "20-a")
    store(tmp_path, "20-b", day=1)
    store(tmp_path, "c", name="once.py")
    for words, message in (
        ([], "which run.* --all-finished`"),
        (["train.py"], "2 runs are called 'train.py': 20-b, 20-a. Type the id"),
    ):
        with pytest.raises(CommandError, match=message):
            otel_ml_runs(tmp_path, "rm", "-y", *words)
    for word, message in (("20", "several runs begin with '20'"), ("20-c", "no run '20-c' in")):
        with pytest.raises(StoreError, match=message):
            otel_ml_runs(tmp_path, "rm", "-y", word)
    assert otel_ml_runs(tmp_path, "rm", "-y", "once.py") == 0
    assert left(tmp_path) == ["20-a", "20-b"]


def test_a_folder_given_after_rm_counts_too(tmp_path: Path) -> None:
    """--dir means the same before and after rm."""
    store(tmp_path / "runs", "a")
    assert otel_ml_runs(tmp_path, "rm", "a", "-y", "--dir", str(tmp_path / "runs")) == 0
    assert left(tmp_path / "runs") == []


def test_a_run_that_cannot_be_read_is_listed_and_can_be_deleted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged run is not hidden: it takes space, and rm gets rid of it."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.sqlite").write_bytes(b"no database" * 500)
    assert otel_ml_runs(tmp_path, "--json") == 0
    (described,) = json.loads(capsys.readouterr().out)["runs"]
    assert (described["id"], described["state"], described["duration_s"], len(described["problems"])) == (
        "broken", "lost", None, 1,
    )  # fmt: skip
    assert otel_ml_runs(tmp_path, "rm", "broken", "-y") == 0
    assert left(tmp_path) == []
