"""Write a run as OTLP JSON lines, which other tools read: a request of one signal a line.

    otel-ml export                          the newest run, to stdout
    otel-ml export RUN -o run.jsonl         this run, to a file
    otel-ml export RUN --signal traces      its traces alone

The lines are as the Collector's file exporter writes them. `otel-ml import` makes a run of
them again. A live run is written as far as it is on disk.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from otel_ml.errors import CommandError
from otel_ml.overview.words import literal
from otel_ml.settings import Settings
from otel_ml.store.reader import RunReader
from otel_ml.store.runs import find_run

if TYPE_CHECKING:
    import argparse
    from typing import BinaryIO

__all__ = ["prepare_parser", "run"]

SIGNALS = {"traces": "spans", "metrics": "points", "logs": "logs"}


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Which run, what of it, and where to."""
    parser.add_argument("run", nargs="?", metavar="RUN", help="the run (default: the newest)")
    parser.add_argument("-o", "--output", default="-", metavar="FILE", help="the file to write (default: -, stdout)")
    parser.add_argument(
        "--signal", action="append", choices=list(SIGNALS), help="this signal alone; may be given again (default: all)"
    )
    parser.add_argument("--dir", type=Path, help="the folder that holds the runs (OTEL_ML_DIR)")


def run(args: argparse.Namespace) -> int:
    """Write the lines; to stderr what of the run cannot be read."""
    found = find_run(args.dir or Settings.from_env(os.environ).directory, args.run)
    reader = RunReader(found)
    signals = [SIGNALS[name] for name in args.signal or SIGNALS]
    if args.output == "-":
        _write(reader, signals, sys.stdout.buffer)
    else:
        path = Path(args.output)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with os.fdopen(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                _write(reader, signals, file)
            unfinished.replace(path)
        except OSError as error:
            message = f"{path} cannot be written: {error.strerror}"
            raise CommandError(message) from error
        finally:
            with suppress(OSError):
                unfinished.unlink()
    for problem in reader.problems():
        print(f"otel-ml: {literal(problem)}", file=sys.stderr)
    return 0


def _write(reader: RunReader, signals: list[str], file: BinaryIO) -> None:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it ships no types

    from otel_ml.export.jsonlines import line_of

    try:
        for signal in signals:
            file.writelines(line_of(batch) for batch in reader.batches(signal))
    except DecodeError as error:
        message = f"a record of the run is damaged on disk ({error}); what came before it is written"
        raise CommandError(message, exit_code=1) from error
