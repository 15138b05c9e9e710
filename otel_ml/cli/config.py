"""Show the effective settings: value, where each came from, and what it means.

Ours (OTEL_ML_*) are all listed; OTel's own where they are set. Secrets are masked. When
stdout is no terminal, each line is name, value, source (env, default, or the file that
OTEL_ML_CONFIG names) and meaning, with tabs between. Keys of --json: settings[] {name,
value, source, default, doc, example}, otel[] {name, value, source}, exporters {traces[], metrics[], logs[]}.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otel_ml import redact
from otel_ml.configuration import apply_file
from otel_ml.settings import FIELDS, SETTINGS, Settings, exporters

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

__all__ = ["prepare_parser", "run"]


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """One switch."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the settings; a wrong one is refused as everywhere."""
    described = describe(os.environ)
    if args.json:
        print(json.dumps(described, indent=2))
    elif sys.stdout.isatty():
        _print_table(described)
    else:
        for name, value, source, doc in _rows(described):
            print(name, _one_line(value), source, doc, sep="\t")
    return 0


def describe(environ: Mapping[str, str]) -> dict[str, Any]:
    """What `--json` prints."""
    before = environ
    environ = dict(before)
    apply_file(environ)
    filed = {name for name, value in environ.items() if before.get(name) != value}
    settings = Settings.from_env(environ)
    return {
        "settings": [
            {
                "name": name,
                "value": _plain(name, getattr(settings, FIELDS[name])),
                "source": "file" if name in filed else settings.sources[name],
                "default": setting.default_text(environ),
                "doc": setting.doc,
                "example": setting.example,
            }
            for name, setting in SETTINGS.items()
        ],
        "otel": [
            {"name": name, "value": redact.value(name, environ[name]), "source": "file" if name in filed else "env"}
            for name in sorted(environ)
            if name.startswith("OTEL_") and not name.startswith("OTEL_ML_")
        ],
        "exporters": exporters(environ, store=settings.store),
    }


def _plain(name: str, value: object) -> object:
    """The value as JSON has it, secrets masked."""
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, (str, Path)):
        return redact.value(name, str(value))
    return value


def _rows(described: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    ours = [(row["name"], _typed(row["value"]), row["source"], row["doc"]) for row in described["settings"]]
    return ours + [(row["name"], row["value"], row["source"], "") for row in described["otel"]]


def _typed(value: object) -> str:
    """The value as a user would type it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, list):
        return ",".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _print_table(described: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in ("setting", "value", "from", "meaning"):
        table.add_column(heading, no_wrap=heading != "meaning", overflow="fold")
    for name, value, source, doc in _rows(described):
        style = "dim" if source == "default" else "bold"
        table.add_row(Text(name), Text(_one_line(value), style=style), Text(source), Text(doc))
    console = Console()
    console.print(table)
    ways = (f"{signal} → {', '.join(names) or 'nowhere'}" for signal, names in described["exporters"].items())
    console.print(Text("\n" + "; ".join(ways)))
