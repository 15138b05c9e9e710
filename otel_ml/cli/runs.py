"""List the runs on this machine, the newest first, live ones too; or delete some.

    otel-ml runs                      a table; where stdout is no terminal, columns with tabs between
    otel-ml runs rm RUN…              delete these: ids, or beginnings of ids
    otel-ml runs rm --all-finished    delete every run that is over

States: running, finished, failed, interrupted, killed, lost (on another machine, silent).
Keys of --json: schema, runs[] {id, name, state, path, started_unix_ns, ended_unix_ns,
duration_s, steps, processes, size_by, problems[]}. A run that is running is never deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otel_ml.errors import CommandError
from otel_ml.overview.words import console_for, literal, size
from otel_ml.settings import Settings
from otel_ml.store.runs import delete_run, find_run, list_runs
from otel_ml.watch.diagnosis import seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_ml.store.runs import Run

__all__ = ["prepare_parser", "run"]

COLUMNS = ("id", "name", "state", "started", "duration_s", "steps", "size_by", "path")
GAP = "  "
LEAST_NAME = 8  # the fewest characters of a name that still tell something
WIDE = 100  # from here on, the table has room for the year and the size as well
STYLES = {
    "running": "cyan", "finished": "green", "failed": "red", "killed": "red", "interrupted": "yellow", "lost": "yellow",
}  # fmt: skip


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """List unless told to delete."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--limit", type=_whole, metavar="N", help="the newest N only")
    parser.add_argument("--dir", type=Path, help="the folder that holds the runs (OTEL_ML_DIR)")
    actions = parser.add_subparsers(dest="action", metavar="rm")
    remove = actions.add_parser("rm", help="delete runs", description="Delete runs and all that was recorded in them.")
    remove.add_argument("runs", nargs="*", metavar="RUN", help="the run's id, or a beginning that fits no other")
    remove.add_argument("--all-finished", action="store_true", help="every run that is over, however it ended")
    remove.add_argument("-y", "--yes", action="store_true", help="do not ask")
    # Not given here, it must not undo the one given before `rm`.
    remove.add_argument("--dir", type=Path, default=argparse.SUPPRESS, help="the folder that holds the runs")


def run(args: argparse.Namespace) -> int:
    """List or delete; 1 where the user thought better of deleting."""
    directory: Path = args.dir or Settings.from_env(os.environ).directory
    if args.action == "rm":
        return _remove(directory, args)
    runs = list_runs(directory)
    if not runs:
        print(f"otel-ml: no run in {directory} yet; type `otel-ml run script.py` to record one", file=sys.stderr)
    runs = runs[: args.limit]
    if args.json:
        print(json.dumps({"schema": 1, "runs": [_described(each) for each in runs]}, indent=2))
    elif not sys.stdout.isatty():
        _print_columns(runs)
    elif runs:
        _print_table(runs)
    return 0


def _whole(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        message = f"need a whole number ≥ 1, not {text!r}"
        raise argparse.ArgumentTypeError(message)
    return value


# --- listing --------------------------------------------------------------------------------


def _described(each: Run) -> dict[str, Any]:
    """What `--json` says about a run."""
    return {
        "id": each.id,
        "name": each.name,
        "state": each.state,
        "path": str(each.path),
        "started_unix_ns": each.started_unix_ns,
        "ended_unix_ns": each.ended_unix_ns,
        "duration_s": _duration_s(each),
        "steps": each.steps,
        "processes": len(each.processes),
        "size_by": each.size_by,
        "problems": list(each.problems),
    }


def _duration_s(each: Run) -> float | None:
    """From the run's start to its end, or to now while it runs; unknown where nothing of it can be read."""
    if not each.processes:
        return None
    return max(0.0, ((each.ended_unix_ns or time.time_ns()) - each.started_unix_ns) / 1e9)


def _started(each: Run) -> datetime:
    return datetime.fromtimestamp(each.started_unix_ns / 1e9).astimezone()


def _print_columns(runs: Sequence[Run]) -> None:
    """One line a run for other programs; names are escaped, so that a tab is always between columns."""
    encoding = sys.stdout.encoding
    print(*COLUMNS, sep="\t")
    for each in runs:
        duration_s = _duration_s(each)
        started = _started(each).isoformat(timespec="seconds")
        took = "" if duration_s is None else f"{duration_s:.3f}"
        cells = (each.id, each.name, each.state, started, took, str(each.steps), str(each.size_by), str(each.path))
        print(*(literal(cell, encoding) for cell in cells), sep="\t")


def _print_table(runs: Sequence[Run]) -> None:
    """A table for people: an id is never cut; a name is where room is short, and left out where there is none."""
    from rich.text import Text

    console = console_for(sys.stdout)
    ascii_only, wide = console.options.ascii_only, console.width >= WIDE
    headings = ["RUN", "NAME", "STATE", "STARTED", "TOOK", "STEPS", *(["SIZE"] if wide else [])]
    rows = []
    for each in runs:
        duration_s = _duration_s(each)
        took = "" if duration_s is None else seconds(duration_s)
        cells = [
            (each.id, "bold"),
            (each.name, ""),
            (each.state, STYLES[each.state]),
            (f"{_started(each):{'%Y-%m-%d %H:%M' if wide else '%m-%d %H:%M'}}", ""),
            (took.replace("µ", "u") if ascii_only else took, ""),
            (f"{each.steps:,}", ""),
            (size(each.size_by), ""),
        ]
        rows.append([Text(literal(words, console.encoding), style) for words, style in cells[: len(headings)]])
    widths = [max(len(heading), *(row[n].cell_len for row in rows)) for n, heading in enumerate(headings)]
    name = headings.index("NAME")
    room = console.width - sum(widths) + widths[name] - len(GAP) * (len(headings) - 1)
    if room < min(widths[name], LEAST_NAME):
        del headings[name], widths[name]
        for row in rows:
            del row[name]
    else:
        widths[name] = min(widths[name], room)
        for row in rows:
            row[name].truncate(widths[name], overflow="crop" if ascii_only else "ellipsis")
    for row in ([Text(heading, "dim") for heading in headings], *rows):
        for cell, heading, width in zip(row, headings, widths, strict=True):
            cell.align("right" if heading in ("TOOK", "STEPS", "SIZE") else "left", width)
        line = Text(GAP).join(row)
        line.rstrip()
        console.print(line)
    for problem in (problem for each in runs for problem in each.problems):
        print(f"otel-ml: {literal(problem)}", file=sys.stderr)


# --- deleting -------------------------------------------------------------------------------


def _remove(directory: Path, args: argparse.Namespace) -> int:
    chosen = _chosen(directory, args)
    if not chosen:
        print(f"otel-ml: no run in {directory} is over; nothing was deleted", file=sys.stderr)
        return 0
    if not args.yes and not _agreed(chosen):
        print("otel-ml: nothing was deleted", file=sys.stderr)
        return 1
    for each in chosen:
        delete_run(directory, each)
        print(f"deleted {literal(_called(each), sys.stdout.encoding)}, {size(each.size_by)}")
    return 0


def _chosen(directory: Path, args: argparse.Namespace) -> list[Run]:
    """The runs that are to go, each once; refuses all of them if one is alive."""
    if not args.runs and not args.all_finished:
        message = (
            "which run? Type `otel-ml runs rm RUN` (`otel-ml runs` lists them) or `otel-ml runs rm --all-finished`"
        )
        raise CommandError(message)
    named = [_meant(directory, wanted) for wanted in args.runs]
    for each in named:
        if _alive(each):
            pids = ", ".join(
                f"{process.pid} on {process.host}" for process in each.processes if process.state == "running"
            )
            message = f"run {_called(each)} is still running (process {pids}); stop it first. Nothing was deleted"
            raise CommandError(message)
    over = [each for each in list_runs(directory) if not _alive(each)] if args.all_finished else []
    return list({each.slug: each for each in (*named, *over)}.values())


def _meant(directory: Path, wanted: str) -> Run:
    """The run that `wanted` means; a name will do only where a single run bears it."""
    found = find_run(directory, wanted)
    if found.id.startswith(wanted) or found.slug.startswith(wanted):
        return found
    namesakes = [each for each in list_runs(directory) if each.name == wanted]
    if len(namesakes) > 1:
        ids = ", ".join(literal(each.id) for each in namesakes)
        message = f"{len(namesakes)} runs are called {wanted!r}: {ids}. Type the id. Nothing was deleted"
        raise CommandError(message)
    return found


def _alive(each: Run) -> bool:
    return any(process.state == "running" for process in each.processes)


def _agreed(chosen: Sequence[Run]) -> bool:
    """Ask on the terminal; without one there is nobody to ask."""
    whole = size(sum(each.size_by for each in chosen))
    if not sys.stdin.isatty():
        message = f"this would delete {len(chosen):,} {_runs(chosen)} ({whole}); type -y as well. Nothing was deleted"
        raise CommandError(message)
    for each in chosen:
        print(f"  {_called(each)}, {each.state}, {size(each.size_by)}", file=sys.stderr)
    print(f"Delete {len(chosen):,} {_runs(chosen)} ({whole})? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _runs(chosen: Sequence[Run]) -> str:
    return "run" if len(chosen) == 1 else "runs"


def _called(each: Run) -> str:
    return literal(f"{each.id} ({each.name})" if each.name else each.id)
