"""Runs a program of `programs/` plainly and under the launcher at the same time, and gives back both accounts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otel_ml.store.reader import RunReader
from otel_ml.store.runs import list_runs
from tests.e2e.launching import PLAIN, RUN, environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_ml.totals import RunTotals

PROGRAMS = Path(__file__).parent / "programs"
TIMEOUT_S = 180
SHOWN = 300  # characters of each of two values that differ
LINES = 20


@dataclass(frozen=True)
class Account:
    """What one process did, as the program itself and its parent saw it."""

    stdout: str
    stderr: str
    code: int

    @property
    def facts(self) -> dict[str, Any]:
        """The program's facts, by case."""
        assert self.code == 0, self.stderr
        line = next(line for line in self.stdout.splitlines() if line.startswith("facts "))
        return dict(json.loads(line.removeprefix("facts ")))


@dataclass(frozen=True)
class Both:
    """The same program twice."""

    plain: Account
    hooked: Account
    runs: Path

    def totals(self) -> list[RunTotals]:
        """What we recorded in the hooked one, a process each."""
        return [totals for run in list_runs(self.runs) for totals in RunReader(run.path).totals()]


def both(program: str, *arguments: str, cwd: Path, **env: str) -> Both:
    """Run a program plainly and hooked, each in a folder of its own, at the same time.

    Errors of ours are raised in the hooked one, so that none hides behind the guard.
    """
    runs = cwd / "runs"
    env = {"PYTHONFAULTHANDLER": "1", **env}
    more = {"OTEL_ML_DIR": str(runs), "OTEL_ML_SUMMARY": "0", "OTEL_ML_STRICT": "1", **env}
    started = []
    for name, launcher in (("plain", PLAIN), ("hooked", RUN)):
        folder = cwd / name
        folder.mkdir()
        command = [*launcher, str(PROGRAMS / f"{program}.py"), *arguments]
        started.append(
            subprocess.Popen(
                command, cwd=folder, env=environment(**(more if launcher is RUN else env)),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                start_new_session=True,
            )
        )  # fmt: skip
    try:
        plain, hooked = map(_ended, started)
    finally:
        for process in started:
            _kill(process, signal.SIGKILL)
            process.communicate()
    return Both(plain, hooked, runs)


def _ended(process: subprocess.Popen[str]) -> Account:
    try:
        return Account(*process.communicate(timeout=TIMEOUT_S), process.wait())
    except subprocess.TimeoutExpired:
        _kill(process, signal.SIGABRT)  # faulthandler says where each thread is
        out, err = process.communicate(timeout=60)
        message = f"{process.args!r} did not end within {TIMEOUT_S} s\n{out}\n{err}"
        raise AssertionError(message) from None


def _kill(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal to the process and its children: those that hang hold its pipes open."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def python(program: str, *arguments: str, cwd: Path, **env: str) -> Account:
    """Run a program of this folder with this Python alone."""
    done = subprocess.run(
        [sys.executable, str(PROGRAMS / f"{program}.py"), *arguments],
        cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    return Account(done.stdout, done.stderr, done.returncode)


def same(hooked: object, plain: object) -> None:
    """Hold that both are equal, and show no more than where they are not."""
    found = list(differences(hooked, plain))
    assert hooked == plain, "\n".join(["", *found[:LINES], f"{len(found)} differences"])


def differences(hooked: object, plain: object, at: str = "") -> Iterator[str]:
    """Where two structures differ, a line each."""
    if isinstance(hooked, dict) and isinstance(plain, dict):
        for key in {**plain, **hooked}:
            yield from differences(hooked.get(key), plain.get(key), f"{at}/{key}")
    elif isinstance(hooked, list) and isinstance(plain, list) and len(hooked) == len(plain):
        for number, pair in enumerate(zip(hooked, plain, strict=True)):
            yield from differences(*pair, f"{at}[{number}]")
    elif hooked != plain:
        yield f"{at}: plain {str(plain)[:SHOWN]} hooked {str(hooked)[:SHOWN]}"


def compare(program: str, cwd: Path, **env: str) -> Both:
    """Run a program both ways; hold that it did the same, that every case ran, and that we were really there."""
    ran = both(program, cwd=cwd, **env)
    plain, hooked = ran.plain.facts, ran.hooked.facts
    assert {name: facts["raised"] for name, facts in plain.items() if "raised" in facts} == {}
    same(hooked, plain)
    recorded = ran.totals()
    assert sum(totals.records for totals in recorded) > 0
    assert sum(totals.records_dropped + totals.errors for totals in recorded) == 0
    return ran
