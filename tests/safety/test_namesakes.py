"""What a program calls like a module that our set-up imports is the program's own, as without us."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.e2e.launching import INSTRUMENT, PLAIN, RUN, environment, totals

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ["calendar", "email", "google", "psutil", "queue", "random", "requests"]
PACKAGES = {"email", "google"}
SAID = """
import importlib, sys
for name in NAMES:
    try:
        mine = getattr(importlib.import_module(name), "MINE", None)
    except ModuleNotFoundError:
        mine = None
    print(name, mine, sorted(m for m in sys.modules if m.startswith(f"{name}.")) if mine else "")
"""
TRAINS = """
import google, torch
print(google.MINE)
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(5):
    optimizer.zero_grad()
    loss = model(torch.ones(1, 2)).sum()
    loss.backward()
    optimizer.step()
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a script and its modules, and a link to the script from elsewhere."""
    folder = tmp_path / "project"
    (folder / "calm").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for name in NAMES:
        file = folder / name / "__init__.py" if name in PACKAGES else folder / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text("MINE = __name__\n")
    (folder / "json").mkdir()  # a folder without `__init__.py` is no rival
    said = f"NAMES = {[*NAMES, 'json']}{SAID}"
    (folder / "script.py").write_text(said)
    (folder / "calm" / "script.py").write_text(said)
    (tmp_path / "elsewhere" / "link.py").symlink_to(folder / "script.py")
    return folder


def output(launcher: tuple[str, ...], *arguments: str, cwd: Path) -> list[object]:
    """What a program printed, on both streams, and its exit code."""
    env = environment(OTEL_ML_SUMMARY="0", OTEL_ML_DIR=str(cwd / "runs"))
    done = subprocess.run(
        [*launcher, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    return [done.stdout, done.stderr, done.returncode]


def test_own_modules(project: Path) -> None:
    """However a program is started, its modules win where they would, and only there."""
    elsewhere, inside = project.parent / "elsewhere", project
    python: tuple[str, ...] = (*RUN, *PLAIN)
    ways: list[tuple[Path, tuple[str, ...], tuple[str, ...]]] = [
        (elsewhere, RUN, (str(project / "script.py"),)),
        (elsewhere, INSTRUMENT, (str(project / "script.py"),)),
        (elsewhere, RUN, ("link.py",)),
        (elsewhere, RUN, (str(project / "calm" / "script.py"),)),
        (inside, RUN, ("calm/script.py",)),
        (inside, python, ("-m", "script")),
        (inside, python, ("-c", (project / "script.py").read_text())),
        (inside, python, ("-I", "script.py")),
    ]
    if sys.version_info >= (3, 11):
        ways.append((inside, python, ("-P", "script.py")))
    mine = []
    for folder, launcher, arguments in ways:
        plain = output(PLAIN, *arguments, cwd=folder)
        assert output(launcher, *arguments, cwd=folder) == plain, arguments
        mine.append(sum(line.split()[1] != "None" for line in str(plain[0]).splitlines()))
    assert mine[:7] == [7, 7, 7, 0, 0, 7, 7]


def test_recorded_all_the_same(tmp_path: Path) -> None:
    """A program with a module of the name of one that our store needs has its own, and is recorded whole."""
    (tmp_path / "google").mkdir()
    (tmp_path / "google" / "__init__.py").write_text("MINE = __name__\n")
    (tmp_path / "trains.py").write_text(TRAINS)
    plain = output(PLAIN, "trains.py", cwd=tmp_path)
    assert output(RUN, "trains.py", cwd=tmp_path) == plain == ["google\n", "", 0]
    assert (totals(tmp_path / "runs").steps, totals(tmp_path / "runs").errors) == (5, 0)
