"""Run the Collector, Prometheus, Alertmanager, Jaeger and Loki here, without containers, from their binaries.

    otel-ml stack up              start them, wait until all are ready, say where to send and where to look
    otel-ml stack status          how each is; the exit code is 0 if all are ready
    otel-ml stack logs [NAME]     what they said last; -f to go on
    otel-ml stack down            end them; their data stays

The programs are looked for in the folder that OTEL_ML_BACKENDS names and on PATH; they read the configurations
that ship with otel-ml (`--config` for your own). All of it (data, logs, a copy of the configurations) is in one
folder, OTEL_ML_STACK_DIR; all listen on loopback unless OTEL_ML_LISTEN says otherwise. A port that is taken is
told before anything starts: move one with `--port loki=3200`, or take free ones with `--free-ports`
(`otel-ml stack up --help` lists them). Alerts go to Slack or a webhook once the folder's secrets/slack-url or
secrets/webhook-url holds the address.

Keys of `status --json`: collector, prometheus, alertmanager, jaeger, loki, each with url and state (ready, starting,
restarting, stopped). The collector's url is what goes into OTEL_EXPORTER_OTLP_ENDPOINT.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from otel_ml.errors import CommandError
from otel_ml.overview.words import literal
from otel_ml.settings import Settings
from otel_ml.stack.client import checked_address, down, free_ports, plan_of, running, seen, taken, up
from otel_ml.stack.programs import NAMES, PORTS, Plan, find
from otel_ml.stack.supervisor import log_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_ml.stack.client import Seen

__all__ = ["links", "prepare_parser", "run"]

_LOOPBACK = "127."
_FOLLOW_S = 0.3


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Four actions."""
    parser.add_argument("--dir", type=Path, help="the stack's folder (OTEL_ML_STACK_DIR)")
    actions = parser.add_subparsers(dest="action", metavar="up|down|status|logs", required=True)
    start = actions.add_parser("up", help="start what does not run yet, and wait until it is ready")
    there = ", ".join(f"{name}={number}" for name, number in PORTS.items())
    start.add_argument(
        "--port", action="append", default=[], type=_port, metavar="NAME=PORT", help=f"move a port; there are {there}"
    )
    start.add_argument("--free-ports", action="store_true", help="take a free port for all that --port does not name")
    start.add_argument("--config", type=Path, metavar="DIR", help="your own copy of collector-config/")
    start.add_argument("--timeout", type=float, default=90.0, metavar="S", help="how long to wait (default: 90)")
    actions.add_parser("down", help="end all of it; the data stays")
    status = actions.add_parser("status", help="how each program is")
    logs = actions.add_parser("logs", help="what the programs said")
    logs.add_argument("name", nargs="?", choices=(*NAMES, "supervisor"), help="one of them (default: all)")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    logs.add_argument("-n", "--lines", type=int, default=20, metavar="N", help="the last N lines of each (default: 20)")
    for action in (start, status):
        action.add_argument("--json", action="store_true", help="print JSON")
    for action in actions.choices.values():
        action.add_argument("--dir", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def _port(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if name not in PORTS or not number.isdecimal() or not 0 < int(number) < 1 << 16:
        message = f"need NAME=PORT with a name of {', '.join(PORTS)}, not {text!r}"
        raise argparse.ArgumentTypeError(message)
    return name, int(number)


def run(args: argparse.Namespace) -> int:
    """Do what was asked; 1 where not all is ready afterwards."""
    settings = Settings.from_env(os.environ)
    folder = (args.dir or settings.stack_dir).expanduser().absolute()
    if args.action == "down":
        print("ended" if down(folder) else "nothing runs here", file=sys.stderr)
        return 0
    if args.action == "logs":
        return _logs(folder, args)
    if args.action == "up":
        _up(folder, settings, args)
    now = seen(folder)
    _print(folder, now, as_json=args.json)
    return 0 if all(one.state == "ready" for one in now) else 1


# --- up ---------------------------------------------------------------------------------------


def _up(folder: Path, settings: Settings, args: argparse.Namespace) -> None:
    if running(folder):
        if args.port or args.free_ports or args.config:
            message = f"a stack runs in {folder} already; to start it anew, type: otel-ml stack down"
            raise CommandError(message, exit_code=1)
        print(f"otel-ml: it runs already, in {folder}", file=sys.stderr)
        return
    if args.config is not None and not (args.config / "collector.yaml").is_file():
        message = f"--config {args.config}: there is no collector.yaml in it"
        raise CommandError(message)
    listen = checked_address(settings.listen)
    down(folder)  # what a crash left
    binaries = find(settings.backends, os.environ.get("PATH", ""))
    moved = dict(args.port)
    ports = free_ports(listen, moved) if args.free_ports else {**PORTS, **moved}
    _check(listen, ports)
    if not listen.startswith(_LOOPBACK):
        print(f"otel-ml: listening on {listen}: whoever reaches this machine reaches the stack", file=sys.stderr)
    live = sys.stderr.isatty()
    line = ""
    for now in up(Plan(folder, listen, ports, binaries), args.config, args.timeout):
        text = "  ".join(f"{one.name} {one.state}" for one in now) or "starting"
        if live and text != line:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
            line = text
    if live:
        print("\r\x1b[K", end="", file=sys.stderr)


def _check(listen: str, ports: dict[str, int]) -> None:
    twice = [number for number, times in Counter(ports.values()).items() if times > 1]
    if twice:
        message = f"port {twice[0]} is asked for twice"
        raise CommandError(message)
    busy = taken(listen, ports)
    if busy:
        name, number = next(iter(busy.items()))
        other = number + 10_000 if number < 50_000 else number - 10_000
        shown = ", ".join(f"{name} ({number})" for name, number in busy.items())
        message = (
            f"something listens already on (or you may not listen on) the port of {shown}; "
            f"type `otel-ml stack up --free-ports`, or move it: --port {name}={other}"
        )
        raise CommandError(message, exit_code=1)


# --- status -----------------------------------------------------------------------------------


def links(folder: Path) -> list[tuple[str, str]]:
    """A question to each backend that answers once a run has sent to the stack."""
    plan = plan_of(folder)
    if plan is None:
        return []
    return [
        ("metrics", plan.url("prometheus") + "/api/v1/query?query=ml_training_steps_total"),
        ("traces", plan.url("jaeger") + "/api/services"),
        ("logs", plan.url("loki") + "/loki/api/v1/query_range?query=%7Bml_run_id%3D~%22.%2B%22%7D&since=1h"),
    ]


def _print(folder: Path, now: Sequence[Seen], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({one.name: {"url": one.url, "state": one.state} for one in now}, indent=2))
        return
    if not sys.stdout.isatty():
        for one in now:
            print(one.name, one.url or "", one.state, one.restarts, sep="\t")
        return
    for one in now:
        again = f"  started again {one.restarts} times" if one.restarts else ""
        print(f"{one.name:<13} {one.url or '-':<24} {one.state}{again}")
    if all(one.state == "stopped" for one in now):
        print(f"\nnothing runs in {folder}; type: otel-ml stack up")
        return
    print(f"\nsend      OTEL_EXPORTER_OTLP_ENDPOINT={now[0].url} otel-ml run train.py")
    for what, link in links(folder):
        print(f"{what:<9} {link}")
    print(f"data      {folder}")


# --- logs -------------------------------------------------------------------------------------


def _logs(folder: Path, args: argparse.Namespace) -> int:
    names = [args.name] if args.name else [*NAMES, "supervisor"]
    files = {name: log_of(folder, name) for name in names}
    if not any(file.exists() for file in files.values()):
        message = f"there is no log in {folder}; type: otel-ml stack up"
        raise CommandError(message, exit_code=1)
    at = {}
    for name, file in files.items():
        text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
        at[name] = len(text.encode())
        for line in text.splitlines()[-args.lines :] if args.lines > 0 else []:
            _say(name, line)
    while args.follow:
        time.sleep(_FOLLOW_S)
        for name, file in files.items():
            size = file.stat().st_size if file.exists() else 0
            if size < at[name]:
                at[name] = 0
            if size > at[name]:
                with file.open("rb") as log:
                    log.seek(at[name])
                    new = log.read()
                whole = new[: new.rfind(b"\n") + 1]
                at[name] += len(whole)
                for line in whole.decode("utf-8", "replace").splitlines():
                    _say(name, line)
        sys.stdout.flush()
    return 0


def _say(name: str, line: str) -> None:
    print(f"{name}\t{literal(line)}")
