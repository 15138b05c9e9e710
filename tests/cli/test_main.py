"""`otel-ml` starts at once, helps, and fails in one line."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

from otel_ml.cli import main as cli

OTEL_ML = [sys.executable, "-m", "otel_ml"]


def otel_ml(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `otel-ml` to its end."""
    return subprocess.run([*OTEL_ML, *words], capture_output=True, text=True, check=False)


def test_version() -> None:
    """`--version` names the installed version."""
    assert otel_ml("--version").stdout == f"otel-ml {version('otel-ml')}\n"


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help(words: list[str]) -> None:
    """Without a command, and with --help, every command is listed with one sentence."""
    done = otel_ml(*words)
    lines = [text.split(maxsplit=1) for text in done.stdout.splitlines()]
    listed = {words[0]: words[1] for words in lines if len(words) == 2 and words[0] in cli.COMMANDS}
    assert done.returncode == 0
    assert sorted(listed) == sorted(cli.COMMANDS)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_command_help(command: str) -> None:
    """A command's help begins with its docstring."""
    done = otel_ml(command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: otel-ml {command}")


def test_unknown_command() -> None:
    """An unknown command is refused with those there are."""
    done = otel_ml("rnu")
    assert (done.returncode, done.stdout) == (2, "")
    assert "invalid choice: 'rnu'" in done.stderr


def test_errors_have_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What a command cannot do is one line on stderr and its exit code."""
    monkeypatch.setenv("OTEL_ML_STORE", "2")
    assert cli.main(["config"]) == 2
    assert capsys.readouterr() == (
        "",
        "otel-ml: OTEL_ML_STORE=2: need 1 or 0. Type OTEL_ML_STORE=0, or unset it for 1.\n",
    )


def test_reader_that_leaves() -> None:
    """A reader that has enough (`| head`) ends the command quietly."""
    done = subprocess.run(
        ["sh", "-c", '"$@" | true', "sh", *OTEL_ML, "config"], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("command", ["run", "config", "doctor"])
def test_starts_light(command: str) -> None:
    """No command imports a framework, NumPy, rich or the SDK before it has something to do with them."""
    program = (
        f"import sys, otel_ml.cli.main, otel_ml.cli.{command}\n"
        "print([m for m in ('torch', 'jax', 'numpy', 'rich', 'opentelemetry.sdk') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
