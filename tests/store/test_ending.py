"""What the launcher noted of a program's end, and whom it is believed about."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from otel_ml.store.ending import FILE, Ending, how_it_ended, read_ending, write_ending
from otel_ml.store.runs import delete_run, find_run
from tests.store.test_reader import change, file_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.store.conftest import Program


def die(program: Callable[..., Program], runs: Path) -> None:
    """A run whose process is gone without a goodbye."""
    one = program("run-1")
    one.step(0)
    one.spans.force_flush()
    one.logs.force_flush()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    change(file_of(runs), f"UPDATE process SET pid = {dead.pid}, kernel_start = 'gone'")


@pytest.mark.parametrize(
    ("exit_code", "signal", "state"),
    [(None, 9, "killed"), (None, 2, "interrupted"), (0, None, "finished"), (3, None, "failed")],
)
def test_ending(
    program: Callable[..., Program], runs: Path, exit_code: int | None, signal: int | None, state: str
) -> None:
    """A run without a goodbye ended as its launcher saw it end."""
    die(program, runs)
    assert (find_run(runs, "run-1").state, find_run(runs, "run-1").ending) == ("killed", None)

    ending = Ending(exit_code, signal, time.time_ns())
    write_ending(runs / "run-1", ending)

    assert (find_run(runs, "run-1").state, find_run(runs, "run-1").ending) == (state, ending)
    assert (runs / "run-1" / FILE).stat().st_mode & 0o777 == 0o600


CLEAN, BAD, TERMINATED = Ending(0, None, 1), Ending(3, None, 1), Ending(None, 15, 1)


@pytest.mark.parametrize(
    ("said", "ending", "state"),
    [
        ([(None, "killed"), (None, "killed")], CLEAN, "finished"),
        ([(None, "failed")], CLEAN, "finished"),
        ([(None, "finished")], BAD, "failed"),
        ([(None, "killed")], BAD, "failed"),
        ([(0, "finished"), (1, "killed")], BAD, "killed"),
        ([(0, "killed"), (1, "failed")], BAD, "failed"),
        ([(None, "finished"), (None, "finished")], TERMINATED, "killed"),
        ([(None, "finished"), (None, "failed")], None, "finished"),
        ([(None, "killed"), (None, "finished")], None, "killed"),
        ([(0, "finished"), (1, "killed"), (None, "failed")], None, "killed"),
        ([(0, "finished"), (1, "running")], None, "running"),
        ([(0, "interrupted"), (1, "strange")], None, "interrupted"),
    ],
)
def test_how_it_ended(said: list[tuple[int | None, str]], ending: Ending | None, state: str) -> None:
    """A run ended as its launcher saw it, else as its worst rank did, else as the process that started the others."""
    assert how_it_ended(said, ending) == state


def test_the_process_that_was_launched(program: Callable[..., Program], runs: Path) -> None:
    """A process without a goodbye lived until its launcher saw it end, not until its newest row."""
    die(program, runs)
    at = time.time_ns()
    (before,) = find_run(runs, "run-1").processes
    ends = []
    for pid in (before.pid + 1, before.pid):
        write_ending(runs / "run-1", Ending(None, 9, at, pid))
        found = find_run(runs, "run-1")
        ends.append((found.processes[0].last_unix_ns, found.ended_unix_ns))
    assert ends == [(before.last_unix_ns, at), (at, at)]


def test_a_newer_note(program: Callable[..., Program], runs: Path) -> None:
    """A note that says more than is known here, or less, is read."""
    die(program, runs)
    for text in (
        '{"exit_code": 0, "signal": null, "at_unix_ns": 1, "host": "a"}',
        '{"exit_code": 0, "signal": null, "at_unix_ns": 1}',
    ):
        (runs / "run-1" / FILE).write_text(text)
        assert read_ending(runs / "run-1") == CLEAN


def test_old_ending(program: Callable[..., Program], runs: Path) -> None:
    """A process that began after the note was written is not the one that it speaks of."""
    die(program, runs)
    write_ending(runs / "run-1", Ending(0, None, 1))
    assert (find_run(runs, "run-1").state, find_run(runs, "run-1").ending) == ("killed", None)


def test_no_ending(program: Callable[..., Program], runs: Path) -> None:
    """A run that was not recorded gets no note, a damaged note is none, and a run is deleted with its note."""
    write_ending(runs / "other", Ending(0, None, 1))
    assert not (runs / "other").exists()

    die(program, runs)
    (runs / "run-1" / FILE).write_text("{")
    assert read_ending(runs / "run-1") is None
    delete_run(runs, find_run(runs, "run-1"))
    assert not (runs / "run-1").exists()
