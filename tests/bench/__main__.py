"""`python -m tests.bench`: measures what watching a program costs, ours beside the others.

    python -m tests.bench                     the tiny MLP, every condition that can run here
    python -m tests.bench --workload gpt      another workload (repeatable; `all` for each)
    python -m tests.bench curve               cost over steps per second
    python -m tests.bench peers [--install]   which peers can run; make their environments

Nothing of it runs with the ordinary tests.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import metadata
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench import figures, options, peers, picture, show
from tests.bench.conditions import Condition, registry
from tests.bench.load import fitting
from tests.bench.processes import ROOT
from tests.bench.rounds import Bench, Run, bench
from tests.bench.workloads import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console

RATES = "10,100,1000,3000,10000,20000"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=(__doc__ or "").partition("\n")[0])
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--envs", type=Path, default=ROOT / ".bench-envs", help="where the peers' environments are")
    measured = argparse.ArgumentParser(add_help=False)
    measured.add_argument(
        "--conditions",
        type=options.conditions,
        help="comma-separated names, `plain` is always among them (default: all that can run)",
    )
    measured.add_argument("--json", type=Path, metavar="FILE", help="write every run and figure ('-': to stdout)")
    measured.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables ('-': to stdout)")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", parents=[common, measured], help="measure workloads (the default)")
    run.add_argument("--workload", action="append", choices=[*WORKLOADS, "all"], help="default: mlp")
    run.add_argument("--rounds", type=options.at_least(1), default=9)
    run.add_argument("--steps", type=options.at_least(1), help="steps a process instead of the workload's own number")
    run.add_argument(
        "--load",
        type=options.above_zero,
        help="a factor on the batch (default: a plain step lasts what it is meant to)",
    )
    run.add_argument("--picture", type=Path, metavar="FILE", help="draw the first workload as SVG bars")
    curve = commands.add_parser("curve", parents=[common, measured], help="cost over steps per second")
    curve.add_argument("--rounds", type=options.at_least(1), default=3)
    curve.add_argument(
        "--rates", type=options.rates, default=RATES, help=f"steps per second, comma-separated (default {RATES})"
    )
    curve.add_argument("--seconds", type=options.above_zero, default=10.0, help="how long each process steps")
    listed = commands.add_parser("peers", parents=[common], help="which peers can run here")
    listed.add_argument("--install", action="store_true", help="make the environments that are missing")
    return parser


@dataclass
class Part:
    """One loop that is measured: a workload, or the synthetic one at a rate."""

    workload: str
    about: str
    variables: dict[str, str]
    chosen: list[tuple[Condition, peers.Venv]]
    absent: dict[str, str]
    rate: float | None = None
    runs: list[Run] = field(default_factory=list)

    @property
    def title(self) -> str:
        """What was measured, and how often."""
        return f"{self.about}, {len(self.runs) // len(self.chosen)} rounds"

    @cached_property
    def rows(self) -> list[figures.Row]:
        """A row a condition, of the rounds that came to their end; to be asked for when no more run."""
        whole = self.runs[: len(self.runs) // len(self.chosen) * len(self.chosen)]
        return figures.rows(whole, [condition for condition, _ in self.chosen], self.rate) if whole else []

    @property
    def targets(self) -> list[figures.Target]:
        """What is promised of it."""
        return figures.targets(self.workload, self.rows) if self.workload in WORKLOADS else []

    def sheet(self) -> show.Sheet:
        """Its table."""
        return show.cost(self.title, self.rows, self.absent, self.targets)

    def data(self) -> dict[str, Any]:
        """Everything but the single steps, for JSON."""
        return {
            "title": self.title,
            "rate": self.rate,
            "rows": [asdict(row) for row in self.rows],
            "absent": self.absent,
            "runs": [{key: value for key, value in asdict(run).items() if key != "durations_ns"} for run in self.runs],
            "targets": [asdict(target) for target in self.targets],
            "versions": {condition.name: where.versions for condition, where in self.chosen},
        }


def _part(workload: str, names: Sequence[str], base: Path, about: str, variables: dict[str, str]) -> Part:
    """A part under the conditions of these names that can run, with why each of the others is absent."""
    known = registry()
    part = Part(workload, about, variables, [], {})
    for condition in (known[name] for name in names):
        where = peers.find_venv(condition, base)
        if workload not in condition.workloads:
            part.absent[condition.title] = "has nothing to say about this workload"
        elif where.refused:
            part.absent[condition.title] = where.refused
        else:
            part.chosen.append((condition, where))
    return part


def workloads(arguments: argparse.Namespace) -> Iterator[Part]:
    """The workloads that are asked for, with batches that a step lasts as long by as it is meant to."""
    asked = arguments.workload or ["mlp"]
    for workload in WORKLOADS if "all" in asked else dict.fromkeys(asked):
        steps = arguments.steps or WORKLOADS[workload].steps
        load = arguments.load or fitting(workload)
        about = f"{workload}: {steps:,} steps a process, batches x {load:.3g}"
        variables = {"BENCH_STEPS": str(steps), "BENCH_LOAD": str(load)}
        yield _part(workload, arguments.conditions or list(registry()), arguments.envs, about, variables)


def rates(arguments: argparse.Namespace) -> Iterator[Part]:
    """The synthetic loop at rising rates."""
    names = arguments.conditions or ["plain", *(name for name, c in registry().items() if c.ours)]
    for rate in arguments.rates:
        about = f"{rate:,g} steps/s asked, {arguments.seconds:g} s a process"
        variables = {"BENCH_RATE": str(rate), "BENCH_STEPS": str(max(2, int(rate * arguments.seconds)))}
        part = _part("synthetic", names, arguments.envs, about, variables)
        part.rate = rate
        yield part


def _run(at: Bench, part: Part, rounds: int, console: Console) -> None:
    """Run a part's rounds, and keep each run as it ends."""
    with show.progress(console) as progress:
        task = progress.add_task(part.about, total=rounds * len(part.chosen))
        for run in at.rounds(part.workload, part.chosen, rounds, part.variables):
            part.runs.append(run)
            progress.update(task, advance=1)
            if run.failed:
                console.print(f"failed: {run.condition}: {run.failed}", style="red", markup=False)


def measure(arguments: argparse.Namespace) -> None:
    """Measure what is asked for, show it and write it down; of what is interrupted, what there is."""
    curve = arguments.command == "curve"
    console = show.console(stderr=options.STDOUT in (arguments.json, arguments.markdown))
    parts: list[Part] = []
    interrupted = False
    try:
        with bench() as at:
            for part in (rates if curve else workloads)(arguments):
                parts.append(part)
                try:
                    _run(at, part, arguments.rounds, console)
                finally:
                    if not curve:
                        part.sheet().print(console)
    except KeyboardInterrupt:
        interrupted = True
    sheets = [part.sheet() for part in parts]
    if curve:
        title = f"cost over steps per second: {arguments.seconds:g} s a process"
        rows = [row for part in parts for row in part.rows]
        sheets = [show.curve(title, rows, parts[0].absent if parts else {})]
        sheets[0].print(console)
    kind = "rates" if curve else "workloads"
    options.write(arguments.json, _json({"machine": _machine(), kind: [part.data() for part in parts]}))
    options.write(arguments.markdown, "\n".join(sheet.markdown() for sheet in sheets))
    if not curve and arguments.picture and parts:
        options.write(arguments.picture, _picture(parts[0]))
    if interrupted:
        options.interrupted()


def _picture(part: Part) -> str:
    step = {"training": "a training step", "inference": "an inference call", "jax": "a training step in JAX"}
    return picture.bars(f"What watching adds to {step[WORKLOADS[part.workload].kind]} ({part.workload})", part.rows)


def _machine() -> dict[str, Any]:
    model = next(
        (line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
    }


def _finite(data: Any) -> Any:
    """The same with null for what JSON has no number for: the loss of a training that went astray."""
    if isinstance(data, float):
        return data if isfinite(data) else None
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(value) for value in data] if isinstance(data, list | tuple) else data


def _json(data: Any) -> str:
    return json.dumps(_finite(data), indent=1, allow_nan=False) + "\n"


def list_peers(arguments: argparse.Namespace) -> None:
    """Show where each condition would run, after making what is missing if asked."""
    console = show.console()
    refused = 0
    for condition in registry().values():
        where = peers.find_venv(condition, arguments.envs)
        if arguments.install and condition.packages and where.python is None:
            console.print(f"installing {' '.join(condition.packages)} …", markup=False)
            where = peers.install(condition, arguments.envs)
        versions = ", ".join(f"{name} {version}" for name, version in where.versions.items())
        refused += where.refused is not None
        console.print(f"{condition.name:12} {where.refused or versions or 'ready'}", markup=False)
    if refused:
        console.print(f"{refused} cannot run here; every table says so")


def main() -> None:
    """Parse the command line; without a command, `run`."""
    words = sys.argv[1:]
    if not words or (words[0].startswith("-") and words[0] not in {"-h", "--help"}):
        words = ["run", *words]
    parser = _parser()
    arguments = parser.parse_args(words)
    if arguments.command == "peers":
        list_peers(arguments)
        return
    if arguments.json == arguments.markdown == options.STDOUT:
        parser.error("--json - and --markdown - at once: standard output holds one of them")
    measure(arguments)


if __name__ == "__main__":
    main()
