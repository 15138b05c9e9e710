"""Environments for the peers: one a set of packages, made on demand, sharing torch with ours.

`python -m tests.bench peers --install` makes them. Each is a virtual environment that
finds torch and what torch needs through a `.pth` file, so that peers whose pins conflict
live side by side and nothing of ours is in their sight. What could not be installed is
kept with the installer's words and shown wherever the peer would be.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import venv
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from packaging.utils import NormalizedName

    from tests.bench.conditions import Condition

__all__ = ["Venv", "find_venv", "install"]


@dataclass(frozen=True)
class Venv:
    """Where a condition runs, or why it cannot."""

    python: Path | None
    versions: dict[str, str]
    refused: str | None = None


def _name(requirement: str) -> NormalizedName:
    return canonicalize_name(Requirement(requirement).name)


def _folder(base: Path, packages: tuple[str, ...]) -> Path:
    digest = hashlib.sha256(" ".join((sys.version, metadata.version("torch"), *packages)).encode()).hexdigest()
    return base / f"{_name(packages[0])}-{digest[:8]}"


def find_venv(condition: Condition, base: Path) -> Venv:
    """Find the environment that a condition runs in: ours, its own, or the reason there is none."""
    if condition.packages:
        folder = _folder(base, condition.packages)
        note = folder / "bench.json"
        if not note.exists():
            return Venv(None, {}, "not installed: python -m tests.bench peers --install")
        made = json.loads(note.read_text(encoding="utf-8"))
        python = None if made["refused"] else folder / "bin" / "python"
        return Venv(python, made["versions"], made["refused"])
    versions: dict[str, str] = {}
    for name in condition.needs:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # noqa: PERF203
            return Venv(None, {}, f"{name} is not installed in this environment: pip install -e '.[dev]'")
    return Venv(Path(sys.executable), versions)


def install(condition: Condition, base: Path) -> Venv:
    """Make the condition's own environment, or keep why that failed."""
    folder = _folder(base, condition.packages)
    base.mkdir(parents=True, exist_ok=True)
    (base / ".gitignore").write_text("*\n", encoding="utf-8")
    venv.create(folder, clear=True)
    python = folder / "bin" / "python"
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "torch_shared.pth").write_text(f"{_share_torch(folder)}\n", encoding="utf-8")
    constraints = folder / "constraints.txt"
    constraints.write_text(f"torch=={metadata.version('torch').partition('+')[0]}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "install", "--quiet", "--constraint", str(constraints), *condition.packages],
        capture_output=True,
        text=True,
        check=False,
    )
    versions: dict[str, str] = {}
    if done.returncode == 0:
        shown = subprocess.run([*pip, "list", "--format=json"], capture_output=True, text=True, check=True).stdout
        have = {canonicalize_name(row["name"]): row["version"] for row in json.loads(shown)}
        versions = {name: have[name] for name in map(_name, condition.packages)}
    refused = None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["pip failed"])[-1]
    (folder / "bench.json").write_text(json.dumps({"versions": versions, "refused": refused}), encoding="utf-8")
    return find_venv(condition, base)


def _share_torch(folder: Path) -> Path:
    """Make a folder of links to torch and all that it requires, as installed beside the harness."""
    shared = folder / "torch"
    shared.mkdir()
    todo, seen = ["torch", "numpy"], set[str]()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # a requirement of another platform
            continue
        todo += map(_name, found.requires or ())
        for top in {path.parts[0] for path in found.files or ()} - {"..", "__pycache__"}:
            if not (link := shared / top).exists():
                link.symlink_to(Path(str(found.locate_file(top))))
    return shared
