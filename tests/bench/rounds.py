"""Runs the workloads: a fresh process each, all conditions in a new order every round.

Called by `__main__`. Every figure of a run is compared with the plain run of its own
round, so what slows the machine for a minute slows both. A process that fails is a
failed run and is shown; none is left out.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.processes import ROOT, Ended, adopt, compile_ours, environment, finish, script

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.bench.conditions import Condition
    from tests.bench.peers import Venv

__all__ = ["Bench", "Run", "bench"]


@dataclass
class Run:
    """What one process did; times in the unit of their name, `None` where a failed run has none."""

    workload: str
    condition: str
    round: int
    failed: str | None = None
    steps: int = 0
    """That were measured."""
    made: int = 0
    """With the first ones, that were not."""
    wall_us: float = 0.0
    probe_us: float = 0.0
    median_us: float = 0.0
    p99_us: float = 0.0
    p999_us: float = 0.0
    max_us: float = 0.0
    cpu_us: float = 0.0
    main_cpu_us: float = 0.0
    background: float = 0.0
    rss_mb: float = 0.0
    written_bytes: float = 0.0
    left_bytes: float = 0.0
    startup_ms: float = 0.0
    exit_ms: float = 0.0
    gen2: float = 0.0
    rate: float = 0.0
    check: float = 0.0
    sink: dict[str, int] = field(default_factory=dict)
    lingered: int = 0
    dropped: int | None = None
    durations_ns: list[int] = field(default_factory=list, repr=False)


def quantile(ordered: Sequence[float], q: float) -> float:
    """Interpolate the q-quantile of sorted values."""
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


class Bench:
    """The sink and the folder that runs share; made by `bench()`."""

    def __init__(self, sink: str, sink_pid: int, folder: Path) -> None:
        self.sink = sink
        self.sink_pid = sink_pid
        self.folder = folder

    def rounds(
        self,
        workload: str,
        conditions: Sequence[tuple[Condition, Venv]],
        rounds: int,
        variables: Mapping[str, str],
    ) -> Iterator[Run]:
        """Run every condition once a round, shuffled anew each round with a fixed seed; give each run as it ends."""
        shuffler = random.Random(0)
        for number in range(rounds):
            order = list(conditions)
            shuffler.shuffle(order)
            for condition, where in order:
                yield self.once(workload, condition, where, number, variables)

    def once(self, workload: str, condition: Condition, where: Venv, number: int, variables: Mapping[str, str]) -> Run:
        """Run one process to its end, and all that it started."""
        folder = self.folder / f"{workload}-{condition.name}-{number}"
        folder.mkdir()
        result, log = (self.folder / f"{folder.name}.{kind}" for kind in ("json", "log"))
        command, told = self._prepared(workload, condition, where, folder)
        told = environment({"BENCH_RESULT": str(result), **variables, **told})
        self.take()
        ended = finish(command, told, folder, log, {self.sink_pid})
        run = Run(workload, condition.name, number, sink=self.take(), lingered=ended.lingered)
        run.left_bytes = float(sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and not f.is_symlink()))
        run.failed = _failed(condition, folder, log, result, ended.code, run)
        if run.failed:
            return run
        _fill(run, json.loads(result.read_text(encoding="utf-8")), ended, ended.written - result.stat().st_size)
        if condition.ours:
            run.dropped = _dropped(command[0], folder, told, run)
        shutil.rmtree(folder)
        return run

    def _prepared(
        self, workload: str, condition: Condition, where: Venv, folder: Path
    ) -> tuple[list[str], dict[str, str]]:
        """The command of a condition's process, and the variables that it has beside those of all."""
        assert where.python is not None
        known = {
            "python": str(where.python),
            "bin": str(where.python.parent),
            "script": str(script(workload)),
            "sink": self.sink,
            "folder": str(folder),
            "auto": _auto_instrumentation(where.python),
            "root": str(ROOT),
        }
        told = {
            "HOME": str(folder),
            "PATH": f"{where.python.parent}:{os.environ['PATH']}",
            "BENCH_ROOT": str(os.getpid()),
            "BENCH_OUTSIDE": str(self.sink_pid),
            **({"BENCH_LOOPS": condition.loops} if condition.loops else {}),
            **{key: value.format(**known) for key, value in condition.variables.items()},
        }
        return [part.format(**known) for part in condition.command], told

    def take(self) -> dict[str, int]:
        """Tell what the sink got since it was last asked."""
        with urllib.request.urlopen(f"{self.sink}/take", timeout=120) as answer:
            counts: dict[str, int] = json.load(answer)
        return counts


def _fill(run: Run, said: Mapping[str, object], ended: Ended, written: int) -> None:
    durations: list[int] = said["durations_ns"]  # type: ignore[assignment]
    probes: list[int] = said["probes_ns"]  # type: ignore[assignment]
    number = {key: value for key, value in said.items() if isinstance(value, int | float)}
    ordered = sorted(durations)
    wall_ns = sum(durations)
    run.durations_ns, run.steps, run.check = durations, len(durations), number["check"]
    run.made = int(number["steps"])
    run.wall_us = wall_ns / len(durations) / 1e3
    run.probe_us = _without_stalls(probes) / 1e3
    run.rate = len(durations) / wall_ns * 1e9
    run.median_us, run.p99_us, run.p999_us, run.max_us = (quantile(ordered, q) / 1e3 for q in (0.5, 0.99, 0.999, 1))
    run.cpu_us = (ended.cpu_s - number["cpu_before_s"]) / run.steps * 1e6
    run.main_cpu_us = number["loop_main_cpu_s"] / run.steps * 1e6
    run.background = (number["loop_process_cpu_s"] - number["loop_main_cpu_s"]) / wall_ns * 1e9
    run.rss_mb = number["rss_bytes"] / 1e6
    run.written_bytes = float(written)
    run.startup_ms = (number["first_step_ns"] - ended.begun_ns) / 1e6
    run.exit_ms = (ended.ended_ns - number["last_step_ns"]) / 1e6
    run.gen2 = number["gen2"]


def _without_stalls(probes: Sequence[int]) -> float:
    """The mean of all but the longest hundredth, at least one: an interrupt in one of few would outweigh them all."""
    kept = sorted(probes)[: len(probes) - max(1, len(probes) // 100)]
    return sum(kept) / len(kept) if kept else 0.0


def _failed(condition: Condition, folder: Path, log: Path, result: Path, code: int, run: Run) -> str | None:
    """Say why a run does not count: it failed, or it recorded nothing, which costs nothing."""
    said = log.read_text(encoding="utf-8", errors="replace")
    if code or not result.exists():
        return f"exit code {code}: {' '.join(said.strip().splitlines()[-1:]) or 'no output'}"
    if "Failed to auto initialize OpenTelemetry" in said:
        return f"did not start: {said.strip().splitlines()[-1]}"
    if condition.evidence == "sink":
        return None if run.sink["spans"] else "recorded nothing: no span arrived"
    if condition.evidence and not any(folder.glob(condition.evidence)):
        return f"recorded nothing: left no {condition.evidence}"
    return None


def _dropped(python: str, folder: Path, told: Mapping[str, str], run: Run) -> int | None:
    """How many records we say that we dropped; asked of the local store, else of the sink."""
    if (folder / "otel-ml-data").exists():
        quiet = {k: v for k, v in told.items() if k == "OTEL_ML_DIR" or not k.startswith("OTEL_")}
        quiet["PYTHONPATH"] = str(ROOT)
        command = [python, "-m", "otel_ml", "report", "--json"]
        done = subprocess.run(command, cwd=folder, env=quiet, capture_output=True, text=True, check=False)
        if done.returncode:
            return None
        found = _find(json.loads(done.stdout), "records_dropped")
        return int(found) if isinstance(found, int) else None
    return run.sink["dropped"] if run.sink["points"] else None


def _find(data: object, key: str) -> object:
    """Find the first value under `key` at any depth."""
    if isinstance(data, dict):
        if key in data:
            return data[key]
        data = list(data.values())
    if isinstance(data, list):
        return next((found for found in (_find(part, key) for part in data) if found is not None), None)
    return None


_autos: dict[Path, str] = {}


def _auto_instrumentation(python: Path) -> str:
    """Where the environment's `opentelemetry-instrument` keeps its sitecustomize; empty without one."""
    if python not in _autos:
        code = (
            "from importlib.util import find_spec as f\n"
            "try: print(f('opentelemetry.instrumentation.auto_instrumentation').submodule_search_locations[0])\n"
            "except (ImportError, AttributeError): print()"
        )
        done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
        _autos[python] = done.stdout.strip()
    return _autos[python]


@contextmanager
def bench() -> Iterator[Bench]:
    """Give a running sink and an empty folder; makes this process adopt what its children leave behind."""
    adopt()
    compile_ours()
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.sink"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        with tempfile.TemporaryDirectory(prefix="otel-ml-bench-") as folder:
            yield Bench(process.stdout.readline().strip(), process.pid, Path(folder))
    finally:
        process.kill()
        process.wait()
