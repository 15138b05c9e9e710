"""Print a run's summary again: what happened, where its time went, what to try next.

    otel-ml report                the newest run
    otel-ml report RUN            that one: its id, the beginning of its id, or its name

A live run is shown as far as it is on disk. Keys of --json: schema, run {id, name, outcome,
exit_code, signal, error, started_unix_ns, ended_unix_ns, duration_s}, rates {samples_per_s,
tokens_per_s, requests_per_s, overhead}, diagnosis {verdict, evidence, advice}, processes[]
(one object a process, the one that the summary shows first). What is not known is null.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from otel_ml.overview import print_totals, to_json
from otel_ml.overview.lost import undelivered_in
from otel_ml.overview.words import literal
from otel_ml.settings import Settings
from otel_ml.store.reader import RunReader
from otel_ml.store.runs import find_run

if TYPE_CHECKING:
    import argparse

__all__ = ["prepare_parser", "run"]


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Which run, where, and in which form."""
    parser.add_argument("run", nargs="?", metavar="RUN", help="the run (default: the newest)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--dir", type=Path, help="the folder that holds the runs (OTEL_ML_DIR)")


def run(args: argparse.Namespace) -> int:
    """Print the report to stdout, and to stderr what of the run cannot be read."""
    found = find_run(args.dir or Settings.from_env(os.environ).directory, args.run)
    reader = RunReader(found)
    totals = reader.totals()
    if args.json:
        print(to_json(totals, found.ending))
    else:
        also = undelivered_in(found.id, [each.path for each in found.processes if each.state != "running"])
        print_totals(totals, sys.stdout, whole=True, ending=found.ending, also=also)
    for problem in reader.problems():
        print(f"otel-ml: {literal(problem)}", file=sys.stderr)
    return 0
