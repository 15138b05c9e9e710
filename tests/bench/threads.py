"""`python -m tests.bench.threads`: the CPU that each of our threads takes while a loop runs, under `otel-ml run`.

Wall times say what a step lost, and need hours to say it to a microsecond. What our threads take
of a core the kernel counts exactly (`/proc/self/task/*/schedstat`), so seconds of it will do. With two
cores that the program keeps busy, that CPU is about what it loses to them; where a core is
idle, it loses less. What the hooks cost in the program's own thread is not in it.

Where steps last milliseconds, the line `lost` tells what the program lost indeed: each step in which
our threads worked, over the mean of the ones beside it in which they did not.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import tempfile
import threading
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean

from tests.bench import loops, options
from tests.bench.load import fitting
from tests.bench.processes import compile_ours, environment, launcher
from tests.bench.workloads import WORKLOADS

_WARM_S = 8.0  # imports, the run's begin, the burst of exact points
_ENOUGH = 20  # times as many steps as there should be time for
_SLOW_S = 0.002  # a step, from which it costs nothing to look at our threads after each
_BESIDE = 20  # steps before and after


class _Over(Exception):  # noqa: N818 - no error
    """It has run for long enough."""


def _spent() -> dict[int, int]:
    """Nanoseconds of CPU of each of this process's threads, by the kernel's id."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            found[int(task.name)] = int((task / "schedstat").read_text(encoding="ascii").split()[0])
        except OSError:  # noqa: PERF203 - it ended while we looked
            continue
    return found


def _threads() -> list[threading.Thread]:
    """All of Python's, with ours, which `threading.enumerate()` leaves out."""
    return list(threading._active.values())  # type: ignore[attr-defined]


def _opened() -> list[int]:
    """The accounts of our threads."""
    ours = [t.native_id for t in _threads() if t.name.lower().startswith("otel")]
    return [os.open(f"/proc/self/task/{task}/schedstat", os.O_RDONLY) for task in ours]


def _lost(each: list[tuple[int, int]]) -> float:
    """The share of the time that steps in which our threads worked took longer than the others beside them.

    What begins by the clock falls into a step with a probability that goes with its length. So what the steps
    without our work are longer by than those beside them, weighed by their length, is taken off once for each time that
    our threads begin.
    """
    steps = [(end - start, after - before) for (start, before), (end, after) in pairwise(each)]
    working, begun, quiet, chance = 0.0, 0, 0, 0.0
    before = 0
    for at, (took, worked) in enumerate(steps):
        beside = [other for other, busy in steps[max(0, at - _BESIDE) : at + 1 + _BESIDE] if not busy]
        more = took - mean(beside) if beside else 0.0
        if worked:
            working += more
            begun += not before
        else:
            quiet += took
            chance += took * more
        before = worked
    return (working - begun * chance / quiet) / sum(took for took, _ in steps) if quiet else 0.0


class Shares(loops.Stopwatch):
    """Looks at all threads' CPU when warm, and once more at the end."""

    def __init__(self, _steps: int, _warmup: int, *, seconds: float, most: int, result: Path) -> None:
        """For so many seconds of a loop that is made for at most so many steps, told to the file."""
        super().__init__(0, 1)
        self.last = most
        self.seconds = seconds
        self.result = result
        self._steps = 0
        self._begin = time.perf_counter()
        self._before: dict[int, int] = {}
        self._ours: list[int] = []
        self._each: list[tuple[int, int]] = []  # after each step, the clock and what our threads have had

    def lap(self, value: float = 0.0) -> None:
        """Note that a step ended."""
        self._steps += 1
        now = time.perf_counter()
        if self._ours:
            spent = sum(int(os.pread(file, 64, 0).split()[0]) for file in self._ours)
            self._each.append((time.perf_counter_ns(), spent))
        if not self._before:
            if now - self._begin > _WARM_S:
                if (now - self._begin) / self._steps > _SLOW_S:
                    self._ours = _opened()
                self._before, self._begin, self._steps = _spent(), now, 0
        elif now - self._begin > self.seconds:
            names = {thread.native_id: thread.name for thread in _threads()}
            threads: dict[str, int] = {}
            for task, spent in _spent().items():
                name = names.get(task, "native threads")
                threads[name] = threads.get(name, 0) + spent - self._before.get(task, 0)
            told = {"steps": self._steps, "seconds": now - self._begin, "threads": threads, "lost": _lost(self._each)}
            self.result.write_text(json.dumps(told), encoding="utf-8")
            raise _Over


def inside(workload: str, seconds: float, result: Path) -> None:
    """Run the workload's loop, which knows nothing of it."""
    most = int((seconds + _WARM_S) * 1e6 / WORKLOADS[workload].meant_us * _ENOUGH)
    loops.use(partial(Shares, seconds=seconds, most=most, result=result))
    try:
        importlib.import_module(f"tests.bench.workloads.{workload}").main()
    except _Over:
        return


def _launch(workload: str, seconds: float, load: float, result: Path) -> None:
    """Run `inside` under `otel-ml run`, with batches of that load."""
    told = {"OTEL_ML_DIR": str(result.parent), "OTEL_ML_SUMMARY": "0", "BENCH_LOAD": str(load)}
    command = [str(launcher()), "run", "-m", "tests.bench.threads", "--inside", str(result)]
    command += ["--workload", workload, "--seconds", str(seconds)]
    subprocess.run(command, env=environment(told), check=True)


def main() -> None:
    """Measure and print."""
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.bench.threads", description=about)
    parser.add_argument("--workload", action="append", choices=WORKLOADS, help="one or more (all)")
    parser.add_argument("--seconds", type=options.above_zero, default=20.0, help="to look at, once warm (20)")
    parser.add_argument(
        "--load", type=options.above_zero, help="a factor on the batch (a plain step lasts what it is meant to)"
    )
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside is not None:
        inside(args.workload[0], args.seconds, args.inside)
        return
    compile_ours()
    print("workload\tthread\tus_per_step\tshare_of_step\tpercent_of_core")
    for workload in args.workload or WORKLOADS:
        load = args.load or fitting(workload)
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result"
            _launch(workload, args.seconds, load, result)
            told = json.loads(result.read_text(encoding="utf-8"))
        step = told["seconds"] / told["steps"]
        for thread, spent in sorted(told["threads"].items(), key=lambda item: -item[1]):
            each = spent / 1e9 / told["steps"]
            share, core = each / step, spent / 1e9 / told["seconds"]
            print(f"{workload}\t{thread}\t{each * 1e6:.1f}\t{share:.4f}\t{core:.2%}", flush=True)
        if told["lost"]:
            print(f"{workload}\tlost\t{told['lost'] * step * 1e6:.1f}\t{told['lost']:.4f}\t", flush=True)


if __name__ == "__main__":
    main()
