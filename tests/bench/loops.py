"""What a measured process runs: the plain loops, and the stopwatch that they carry.

The workload scripts build a task and hand it to `run()`, which runs the plain loop or,
where the condition asks its user to write something, that condition's own loop. Runs in
the measured process, on its main thread; imports no telemetry itself.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import time
from array import array
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch

_NUMBERS = array("d", (n % 97 / 7.0 for n in range(1500)))  # in one piece: a list's objects lie where imports left room
_PROBE_EVERY_NS = 3_000_000

__all__ = [
    "Compiled",
    "Serving",
    "Stopwatch",
    "Training",
    "compiled",
    "infer",
    "run",
    "sized",
    "stats",
    "stopwatch",
    "train",
    "use",
]


def sized(batch: int) -> int:
    """A batch as large as the harness asks for: a step of this machine's is then as long as it is meant to be."""
    return max(1, round(batch * float(os.environ.get("BENCH_LOAD", "1"))))


@dataclass(frozen=True)
class Mark:
    """What had been used at one instant: CPU, collections."""

    process_cpu_s: float
    family_cpu_s: float
    main_cpu_s: float
    gen2: int

    @classmethod
    def now(cls) -> Mark:
        """Take the figures at this instant: this process exactly, its relatives to the kernel's tick."""
        own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        process = own.ru_utime + own.ru_stime
        others = sum(ticks for pid, ticks in _family().items() if pid != os.getpid())
        return cls(
            process_cpu_s=process,
            family_cpu_s=process + children.ru_utime + children.ru_stime + others / os.sysconf("SC_CLK_TCK"),
            main_cpu_s=time.thread_time(),
            gen2=gc.get_stats()[2]["collections"],
        )


class Stopwatch:
    """The instants at which steps began and ended, in arrays allocated before the first of them.

    A step lasts from the end of the one before to its own end, so nothing that a
    condition does between two steps is left out. Every 3 ms a piece of work that no
    condition touches stands between two of them: how long it takes, by which it is known how
    fast the machine was meanwhile, is no part of a step.
    """

    def __init__(self, steps: int, warmup: int) -> None:
        self.warmup = warmup
        self.last = steps + warmup - 1
        self.begun = array("q", bytes(8 * (steps + warmup + 1)))
        self.ended = array("q", bytes(8 * (steps + warmup)))
        self.probes = array("q", bytes(8 * (steps + warmup)))
        self.value = 0.0
        self._next = 0
        self._probe_at = 0

    @property
    def total(self) -> int:
        """How many steps to run, the unmeasured first ones included."""
        return self.last + 1

    def lap(self, value: float = 0.0) -> None:
        """Note that a step ended, with a value (its loss) that must be equal under every condition."""
        i = self._next
        self._next = i + 1
        if i == self.warmup - 1:
            self.begin = Mark.now()
        at = self.ended[i] = time.perf_counter_ns()
        if i == self.last:
            self.end = Mark.now()
            self.value = value
            self.rss_bytes = _resident()
        elif at >= self._probe_at:
            _NUMBERS.count(-1.0)  # leaves nothing behind, and keeps the interpreter lock
            probed = time.perf_counter_ns()
            self.probes[i] = probed - at
            self._probe_at = probed + _PROBE_EVERY_NS
            at = probed
        self.begun[i + 1] = at

    def durations_ns(self) -> list[int]:
        """Nanoseconds of each measured step."""
        return [b - a for a, b in zip(self.begun[self.warmup : -1], self.ended[self.warmup :], strict=True)]

    def write(self, path: Path) -> None:
        """Write what was measured as JSON."""
        if self._next != self.total:
            message = f"the loop ran {self._next} steps instead of {self.total}"
            raise RuntimeError(message)
        result = {
            "steps": self.total,
            "durations_ns": self.durations_ns(),
            "probes_ns": [took for took in self.probes[self.warmup :] if took],
            "first_step_ns": self.ended[0],
            "last_step_ns": self.ended[self.last],
            "cpu_before_s": self.begin.family_cpu_s,
            "loop_main_cpu_s": self.end.main_cpu_s - self.begin.main_cpu_s,
            "loop_process_cpu_s": self.end.process_cpu_s - self.begin.process_cpu_s,
            "gen2": self.end.gen2 - self.begin.gen2,
            "rss_bytes": self.rss_bytes,
            "check": self.value,
        }
        path.write_text(json.dumps(result), encoding="utf-8")


_made: Callable[[int, int], Stopwatch] = Stopwatch


def use(made: Callable[[int, int], Stopwatch]) -> None:
    """Have the workloads carry another stopwatch, made of their steps and how many of them warm up."""
    global _made  # noqa: PLW0603 - the workloads know nothing of who watches them
    _made = made


def stopwatch(steps: int, warmup: int) -> Stopwatch:
    """The stopwatch to carry for so many measured steps, or for as many as the harness asks for."""
    return _made(int(os.environ.get("BENCH_STEPS", steps)), warmup)


def stats() -> dict[int, list[str]]:
    """What the kernel says of each process there is (`/proc/PID/stat`), from its state on."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found[int(entry.name)] = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended while we looked
                continue
    return found


def _family() -> dict[int, int]:
    """All processes of this run by id, with the CPU ticks that each and its reaped children have used.

    The harness adopts orphans, so what the program detached (`BENCH_ROOT` is the harness) is among them.
    """
    found = {pid: (int(fields[1]), sum(map(int, fields[11:15]))) for pid, fields in stats().items()}
    outside = {int(pid) for pid in os.environ.get("BENCH_OUTSIDE", "").split()}
    family = {int(os.environ.get("BENCH_ROOT", os.getpid()))}
    while grown := {pid for pid, (parent, _) in found.items() if parent in family} - family - outside:
        family |= grown
    family.discard(int(os.environ.get("BENCH_ROOT", "0")))
    return {pid: found[pid][1] for pid in family}


def _resident() -> int:
    """Resident bytes of all processes of this run (what they share counts in each)."""
    total = 0
    for pid in _family():
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:  # noqa: PERF203 - it ended while we looked
            continue
    return total * resource.getpagesize()


@dataclass
class Training:
    """A training to run: what an ordinary script has in its variables."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Any, Any], torch.Tensor]
    batches: Iterable[tuple[Any, Any]]
    batch_size: int
    watch: Stopwatch


@dataclass
class Serving:
    """A model to call, once a request."""

    model: torch.nn.Module
    requests: Iterable[torch.Tensor]
    watch: Stopwatch


def train(task: Training) -> None:
    """Train without a line about telemetry."""
    for inputs, targets in task.batches:
        task.optimizer.zero_grad()
        loss = task.loss(task.model(inputs), targets)
        loss.backward()
        task.optimizer.step()
        task.watch.lap(loss.item())


@dataclass
class Compiled:
    """A compiled function to train by, and what it trains."""

    step: Callable[..., Any]
    state: Any
    batches: Iterable[tuple[Any, Any]]
    watch: Stopwatch


def descend(task: Compiled) -> None:
    """Train by one compiled function, and read each loss."""
    state = task.state
    for inputs, targets in task.batches:
        state, loss = task.step(state, inputs, targets)
        task.watch.lap(float(loss))


def compiled(*, width: int, batch: int, steps: int, warmup: int) -> None:
    """Train an MLP of two layers in JAX, on batches that are ready in memory."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    def loss_of(params: Any, inputs: Any, targets: Any) -> Any:
        return jnp.mean((jnp.tanh(inputs @ params["first"]) @ params["second"] - targets) ** 2)

    @jax.jit
    def step(params: Any, inputs: Any, targets: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params, inputs, targets)
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, grads), loss

    rng = np.random.default_rng(0)
    watch = stopwatch(steps, warmup)
    shapes = {"first": (64, width), "second": (width, 10)}
    params = {name: jnp.asarray(rng.normal(size=shape) * 0.1, "float32") for name, shape in shapes.items()}
    batch = sized(batch)
    made = [(rng.normal(size=(batch, 64)).astype("f"), rng.normal(size=(batch, 10)).astype("f")) for _ in range(16)]
    run(Compiled(step, params, islice(cycle(made), watch.total), watch), plain=descend)


def infer(task: Serving) -> None:
    """Answer requests without a line about telemetry."""
    for inputs in task.requests:
        task.model(inputs)
        task.watch.lap()


def run(task: Training | Serving | Compiled, plain: Callable[[Any], None] | None = None) -> None:
    """Run the task's loop under the condition in `BENCH_LOOPS` (none: the plain loop) and write the result.

    Without `BENCH_RESULT` it is an ordinary script that prints how long its steps took.
    """
    loop: Callable[[Any], None] = plain or (train if isinstance(task, Training) else infer)
    if name := os.environ.get("BENCH_LOOPS"):
        loop = getattr(importlib.import_module(name), "train" if isinstance(task, Training) else "infer")
    loop(task)
    if path := os.environ.get("BENCH_RESULT"):
        task.watch.write(Path(path))
    else:
        measured = task.watch.durations_ns()
        print(f"{sum(measured) / 1e3 / len(measured):.1f} µs a step")
