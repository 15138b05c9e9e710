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
from dataclasses import asdict
from importlib import metadata
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.bench import figures, peers, picture, show
from tests.bench.conditions import Condition, registry
from tests.bench.load import fitting
from tests.bench.processes import ROOT
from tests.bench.rounds import Bench, Run, bench
from tests.bench.workloads import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RATES = "10,100,1000,3000,10000,20000"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=(__doc__ or "").partition("\n")[0])
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--envs", type=Path, default=ROOT / ".bench-envs", help="where the peers' environments are")
    measured = argparse.ArgumentParser(add_help=False)
    measured.add_argument("--conditions", help="comma-separated names; `plain` always runs; default: all that can")
    measured.add_argument("--json", type=Path, metavar="FILE", help="write every run and figure ('-': to stdout)")
    measured.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables ('-': to stdout)")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", parents=[common, measured], help="measure workloads (the default)")
    run.add_argument("--workload", action="append", choices=[*WORKLOADS, "all"], help="default: mlp")
    run.add_argument("--rounds", type=int, default=9)
    run.add_argument("--steps", type=int, help="steps a process instead of the workload's own number")
    run.add_argument(
        "--load", type=float, help="a factor on the batch (default: a plain step lasts what it is meant to)"
    )
    run.add_argument("--picture", type=Path, metavar="FILE", help="draw the first workload as SVG bars")
    curve = commands.add_parser("curve", parents=[common, measured], help="cost over steps per second")
    curve.add_argument("--rounds", type=int, default=3)
    curve.add_argument("--rates", default=RATES, help=f"steps per second, comma-separated (default {RATES})")
    curve.add_argument("--seconds", type=float, default=10.0, help="how long each process steps")
    listed = commands.add_parser("peers", parents=[common], help="which peers can run here")
    listed.add_argument("--install", action="store_true", help="make the environments that are missing")
    return parser


Chosen = list[tuple[Condition, peers.Venv]]


def _choose(workload: str, names: str | None, base: Path) -> tuple[Chosen, dict[str, str]]:
    """Choose the conditions to run, and say why each of the others is absent."""
    known = registry()
    wanted = list(known) if names is None else ["plain", *names.split(",")]
    if unknown := [name for name in wanted if name not in known]:
        message = f"unknown condition {', '.join(unknown)}; there are {', '.join(known)}"
        raise SystemExit(message)
    chosen: Chosen = []
    absent: dict[str, str] = {}
    for name in dict.fromkeys(wanted):
        where = peers.find_venv(known[name], base)
        if workload not in known[name].workloads:
            absent[known[name].title] = "has nothing to say about this workload"
        elif where.refused:
            absent[known[name].title] = where.refused
        else:
            chosen.append((known[name], where))
    return chosen, absent


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


def _measure(
    at: Bench, workload: str, chosen: Chosen, rounds: int, variables: Mapping[str, str], *, label: str
) -> list[Run]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=show.console, transient=True) as progress:
        task = progress.add_task(label, total=rounds * len(chosen))

        def told(run: Run) -> None:
            progress.update(task, advance=1)
            if run.failed:
                progress.console.print(f"failed: {run.condition}: {run.failed}", style="red", markup=False)

        return at.rounds(workload, chosen, rounds, variables, told)


def _export(path: Path | None, text: str) -> None:
    if path == Path("-"):
        sys.stdout.write(text)
    elif path is not None:
        path.write_text(text, encoding="utf-8")


def _finite(data: Any) -> Any:
    """The same with null for what JSON has no number for: the loss of a training that went astray."""
    if isinstance(data, float):
        return data if isfinite(data) else None
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(value) for value in data] if isinstance(data, list | tuple) else data


def _json(data: Any) -> str:
    return json.dumps(_finite(data), indent=1, allow_nan=False)


def _data(title: str, runs: Sequence[Run], found: Sequence[figures.Row], absent: Mapping[str, str]) -> dict[str, Any]:
    bare = [{key: value for key, value in asdict(run).items() if key != "durations_ns"} for run in runs]
    return {"title": title, "rows": [asdict(row) for row in found], "absent": absent, "runs": bare}


def run(arguments: argparse.Namespace) -> None:
    """Measure workloads and show them."""
    asked = arguments.workload or ["mlp"]
    parts: list[dict[str, Any]] = []
    texts: list[str] = []
    with bench() as at:
        for workload in WORKLOADS if "all" in asked else dict.fromkeys(asked):
            chosen, absent = _choose(workload, arguments.conditions, arguments.envs)
            steps = arguments.steps or WORKLOADS[workload].steps
            load = arguments.load or fitting(workload)
            variables = {"BENCH_STEPS": str(steps), "BENCH_LOAD": str(load)}
            runs = _measure(at, workload, chosen, arguments.rounds, variables, label=workload)
            found = figures.rows(runs, [condition for condition, _ in chosen])
            judged = figures.targets(workload, found)
            title = f"{workload}: {steps:,} steps a process, {arguments.rounds} rounds, batches x {load:.3g}"
            show.table(title, found, show.COST, absent, judged)
            texts.append(show.markdown(title, found, show.COST, absent, judged))
            parts.append(_data(title, runs, found, absent) | {"targets": [asdict(t) for t in judged]})
            parts[-1]["versions"] = {c.name: where.versions for c, where in chosen}
            if arguments.picture and len(parts) == 1:
                arguments.picture.write_text(
                    picture.bars(f"What watching adds to a training step ({workload})", found), encoding="utf-8"
                )
    _export(arguments.json, _json({"machine": _machine(), "workloads": parts}))
    _export(arguments.markdown, "\n".join(texts))


def curve(arguments: argparse.Namespace) -> None:
    """Measure a synthetic loop at rising rates and show what stays bounded."""
    names = arguments.conditions or ",".join(name for name, c in registry().items() if c.ours)
    chosen, absent = _choose("synthetic", names, arguments.envs)
    parts: list[dict[str, Any]] = []
    texts: list[str] = []
    with bench() as at:
        for rate in map(float, arguments.rates.split(",")):
            variables = {"BENCH_RATE": str(rate), "BENCH_STEPS": str(max(2, int(rate * arguments.seconds)))}
            runs = _measure(at, "synthetic", chosen, arguments.rounds, variables, label=f"{rate:,.0f} steps/s")
            found = figures.rows(runs, [condition for condition, _ in chosen])
            title = f"{rate:,.0f} steps/s asked, {arguments.seconds:g} s a process, {arguments.rounds} rounds"
            show.table(title, found, show.CURVE, absent)
            texts.append(show.markdown(title, found, show.CURVE, absent))
            parts.append(_data(title, runs, found, absent) | {"rate": rate})
    _export(arguments.json, _json({"machine": _machine(), "rates": parts}))
    _export(arguments.markdown, "\n".join(texts))


def list_peers(arguments: argparse.Namespace) -> None:
    """Show where each condition would run, after making what is missing if asked."""
    refused = 0
    for condition in registry().values():
        where = peers.find_venv(condition, arguments.envs)
        if arguments.install and condition.packages and where.python is None:
            show.console.print(f"installing {' '.join(condition.packages)} …")
            where = peers.install(condition, arguments.envs)
        versions = ", ".join(f"{name} {version}" for name, version in where.versions.items())
        refused += where.refused is not None
        show.console.print(f"{condition.name:12} {where.refused or versions or 'ready'}", markup=False)
    if refused:
        show.console.print(f"{refused} cannot run here; every table says so")


def main() -> None:
    """Parse the command line; without a command, `run`."""
    words = sys.argv[1:]
    commands = {"run": run, "curve": curve, "peers": list_peers}
    if not words or (words[0].startswith("-") and words[0] not in {"-h", "--help"}):
        words = ["run", *words]
    arguments = _parser().parse_args(words)
    commands[arguments.command](arguments)


if __name__ == "__main__":
    main()
