"""Starts the programs of this folder, talks to them while they run, and waits for their end."""

from __future__ import annotations

import bisect
import contextlib
import math
import os
import signal
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, final

from otel_ml.store.runs import list_runs
from tests.e2e.launching import RUN, Outcome, environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from otel_ml.store.runs import Run

__all__ = [
    "ALL",
    "PROGRAMS",
    "Process",
    "at_best",
    "killed_while_watched",
    "missing_s",
    "once",
    "run",
    "side_by_side",
    "steps_said",
    "stored",
    "wait_until",
    "watched",
]

T = TypeVar("T")
U = TypeVar("U")

PROGRAMS = Path(__file__).parent / "programs"
FIRST = 10  # steps that are traces whatever the rate; later ones are where they took unusually long
PATIENCE_S = 240.0
ALL = {"OTEL_ML_SHUTDOWN_TIMEOUT": "600"}  # has everything arrive, on a loaded machine as well


def once(condition: Callable[[], T | None], what: str) -> T:
    """What `condition` answers once it is neither None nor false; fails when that never comes."""
    until = time.monotonic() + PATIENCE_S
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < until, f"never seen: {what}"
        time.sleep(0.02)


@final
class Process:
    """A program that runs: a context, at whose end nothing of it is left."""

    def __init__(self, launcher: tuple[str, ...], program: str | Path, *arguments: str, cwd: Path, **env: str) -> None:
        path = PROGRAMS / program if isinstance(program, str) else program
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with this
        self._lines: list[str] = []
        self._process = subprocess.Popen(
            [*launcher, str(path), *arguments],
            cwd=cwd, env=environment(**env), start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr,
            pipesize=1 << 19,  # what is printed while nobody reads
        )  # fmt: skip

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:  # a test has failed; torchrun ends its ranks when it is asked to end
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._stderr.close()

    @property
    def pid(self) -> int:
        """The launcher's process, or the program's where the launcher became it."""
        return self._process.pid

    def until(self, word: str) -> list[str]:
        """The words of the next line that begins with `word`, without it."""
        assert self._process.stdout is not None
        for line in iter(self._process.stdout.readline, b""):
            self._lines.append(line.decode())
            if line.split()[:1] == [word.encode()]:
                return self._lines[-1].split()[1:]
        message = f"the program ended before it said {word}: {''.join(self._lines)}{self._errors()}"
        raise AssertionError(message)

    def say(self, line: str) -> None:
        """Give the program a line to read."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()

    def hang_up(self) -> None:
        """Let the program read the end of its input."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.stdin = None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process that was started, not to its children."""
        os.kill(self._process.pid, number)

    def send_all(self, number: signal.Signals) -> None:
        """Send a signal to the whole group, as Ctrl-C on a terminal does."""
        os.killpg(self._process.pid, number)

    def end(self) -> Outcome:
        """Wait for the end."""
        rest, _ = self._process.communicate(timeout=PATIENCE_S)
        return Outcome("".join(self._lines) + rest.decode(), self._errors(), self._process.returncode)

    def _errors(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode()


def run(launcher: tuple[str, ...], program: str | Path, *arguments: str, cwd: Path, **env: str) -> Outcome:
    """Run a program of this folder to its end."""
    with Process(launcher, program, *arguments, cwd=cwd, **env) as process:
        return process.end()


def side_by_side(work: Callable[[U], T], given: Iterable[U], *, at_once: int = 3) -> dict[U, T]:
    """What `work` makes of each of the given, several at a time."""
    items = list(given)
    with ThreadPoolExecutor(at_once) as pool:
        return dict(zip(items, pool.map(work, items), strict=True))


def stored(directory: Path) -> Run | None:
    """The only run in the folder, or None as long as there is none that can be read."""
    runs = [run for run in list_runs(directory) if run.processes]
    assert len(runs) <= 1
    return runs[0] if runs else None


def wait_until(directory: Path, *, steps: int) -> None:
    """Wait until the store holds this many steps."""

    def there() -> bool:
        found = stored(directory)
        return found is not None and found.steps >= steps

    once(there, f"{steps} steps in {directory}")


Looks = list[tuple[int, int]]


def watched(directory: Path) -> Looks:
    """Look at the store of a run that trains for as long as a drain that is far too slow would take for a turn.

    What is there at any moment is what a SIGKILL at that moment would leave: each look is when it began, and the steps.
    """
    looks: Looks = []
    while not looks or looks[-1][0] - looks[0][0] < WATCHED_NS:
        at, found = time.time_ns(), stored(directory)
        assert found is not None
        looks.append((at, found.steps))
        time.sleep(0.02)
    return looks


WATCHED_NS = 6 * 10**9


def killed_while_watched(cwd: Path, runs: Path, *program: str) -> tuple[Looks, Outcome]:
    """Run an endless program under the launcher, watch its store, and kill the program itself."""
    with Process(RUN, *program, cwd=cwd, OTEL_ML_DIR=str(runs)) as process:
        pid = int(process.until("READY")[0])
        wait_until(runs, steps=200)
        looks = watched(runs)
        os.kill(pid, signal.SIGKILL)
        return looks, process.end()


def steps_said(outcome: Outcome) -> list[list[str]]:
    """The words of each whole line about a step."""
    lines = outcome.stdout.splitlines(keepends=True)
    return [line.split()[1:] for line in lines if line.startswith("step ") and line.endswith("\n")]


def missing_s(looks: Looks, said: list[list[str]]) -> float:
    """How much of what the program had made was not in the store, by the program's own clock, in nine looks of ten.

    The last word that is `said` of each step is when it had ended.
    """
    made = [int(words[-1]) for words in said]
    return statistics.quantiles([made[bisect.bisect(made, at) - 1] - made[:n][-1] for at, n in looks], n=10)[-1] / 1e9


def at_best(killed: Callable[[Path], float], tmp_path: Path) -> float:
    """What a SIGKILL costs, in seconds; a machine that starves the drain is asked again."""
    costs: list[float] = []
    while len(costs) < TRIES and min(costs, default=math.inf) > 1:
        costs.append(killed(tmp_path / f"runs{len(costs)}"))
    return min(costs)


TRIES = 3
