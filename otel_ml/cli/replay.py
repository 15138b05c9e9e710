"""Send to the endpoint what it has not acknowledged, from the local store.

    otel-ml replay            of the newest run
    otel-ml replay RUN        of this run
    otel-ml replay --all      of every run on this machine

Where and how is said by the variables that the program had: OTEL_EXPORTER_OTLP_ENDPOINT,
_HEADERS, _PROTOCOL… A process that still runs sends by itself and is left alone. Two
replays at once share the work and send nothing twice. What the endpoint refuses for good is
set aside with its reason. Keys of --json: schema, runs[] {id, name, processes_running,
signals: {traces, metrics, logs: {sent, refused, left, reason}}, away, trouble}. The exit code is
1 where something is left or cannot be read.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otel_ml.errors import CommandError, StoreError
from otel_ml.overview.words import literal
from otel_ml.settings import Settings, endpoint_configured
from otel_ml.store.outbox import SIGNALS
from otel_ml.store.reader import undelivered
from otel_ml.store.runs import find_run, list_runs

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from otel_ml.export.sender import Sender
    from otel_ml.export.spool import Report
    from otel_ml.store.runs import Run

__all__ = ["prepare_parser", "run"]

WORDS = {"spans": "traces", "logs": "logs", "points": "metrics"}
COLUMNS = ("run", "signal", "sent", "refused", "left")


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Which runs, where to, and what of them."""
    parser.add_argument("run", nargs="?", metavar="RUN", help="the run (default: the newest)")
    parser.add_argument("--all", action="store_true", help="every run")
    parser.add_argument("--endpoint", metavar="URL", help="where to (OTEL_EXPORTER_OTLP_ENDPOINT)")
    parser.add_argument("--local", action="store_true", help="also what was recorded while no endpoint was set")
    parser.add_argument("--again", action="store_true", help="also what was refused for good")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be sent")
    parser.add_argument(
        "--wait", type=float, default=10.0, metavar="S", help="seconds to wait for an endpoint that is away (10)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--dir", type=Path, help="the folder that holds the runs (OTEL_ML_DIR)")


def run(args: argparse.Namespace) -> int:
    """Send, and print what was sent, refused and left; 1 where something is left."""
    directory: Path = args.dir or Settings.from_env(os.environ).directory
    if args.all and args.run:
        message = "a run, or --all: not both"
        raise CommandError(message)
    chosen = list_runs(directory) if args.all else [find_run(directory, args.run)]
    ways: Mapping[str, Sender] = {}
    if not args.dry_run:
        if not args.endpoint and not endpoint_configured(os.environ):
            message = "where to? Set OTEL_EXPORTER_OTLP_ENDPOINT, or type --endpoint http://localhost:4318"
            raise CommandError(message)
        from otel_ml.export.spool import ways as find_ways

        ways = find_ways(os.environ, args.endpoint)
    results = []
    try:
        for each in chosen:
            results.append(_one(each, args, ways))
            if results[-1]["away"]:
                break
    finally:
        for way in ways.values():
            way.close()
        _show(results, as_json=args.json)
    return int(any(each["trouble"] or _left(each) for each in results))


def _left(result: dict[str, Any]) -> int:
    return sum(signal["left"] for signal in result["signals"].values())


def _one(each: Run, args: argparse.Namespace, ways: Mapping[str, Sender]) -> dict[str, Any]:
    running = 0
    totals: dict[str, dict[str, Any]] = {
        signal: {"sent": 0, "refused": 0, "left": 0, "reason": None} for signal in SIGNALS
    }
    trouble = away = ""
    for problem in each.problems:
        trouble = problem
        print(f"otel-ml: {literal(problem)}", file=sys.stderr)
    for process in each.processes:
        if process.state == "running":
            running += 1
            print(
                f"otel-ml: {literal(each.id)}: process {process.pid} on {process.host} still runs and sends by itself",
                file=sys.stderr,
            )
            continue
        if ways and not away:
            try:
                report = _send(process.path, each.id, args, ways)
            except StoreError as error:
                trouble = str(error)
                print(f"otel-ml: {literal(trouble)}", file=sys.stderr)
                continue
            away = report.trouble
            for signal in SIGNALS:
                totals[signal]["sent"] += report.sent[signal]
                totals[signal]["refused"] += report.refused[signal]
                totals[signal]["reason"] = report.reasons.get(signal) or totals[signal]["reason"]
        for signal, count in undelivered(
            process.path, unasked=args.local, again=args.again and args.dry_run
        ).left.items():
            totals[signal]["left"] += count
    if away:
        print(f"otel-ml: {literal(each.id)}: {literal(away)}", file=sys.stderr)
    signals = {WORDS[signal]: totals[signal] for signal in SIGNALS}
    return {
        "id": each.id,
        "name": each.name,
        "processes_running": running,
        "signals": signals,
        "away": bool(away),
        "trouble": away or trouble or None,
    }


def _send(path: Path, run_id: str, args: argparse.Namespace, ways: Mapping[str, Sender]) -> Report:
    from otel_ml.export.spool import replay

    def progress(signal: str, count: int) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[Kotel-ml: {literal(run_id)}: {count:,} {WORDS[signal]}", end="", file=sys.stderr, flush=True)

    try:
        return replay(path, ways, unasked=args.local, again=args.again, wait_s=args.wait, progress=progress)
    finally:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _show(results: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"schema": 1, "runs": results}, indent=2))
        return
    encoding = sys.stdout.encoding
    if not sys.stdout.isatty():
        print(*COLUMNS, sep="\t")
        for each in results:
            for word, counts in each["signals"].items():
                cells = (counts["sent"], counts["refused"], counts["left"])
                print(literal(each["id"], encoding), word, *cells, sep="\t")
        return
    for each in results:
        signals = each["signals"]
        told = ", ".join(
            f"{sum(counts[what] for counts in signals.values()):,} {what}" for what in ("sent", "refused", "left")
        )
        print(f"{literal(each['id'], encoding)}: {told}")
        for word, counts in signals.items():
            if counts["sent"] or counts["refused"] or counts["left"]:
                reason = f" ({literal(counts['reason'], encoding)})" if counts["reason"] else ""
                print(
                    f"  {word:8} {counts['sent']:>9,} sent {counts['refused']:>7,} refused{reason} "
                    f"{counts['left']:>9,} left"
                )
