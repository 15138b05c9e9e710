"""See what your training did: run it, read its report, look at its settings.

A command is a module with `prepare_parser(parser)` and `run(args) -> int`; its docstring
is its help. Only the command that was chosen is imported, and none imports a framework,
so that `otel-ml` starts at once. What a command cannot do is one line on stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from keyword import iskeyword
from typing import TYPE_CHECKING, Protocol, cast

from otel_ml.configuration import apply_file
from otel_ml.errors import CommandError, OtelMlError, say

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMMANDS", "main"]

COMMANDS = ("run", "report", "runs", "stack", "replay", "export", "import", "config", "doctor")

_USAGE_ERROR = 2
_INTERRUPTED = 130


class Command(Protocol):
    """What a command's module offers."""

    __doc__: str | None

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; the exit code."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` (the process's own, unless given) names; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if not words or words[0] not in COMMANDS:
            return _top_level(words)
        command = _load(words[0])
        parser = argparse.ArgumentParser(
            prog=f"otel-ml {words[0]}",
            description=command.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.prepare_parser(parser)
        if words[0] not in ("config", "run"):  # these two tell, or hand down, what came from where
            apply_file(os.environ)
        code = command.run(parser.parse_args(words[1:]))
        if sys.stdout is not None:  # it may have been closed before us: `otel-ml run x.py >&-`
            sys.stdout.flush()
    except OtelMlError as error:
        say(str(error))
        return error.exit_code if isinstance(error, CommandError) else _USAGE_ERROR
    except BrokenPipeError:
        # The reader (`| head`) has enough. Python flushes stdout once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _INTERRUPTED
    except OSError as error:
        say(str(error))
        return 1
    return code


def _load(name: str) -> Command:
    module = f"{name}_" if iskeyword(name) else name
    return cast("Command", import_module(f"otel_ml.cli.{module}"))


def _top_level(words: list[str]) -> int:
    """`otel-ml --help`, `--version`, and the answer to a command that does not exist."""
    parser = argparse.ArgumentParser(prog="otel-ml", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--version", action="version", version=f"otel-ml {_version()}")
    commands = parser.add_subparsers(metavar="command", required=True)
    for name in COMMANDS:
        first_line = (_load(name).__doc__ or "").partition("\n")[0]
        commands.add_parser(name, help=first_line.replace("%", "%%"), add_help=False)
    if not words:
        parser.print_help()
        return 0
    parser.parse_args(words)
    return _USAGE_ERROR


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("otel-ml")
    except PackageNotFoundError:
        return "(not installed)"
