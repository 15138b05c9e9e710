"""Make runs of the local store from OTLP JSON lines: of `otel-ml export`, or of a Collector's file exporter.

    otel-ml import run.jsonl
    otel-ml import traces.jsonl metrics.jsonl logs.jsonl     one run in several files

What a resource calls ml.run.id is the run; records without one are counted and left out. A
run that is in the folder already is never touched. Files are only read. Keys of --json:
schema, runs[] {id, traces, metrics, logs}, unclaimed.
"""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from otel_ml.errors import CommandError
from otel_ml.overview.words import literal
from otel_ml.settings import Settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from typing import BinaryIO

    from otel_ml.export.foreign import Importer

__all__ = ["prepare_parser", "run"]

WORDS = {"traces": "spans", "metrics": "points", "logs": "logs"}


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Which files, and where to."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="a file of OTLP JSON lines")
    parser.add_argument("--max-mb", type=int, metavar="N", help="take at most N MB a file (OTEL_ML_STORE_TOTAL_MB)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--dir", type=Path, help="the folder that holds the runs (OTEL_ML_DIR)")


def run(args: argparse.Namespace) -> int:
    """Import all of it or nothing, and print the runs that were made."""
    from otel_ml.export.foreign import Importer

    settings = Settings.from_env(os.environ)
    most_bytes = (settings.store_total_mb if args.max_mb is None else args.max_mb) * 1_000_000
    with _told_of(args.files), Importer(args.dir or settings.directory) as importer:
        for name in args.files:
            with _opened(name) as file:
                _take(file, name, importer, most_bytes)
        if importer.empty and importer.unclaimed:
            message = (
                f"none of the {importer.unclaimed:,} records says which run it is of: their resources have no "
                "ml.run.id. Only what otel-ml recorded can be imported"
            )
            raise CommandError(message)
        if importer.empty:
            message = f"{', '.join(args.files)}: no record in it; nothing was imported"
            raise CommandError(message)
        made = importer.finish()
    if importer.unclaimed:
        print(f"otel-ml: {importer.unclaimed:,} records without ml.run.id are left out", file=sys.stderr)
    if args.json:
        runs = [{"id": run_id, **{word: counts[key] for word, key in WORDS.items()}} for run_id, counts in made.items()]
        print(json.dumps({"schema": 1, "runs": runs, "unclaimed": importer.unclaimed}, indent=2))
        return 0
    for run_id, counts in made.items():
        told = f"{counts['spans']:,} spans, {counts['points']:,} metric points, {counts['logs']:,} log records"
        shown = literal(run_id, sys.stdout.encoding)
        print(f"imported {shown}: {told}; see it with: otel-ml report {shown}")
    return 0


@contextmanager
def _told_of(files: list[str]) -> Iterator[None]:
    """Say in a line what a disk, or a value that no column takes, had against it."""
    try:
        yield
    except (OSError, sqlite3.Error, OverflowError) as error:
        message = f"{', '.join(files)}: nothing was imported: {error}"
        raise CommandError(message, exit_code=1) from error


def _opened(name: str) -> BinaryIO:
    """The file, for reading only; devices and pipes could go on for ever."""
    path = Path(name)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            message = f"{name} is no file"
            raise CommandError(message)
        return path.open("rb")
    except OSError as error:
        message = f"{name} cannot be read: {error.strerror}"
        raise CommandError(message) from error


def _take(file: BinaryIO, name: str, importer: Importer, most_bytes: int) -> None:
    from otel_ml.export.jsonlines import requests_in

    def say(words: str) -> None:
        print(f"otel-ml: {literal(words)}", file=sys.stderr)

    for signal, request in requests_in(file, name, most_bytes=most_bytes, say=say):
        importer.take(signal, request)
