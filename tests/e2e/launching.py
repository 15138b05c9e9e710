"""Runs the ordinary programs of this folder plainly and under the launchers, and reads what was recorded."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otel_ml.store.reader import RunReader
from otel_ml.store.runs import find_run, list_runs

if TYPE_CHECKING:
    from otel_ml.totals import RunTotals

PROGRAMS = Path(__file__).parent / "programs"
BIN = Path(sys.executable).parent
PLAIN: tuple[str, ...] = (sys.executable,)
RUN: tuple[str, ...] = (str(BIN / "otel-ml"), "run")
INSTRUMENT: tuple[str, ...] = (str(BIN / "opentelemetry-instrument"), sys.executable)
LAUNCHERS = {"otel-ml run": RUN, "opentelemetry-instrument": INSTRUMENT}


@dataclass(frozen=True)
class Outcome:
    """What a process printed and how it ended."""

    stdout: str
    stderr: str
    code: int

    @property
    def truth(self) -> dict[str, Any]:
        """What the program says a human would count."""
        line = next(line for line in self.stdout.splitlines() if line.startswith("truth "))
        return dict(json.loads(line.removeprefix("truth ")))

    def losses(self) -> list[list[str]]:
        """The words of each `loss …` line after the first."""
        return [line.split()[1:] for line in self.stdout.splitlines() if line.startswith("loss ")]


def environment(**more: str) -> dict[str, str]:
    """The environment of these tests without anything of OpenTelemetry's but for what hooks are, and what is given."""
    kept = {k: v for k, v in os.environ.items() if k == "OTEL_ML_NATIVE" or not k.startswith(("OTEL_", "TRACEPARENT"))}
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", **more}


def launch(
    launcher: tuple[str, ...], program: str | Path, *arguments: str, cwd: Path, timeout: float = 120, **env: str
) -> Outcome:
    """Run a program to its end."""
    path = PROGRAMS / program if isinstance(program, str) else program
    done = subprocess.run(
        [*launcher, str(path), *arguments],
        cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    return Outcome(done.stdout, done.stderr, done.returncode)


@functools.cache
def plainly(program: str, cwd: Path) -> Outcome:
    """What the program does without us, once a session."""
    return launch(PLAIN, program, cwd=cwd)


def recorded(directory: Path) -> RunReader:
    """The only run in the folder."""
    assert len(list_runs(directory)) == 1
    return RunReader(find_run(directory, None))


def totals(directory: Path) -> RunTotals:
    """The aggregates of the only process of the only run in the folder."""
    (only,) = recorded(directory).totals()
    return only


def step_records(directory: Path) -> list[dict[str, Any]]:
    """The step records, one a step or a bin of `ml.step.stride`, whether they came singly or as columns."""
    rows = [dict(log.attributes) for log in recorded(directory).logs(event="ml.step")]
    for log in recorded(directory).logs(event="ml.steps"):
        columns = {k: v for k, v in log.attributes.items() if isinstance(v, list)}
        count = len(columns["ml.step.number"])
        stride = log.attributes["ml.step.stride"]
        known = ({k: v[n] for k, v in columns.items() if v[n] is not None} for n in range(count))
        rows.extend({**row, "ml.step.stride": stride} if stride != 1 else row for row in known)
    return sorted(rows, key=lambda row: row["ml.step.number"])
