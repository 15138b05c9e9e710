"""What type checkers of users say of the public names."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import otel_ml
from otel_ml import events, logs

ROOT = Path(__file__).resolve().parent.parent
API = ROOT / "tests" / "typing_api.py"

WRONG = """\
import otel_ml
from otel_ml import logs

otel_ml.traced(3)
otel_ml.traced("load")
otel_ml.traced(label="load")
otel_ml.timed(3.0)
otel_ml.span()
otel_ml.span(name="load")
otel_ml.record(3, 1)
otel_ml.record("loss", 1, step="3")
otel_ml.event(3)
otel_ml.run(3)
otel_ml.epoch()
otel_ml.epoch("3")
otel_ml.step("3")
otel_ml.phase(3)
otel_ml.evaluation(3)
otel_ml.checkpoint(3)
otel_ml.checkpoint("x", operation="both")
otel_ml.request(3)
otel_ml.data(3)
otel_ml.profile(steps="3")
otel_ml.flush("3")
otel_ml.configure(exporter="nowhere")
otel_ml.configure("train")
otel_ml.summary("x")
otel_ml.shutdown(3)
otel_ml.nothing()
logs.setup_logging(format="xml")
logs.get_logger(3)
logs.LogContext(3)


@otel_ml.traced
def double(x: int) -> int:
    return 2 * x


@otel_ml.timed()
async def later(x: int) -> int:
    return x


double("3")
double(3).upper()
double(3, 4)
len(later(3))
with otel_ml.span("load") as span:
    span.nothing()
for batch in otel_ml.data([1]):
    batch.upper()
"""
_RIGHT = ("import", "from", "@", "def", "async", "return", "with", "for")


def mypy(folder: Path) -> list[tuple[int, str]]:
    """Line and words of each of mypy's errors."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-incremental", "program.py"],
        capture_output=True, text=True, check=False, cwd=folder, env={**os.environ, "MYPYPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [(int(line), said) for line, said in re.findall(r"^\S+?:(\d+): error: (.*)", done.stdout, re.MULTILINE)]


def pyright(folder: Path) -> list[tuple[int, str]]:
    """The same of pyright's, in its strict mode."""
    config = {"include": ["program.py"], "extraPaths": [str(ROOT)], "typeCheckingMode": "strict"}
    (folder / "pyrightconfig.json").write_text(json.dumps(config), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable],
        capture_output=True, text=True, check=False, cwd=folder,
    )  # fmt: skip
    assert done.stdout, done.stderr
    said = json.loads(done.stdout)
    assert said["summary"]["filesAnalyzed"] == 1
    return [(d["range"]["start"]["line"] + 1, d["message"]) for d in said["generalDiagnostics"]]


def test_every_public_name_is_checked() -> None:
    """The file that is checked below uses each public name of the package, of its logging, and of its events."""
    used = {
        (node.value.id, node.attr)
        for node in ast.walk(ast.parse(API.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    public = {(m.__name__.rpartition(".")[2], name) for m in (logs, events) for name in m.__all__}
    public = {(m, name) for m, name in public if name not in otel_ml.__all__}
    public |= {("otel_ml", name) for name in otel_ml.__all__}
    assert public - used == set()


def test_right_uses_are_right(tmp_path: Path) -> None:
    """Neither mypy nor pyright, both strict, find fault with a program that uses every public name as it is meant."""
    (tmp_path / "program.py").write_text(API.read_text(encoding="utf-8"), encoding="utf-8")
    assert (mypy(tmp_path), pyright(tmp_path)) == ([], [])


def test_wrong_uses_are_wrong(tmp_path: Path) -> None:
    """Both find an error in every line that uses one wrongly: decorated functions keep what they take and give."""
    (tmp_path / "program.py").write_text(WRONG, encoding="utf-8")
    lines = [n for n, line in enumerate(WRONG.splitlines(), 1) if line and not line.strip().startswith(_RIGHT)]
    found = [sorted({line for line, _ in check(tmp_path)}) for check in (mypy, pyright)]
    assert found == [lines, lines]
