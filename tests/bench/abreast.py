"""`python -m tests.bench.abreast`: a loop alone and under `otel-ml run`, both alive at once, some steps each in turn.

Two processes one after the other differ by 4 %, because a machine that is shared changes its
speed from second to second and has cores of different speed, on one of which a process stays.
Here two fresh processes go by turns of some 7 ms on the same core, which changes every 20 turns;
whoever's turn it is not is stopped whole (SIGSTOP). Memory that was freed stays with them: how
much of it goes back to the kernel each step is luck. Who goes first is slower by some 0.5 %, and
so is who was started first: the two go first on each core by turns, and a round is two pairs,
in each of which the other one was started first.

A step lasts until the program comes back to the stopwatch, and a turn's first one from when its
process was told to go on, so that nothing a condition does is left out. A stopped process's clock
goes on, and what we do by the clock would come twice as often a step as in life: so the drain's
times are doubled. What is limited by the second (points, traces) still comes twice as often, so
this shows rather more than what we cost.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from otel_ml.store.reader import RunReader
from otel_ml.store.runs import find_run
from tests.bench import loops, options, show
from tests.bench.figures import ENOUGH, TOO_FEW, Spread
from tests.bench.load import fitting
from tests.bench.processes import ROOT, compile_ours, environment, launcher
from tests.bench.workloads import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Iterator

TITLES = {"control": "plain over plain", "ours": "otel-ml over plain"}
_TURN_US = 7000.0
_ON_A_CORE = 20  # turns
_SILENCE_S = 120.0
_SAID = struct.Struct("<qd")
_KEEPS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}


class InTurn(loops.Stopwatch):
    """Waits for its turn after so many steps, and tells when the last one ended."""

    def __init__(self, steps: int, warmup: int) -> None:
        super().__init__(steps, warmup)
        self.steps = 1 + steps
        self.turn = int(os.environ["BENCH_TURN"])
        self.left = 1  # the first step is one by itself: both processes are then ready
        self.done = 0
        self.driver = socket.socket(socket.AF_UNIX)
        self.driver.connect(os.environ["BENCH_DRIVER"])
        self.driver.sendall(_SAID.pack(os.getpid(), warmup))

    @property
    def total(self) -> int:
        """How many steps to run: the first, and whole turns."""
        return self.steps

    def lap(self, value: float = 0.0) -> None:
        """Note that a step ended."""
        self.left -= 1
        self.done += 1
        if self.left:
            return
        self.driver.sendall(_SAID.pack(time.perf_counter_ns(), value))
        self.left = self.turn
        if self.done < self.total:
            self.driver.recv(1)


def inside(workload: str) -> None:
    """Run the workload's loop, which knows nothing of it."""
    if "otel_ml.pipeline.drain" in sys.modules:
        _double_times()
    loops.use(InTurn)
    importlib.import_module(f"tests.bench.workloads.{workload}").main()


def _double_times() -> None:
    """Let the drain do as much a step as if the clock stood still while its process does."""
    from otel_ml.pipeline import drain

    for name in ("_TICK_S", "_KEEP_S", "_TELL_NS"):
        setattr(drain, name, 2 * getattr(drain, name))
    (ours,) = (one for one in gc.get_objects() if isinstance(one, drain.Drain))
    ours._tick_s = drain._TICK_S


class Runner:
    """One of the two processes; stopped but in its turn."""

    def __init__(self, command: list[str], folder: Path, told: dict[str, str]) -> None:
        folder.mkdir()
        self.folder = folder
        self.log = folder / "log"
        self.turns: list[int] = []
        path = folder / "driver"
        with socket.socket(socket.AF_UNIX) as door, self.log.open("wb") as output:
            door.bind(str(path))
            door.listen(1)
            door.settimeout(_SILENCE_S)
            told = environment({**told, "BENCH_DRIVER": str(path), "OTEL_ML_DIR": str(folder / "data")})
            self.process = subprocess.Popen(command, env=told, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
            self.pid = self.process.pid
            try:
                self.line, _ = door.accept()
                self.line.settimeout(_SILENCE_S)
                self.pid, warmup = self._said()
                self.warmup = int(warmup)
                self.value = self._said()[1]
            except (OSError, SystemExit):
                self.kill()
                raise
        os.kill(self.pid, signal.SIGSTOP)

    def _said(self) -> tuple[int, float]:
        said = self.line.recv(_SAID.size)
        if len(said) < _SAID.size:
            last = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            sys.exit(f"a process ended too soon: {' '.join(last) or 'no output'}")
        told: tuple[int, float] = _SAID.unpack(said)
        return told

    def take_turn(self, core: int) -> None:
        """Let it run for a turn, on that core."""
        os.sched_setaffinity(self.pid, {core})  # its first thread's alone
        self.line.send(b"g")
        began = time.perf_counter_ns()
        os.kill(self.pid, signal.SIGCONT)
        ended, self.value = self._said()
        os.kill(self.pid, signal.SIGSTOP)
        self.turns.append(ended - began)

    def step_us(self, turn: int) -> float:
        """Microseconds a step, without the turns that warmed up."""
        counted = self.turns[-(-self.warmup // turn) :]
        if not counted:
            sys.exit(f"--steps must be more than {self.warmup + turn}: the first {self.warmup} warm up")
        return sum(counted) / len(counted) / turn / 1e3

    def end(self) -> None:
        """Let it end as it would."""
        os.kill(self.pid, signal.SIGCONT)
        if code := self.process.wait(_SILENCE_S):
            sys.exit(f"a process ended with exit code {code}")

    def kill(self) -> None:
        """Leave nothing behind, stopped or not."""
        if self.process.poll() is None:
            for pid in {self.pid, self.process.pid}:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()


def pair(other: str, workload: str, steps: int, turn: int, load: float, *, plain_first: bool) -> tuple[float, float]:
    """Microseconds a step of a plain process and of the other one, warm-up not counted; which to start first."""
    plain = [sys.executable, "-m", "tests.bench.abreast", "--inside", "--workload", workload]
    watched = [str(launcher()), "run", *plain[1:]]
    told = {"BENCH_STEPS": str(steps), "BENCH_TURN": str(turn), "BENCH_LOAD": str(load), "OTEL_ML_SUMMARY": "0"}
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="otel-ml-bench-") as base, ExitStack() as stack:
        commands = {"plain": plain, "other": watched if other == "ours" else plain}
        runners = {}
        for name in ("plain", "other") if plain_first else ("other", "plain"):
            runners[name] = Runner(commands[name], Path(base) / name, told | _KEEPS_MEMORY)
            stack.callback(runners[name].kill)
        for number in range(steps // turn):
            time_around, core = divmod(number // _ON_A_CORE, len(cores))
            for runner in reversed(runners.values()) if time_around % 2 else runners.values():
                runner.take_turn(cores[core])
        for runner in runners.values():
            runner.end()
        first, second = runners["plain"], runners["other"]
        if first.value != second.value:
            sys.exit(f"NOT the same work: the last losses are {first.value} and {second.value}")
        if other == "ours":
            _check(second.folder / "data", steps)
    return first.step_us(turn), second.step_us(turn)


def _check(folder: Path, steps: int) -> None:
    (totals,) = RunReader(find_run(folder, None)).totals()
    if (seen := totals.steps + totals.inference.count) < steps:
        sys.exit(f"only {seen:,} steps were recorded: the figures are not what they say")


def _turn(workload: str) -> int:
    """How many steps a turn is."""
    return max(1, round(_TURN_US / WORKLOADS[workload].meant_us))


def measured(workload: str, rounds: int, steps: int, load: float) -> Iterator[tuple[str, float, float]]:
    """For each round and kind of pair, in a random order: the kind, a plain step's microseconds and the other's.

    Means of two pairs, in one of which the plain process is started first and in one the other.
    """
    shuffler = random.Random(0)
    for _ in range(rounds):
        for kind in shuffler.sample(sorted(TITLES), len(TITLES)):
            orders = shuffler.sample((False, True), 2)
            both = [pair(kind, workload, steps, _turn(workload), load, plain_first=order) for order in orders]
            plain, other = (sum(figures) / len(both) for figures in zip(*both, strict=True))
            yield kind, plain, other


def _surely(figure: Spread, digits: str, unit: str = "") -> str:
    between = TOO_FEW if figure.interval is None else "[{}..{}]".format(*(format(v, digits) for v in figure.interval))
    return f"{figure.median:{digits}}{unit} {between}"


def _shown(found: dict[str, list[tuple[float, float]]]) -> Iterator[str]:
    """A line a kind of pair: what the other process's step is longer by, and how many times as long."""
    for kind, pairs in found.items():
        if pairs:
            more = Spread.of(other - plain for plain, other in pairs)
            ratio = Spread.of(other / plain for plain, other in pairs)
            yield f"  {TITLES[kind]:18}  {_surely(more, '+.1f', ' µs')}, x {_surely(ratio, '.4f')}"


def _parser() -> argparse.ArgumentParser:
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.bench.abreast", description=about)
    parser.add_argument("--workload", choices=WORKLOADS, default="mlp")
    parser.add_argument("--rounds", type=options.at_least(ENOUGH), default=9, help="two pairs of each kind in each (9)")
    parser.add_argument("--steps", type=options.at_least(1), help="of each process (the workload's own number)")
    parser.add_argument(
        "--load", type=options.above_zero, help="a factor on the batch (a plain step lasts what it is meant to)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every round's microseconds a step ('-': to stdout)"
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Measure and print; of what is interrupted, what there is."""
    parser = _parser()
    args = parser.parse_args()
    if args.inside:
        inside(args.workload)
        return
    turn = _turn(args.workload)
    steps = (args.steps or WORKLOADS[args.workload].abreast_steps) // turn * turn
    if not steps:
        parser.error(f"--steps {args.steps}: a turn alone is {turn}")
    compile_ours()
    console = show.console(stderr=args.json == options.STDOUT)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # else stopped ones would stay behind
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in TITLES}
    load, interrupted = args.load, False
    try:
        load = load or fitting(args.workload)
        with show.progress(console) as progress:
            task = progress.add_task(args.workload, total=args.rounds * len(TITLES))
            for kind, plain, other in measured(args.workload, args.rounds, steps, load):
                found[kind].append((plain, other))
                progress.update(task, advance=1)
    except KeyboardInterrupt:
        interrupted = True
    options.write(args.json, json.dumps(found) + "\n")
    if every := [plain for pairs in found.values() for plain, _ in pairs]:
        rounds = min(len(pairs) for pairs in found.values())
        about = f"{rounds} rounds of 2 pairs of {steps + 1:,} steps, batches x {load:.3g}"
        told = [f"{args.workload}: {about}, {Spread.of(every).median:.1f} µs a plain step", *_shown(found)]
        print(*told, sep="\n", file=console.file)
    if interrupted:
        options.interrupted()


if __name__ == "__main__":
    main()
