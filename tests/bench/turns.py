"""`python -m tests.bench.turns`: a step with our hooks and without, by turns in one process, under `otel-ml run`.

On a machine whose speed changes from second to second, fresh processes compare its hours. Here a
loop runs with all hooks for a second, without any for a second, and so on; what settles after
each change is not counted. A turn is set against the mean of its two neighbours of the other
kind, so that what changes slowly falls out. In the program's thread and in the background all is
as ever; imports and the begin of a run are not in it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from math import sqrt
from pathlib import Path
from statistics import median, quantiles

from otel_ml.store.reader import RunReader
from otel_ml.store.runs import find_run
from tests.bench import loops
from tests.bench.load import fitting, launch

WORKLOADS = ("mlp", "inference", "jax_fast", "jax_slow")
_SETTLE_S = 1.0  # a turn of the drain, and the store's delay
_TURN_S = 1.0
_FOREVER = 1 << 60
_FEWEST = 6


class _Over(Exception):  # noqa: N818 - no error
    """All turns were taken."""


class Turns(loops.Stopwatch):
    """Counts steps and puts the hooks in place and away."""

    turns: int
    """How many to take; the first is hooked."""
    taken: list[tuple[int, int]]
    """Nanoseconds and steps of each."""

    def __init__(self, steps: int, warmup: int) -> None:
        super().__init__(0, 1)
        self.last = _FOREVER
        self._hooked, self._counts, self._steps = True, False, 0
        self._until = self._since = 0

    def lap(self, value: float = 0.0) -> None:
        """Note that a step ended."""
        at = time.perf_counter_ns()
        self._steps += 1
        if at < self._until:
            return
        if self._counts:
            self.taken.append((at - self._since, self._steps))
            if len(self.taken) == self.turns:
                raise _Over
            self._turn()
        self._counts = not self._counts and self._until > 0
        self._steps, self._since = 0, time.perf_counter_ns()
        self._until = self._since + int((_TURN_S if self._counts else _SETTLE_S) * 1e9)

    def _turn(self) -> None:
        from otel_ml.core import runtime
        from otel_ml.instrument.jax import JaxInstrumentor
        from otel_ml.instrument.torch import TorchInstrumentor

        self._hooked = not self._hooked
        runtime.late = True  # the model and its optimizer are there when hooks come again
        for instrumentor in (TorchInstrumentor(), JaxInstrumentor()):
            (instrumentor.instrument if self._hooked else instrumentor.uninstrument)()


def inside(workload: str, turns: int, result: Path) -> None:
    """Run the workload's loop, which knows nothing of it."""
    Turns.turns, Turns.taken = turns, []
    loops.Stopwatch = Turns  # type: ignore[misc]
    try:
        importlib.import_module(f"tests.bench.workloads.{workload}").main()
    except _Over:
        result.write_text(json.dumps(Turns.taken), encoding="ascii")


def measured(workload: str, turns: int, load: float) -> list[float]:
    """Microseconds a step of each turn, hooked and plain alternating."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result"
        launch(
            "tests.bench.turns", "--inside", str(result), "--workload", workload, "--turns", str(turns),
            folder=folder, load=load,
        )  # fmt: skip
        taken: list[list[int]] = json.loads(result.read_text(encoding="ascii"))
        (totals,) = RunReader(find_run(Path(folder), None)).totals()
        seen = totals.steps + totals.inference.count
        if seen < sum(steps for _, steps in taken[::2]):
            sys.exit(f"only {seen:,} steps were recorded: the figures are not what they say")
        return [duration / steps / 1e3 for duration, steps in taken]


def _against(taken: list[float], others: list[float]) -> str:
    """Each over the mean of its two neighbours: the median, as a difference and a ratio, with standard errors."""
    pairs = [(one, (a + b) / 2) for one, a, b in zip(taken, others, others[1:], strict=False)]
    more, ratios = [one - beside for one, beside in pairs], [one / beside for one, beside in pairs]
    return f"{median(more):+.1f} ± {_error(more):.1f} µs, {median(ratios):.4f} ± {_error(ratios):.4f} times"


def _error(values: list[float]) -> float:
    """The standard error of the median of values that are normal but for outliers: 1.253 s / √n, s = IQR / 1.349."""
    low, _, high = quantiles(values, n=4)
    return 1.253 * (high - low) / 1.349 / sqrt(len(values))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.turns", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workload", action="append", choices=WORKLOADS, help="one or more (all)")
    parser.add_argument("--turns", type=int, default=80, help="of each kind; some four seconds each pair (80)")
    parser.add_argument("--load", type=float, help="a factor on the batch (a plain step lasts what it is meant to)")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.turns < _FEWEST:
        parser.error(f"--turns {args.turns}: fewer than {_FEWEST} say nothing")
    if args.inside is not None:
        inside(args.workload[0], args.turns, args.inside)
        return
    for workload in args.workload or WORKLOADS:
        load = args.load or fitting(workload)
        taken = measured(workload, 2 * args.turns + 1, load)
        hooked, plain = taken[2::2], taken[1::2]  # the first one warms up
        low, middle, high = quantiles(plain, n=4)
        about = f"{len(plain)} turns each, batches x {load:.3g}"
        print(f"{workload}: {about}, {middle:.1f} µs a plain step [{low:.1f}..{high:.1f}]")
        print(f"  hooked over plain  {_against(hooked, plain)}")
        print(f"  plain over plain   {_against(plain[1::2], plain[::2])}", flush=True)


if __name__ == "__main__":
    main()
