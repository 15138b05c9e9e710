"""The house's rules: which way imports point, what may be loaded when, and who may read what."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch  # noqa: F401 - modules of ours that look for it in sys.modules are imported here

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "otel_ml"
MODULES = sorted(PACKAGE.rglob("*.py"))
FRAMEWORKS = {"torch", "jax", "jaxlib", "numpy", "flax", "lightning", "transformers"}

OURS = re.compile(r"OTEL_ML_[A-Z_]*")
SDK_ROOMS = ("pipeline/", "export/", "store/alike.py", "store/exporters.py", "store/rows.py", "testing.py", "distro.py")

# Who may name our variables: `settings.py` reads them all; the others come before settings
# can be read, or hand values down to the processes that they start.
VARIABLES = {
    "settings.py": {"OTEL_ML_", "OTEL_ML_INTERNAL_", "OTEL_ML_INTERNAL_LAUNCHER", "OTEL_ML_INTERNAL_PORTS"},
    "errors.py": {"OTEL_ML_STRICT"},  # our own tests', read as early as an error may come
    "core/native.py": {"OTEL_ML_NATIVE"},  # what hooks are made of is chosen when they are imported
    "core/runtime.py": {"OTEL_ML_ENABLED"},  # a hook may be loaded where no distro of ours is
    "core/identity.py": {"OTEL_ML_RUN_ID", "OTEL_ML_RUN_NAME"},  # one source of several, and handed down
    "configuration.py": {
        "OTEL_ML_CONFIG",
        "OTEL_ML_RUN_NAME",
        "OTEL_ML_DIR",
    },  # what configure() was given, handed down
    "cli/run.py": {"OTEL_ML_RUN_NAME", "OTEL_ML_DIR", "OTEL_ML_VERBOSE"},  # options, handed down
    "cli/doctor.py": {"OTEL_ML_", "OTEL_ML_DIR", "OTEL_ML_STORE", "OTEL_ML_ENABLED"},  # its trial process's
    "stack/programs.py": {"OTEL_ML_LISTEN"},  # the shipped Collector's, handed down
    "stack/path.py": {"OTEL_ML_RUN_ID", "OTEL_ML_RUN_NAME"},  # the probe's own
    "cli/config.py": {"OTEL_ML_"},  # tells OpenTelemetry's from ours
}


def tree(path: Path) -> ast.Module:
    """A module's syntax."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(path: Path) -> Iterator[str]:
    """Every module that this one imports anywhere, by name."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))


def inside(path: Path) -> str:
    """A module's place in the house."""
    return path.relative_to(PACKAGE).as_posix()


def test_imports_point_one_way() -> None:
    """Every import-linter contract in `pyproject.toml` is kept."""
    # In a process of its own: it configures logging.
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        (["otel_ml"], {*FRAMEWORKS, "opentelemetry.sdk", "otel_ml.distro"}),
        (["otel_ml.logs"], {*FRAMEWORKS, "opentelemetry.sdk", "otel_ml.distro", "structlog"}),
        (["otel_ml.environment"], {*FRAMEWORKS, "opentelemetry.sdk"}),
        (["otel_ml.distro", "otel_ml.cli.main", "otel_ml.cli.run", "otel_ml.instrument.torch"], FRAMEWORKS),
    ],
    ids=["the package", "logging", "what the launcher asks first", "the launchers"],
)
def test_starting_loads_no_framework(modules: list[str], absent: set[str]) -> None:
    """Neither what a program imports of us nor a launcher's start imports a framework; the former not even the SDK."""
    program = f"import sys, json, {', '.join(modules)}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert absent.intersection(json.loads(done.stdout)) == set()


def test_public_names_exist() -> None:
    """Every name in a module's `__all__` is there."""
    missing = []
    for path in MODULES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if any(isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__" for node in tree(path).body):
            module = importlib.import_module(name)
            missing += [f"{name}.{public}" for public in module.__all__ if not hasattr(module, public)]
    assert missing == []


def test_the_sdk_has_its_rooms() -> None:
    """The SDK is imported only where telemetry leaves or is stored, by the distro, and for tests."""
    strangers = [
        inside(path)
        for path in MODULES
        if not inside(path).startswith(SDK_ROOMS)
        and any(f"{name}.".startswith("opentelemetry.sdk.") for name in imported(path))
    ]
    assert strangers == []


def test_a_framework_has_its_own_place() -> None:
    """A framework is imported only by the modules under `instrument/` that bear its name."""
    strangers = [
        (inside(path), name)
        for path in MODULES
        for name in imported(path)
        if (framework := name.partition(".")[0]) in FRAMEWORKS
        and not inside(path).startswith((f"instrument/{framework}/", f"instrument/{framework}.py"))
    ]
    assert strangers == []


def test_the_hot_path_stands_on_little() -> None:
    """`core`, `names` and `errors` need the standard library alone."""
    strangers = {
        (inside(path), name)
        for path in MODULES
        for name in imported(path)
        if inside(path).startswith(("core/", "names.py", "errors.py"))
        and name.partition(".")[0] not in {*sys.stdlib_module_names, "otel_ml", "typing_extensions"}
    }
    assert strangers == set()


def test_settings_are_read_in_one_place() -> None:
    """Our variables are named by `settings.py`, and by those that this file lists with their reason."""
    found: dict[str, set[str]] = {}
    for path in MODULES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and OURS.fullmatch(node.value):
                found.setdefault(inside(path), set()).add(node.value)
    assert found == VARIABLES


def test_no_path_of_one_machine() -> None:
    """Nothing that ships, tests or documents names a folder of the machine that it was written on."""
    # /home/ada and /home/me are made up, and /mnt is where tests say that a network's disks are.
    mine = re.compile(r"(?<![\w.~$}])/(?:home/(?!(?:ada|me)\b)|(?:root|work|Users|private)/)\w")
    rooms = ("*.md", "*.toml", ".ci/*", "otel_ml/**/*", "tests/**/*", "examples/**/*", "collector-config/**/*")
    kinds = {".md", ".toml", ".py", ".yaml", ".yml", ".json", ".sh", ".txt", ""}
    files = [p for room in rooms for p in sorted(ROOT.glob(room)) if p.is_file() and p.suffix in kinds]
    assert set(files) > set(MODULES)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if mine.search(line)
    ]
    assert found == []
