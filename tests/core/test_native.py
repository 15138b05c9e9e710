"""What is compiled and what is Python record the same, and which of both it is can be told and chosen."""

from __future__ import annotations

import importlib.machinery
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch  # noqa: F401 - modules of ours that look for it in sys.modules are imported here

from otel_ml.cli.doctor import Check, examine
from otel_ml.core import native, recorder
from otel_ml.instrument.torch import modules

ROOT = Path(__file__).resolve().parents[2]
COMPILED = "otel_ml.instrument.torch._hooks"
SAME = (
    "tests/core/test_recorder.py",
    "tests/instrument/torch",
    "tests/pipeline/test_bulk.py",
    "tests/pipeline/test_calls.py",
    "tests/pipeline/test_records.py",
    "tests/pipeline/test_steady.py",
    "tests/pipeline/test_steps.py",
    "tests/store/test_packed.py",
    "tests/safety/test_compile.py::test_compile",
    "tests/safety/test_bitwise.py",
)


def can_compile() -> bool:
    """Whether this machine has what the hooks are compiled with."""
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return sys.platform == "linux" and headers.exists() and shutil.which("cc") is not None


def test_compiled() -> None:
    """Where there is a compiler, an installation has compiled the hooks, and uses them."""
    if os.environ.get("OTEL_ML_NATIVE") == "0" or not can_compile():
        pytest.skip("nothing is compiled here")
    loaded = native.load(COMPILED)
    assert loaded is not None, "type: pip install -e ."
    assert Path(loaded.__file__).suffix in importlib.machinery.EXTENSION_SUFFIXES
    assert recorder.Recorder.__base__ is native.load("otel_ml.core._recorder").Fields
    assert type(modules._slot(print, shared=False)) is loaded.Slot
    assert Check("installed", "hooks", "ok", "compiled") in examine({})


def test_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """`OTEL_ML_NATIVE=0` leaves out what was compiled, and doctor says so."""
    monkeypatch.setenv("OTEL_ML_NATIVE", "0")
    assert native.load(COMPILED) is None
    said = Check("installed", "hooks", "note", "Python, as the settings say: some 8 µs more a step")
    assert said in examine({"OTEL_ML_NATIVE": "0"})


def test_old(tmp_path: Path) -> None:
    """What was compiled from a source that has changed since is left out."""
    folder = tmp_path / "old"
    folder.mkdir()
    made, source = folder / "thing.so", folder / "thing.c"
    for path, at in ((made, 1000), (source, 999)):
        path.touch()
        os.utime(path, (at, at))
    loader = importlib.machinery.ExtensionFileLoader("thing", str(made))
    spec = importlib.machinery.ModuleSpec("thing", loader, origin=str(made))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "find_spec", lambda _: spec)
        patch.setattr(native, "_SHARED", "of no source")
        assert not native.is_old("thing")
        os.utime(source, (1001, 1001))
        assert native.is_old("thing")
        assert native.load("thing") is None


def test_all_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the recorder was compiled from an older source, the hooks that count on it are left out as well."""
    monkeypatch.setattr(native, "is_old", lambda name: name == "otel_ml.core._recorder")
    assert native.load(COMPILED) is None


def test_another_interpreter() -> None:
    """A second interpreter in the process has hooks that are Python, and leaves the first one's as they are."""
    pytest.importorskip("_xxsubinterpreters")
    program = """
import _xxsubinterpreters as interpreters, torch
from otel_ml.core import native, recorder
from otel_ml.core.context import recorders
before = native.load("otel_ml.core._recorder")
other = interpreters.create(isolated=False)
interpreters.run_string(other, "from otel_ml.core import context, native; print(native.load('otel_ml.core._recorder'))")
from otel_ml.instrument.torch import TorchInstrumentor
TorchInstrumentor().instrument()
model = torch.nn.Linear(2, 2)
model(torch.ones(3, 2))
print(before is native.load("otel_ml.core._recorder"), recorders.mine().buffer[0::5])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.returncode) == ("None\nTrue [3]\n", 0), done.stderr


@pytest.mark.slow
def test_python_alone() -> None:
    """What holds of hooks, recorders, columns and compiled programs holds where nothing of ours was compiled."""
    if os.environ.get("OTEL_ML_NATIVE") == "0":
        pytest.skip("this is that run")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SAME],
        cwd=ROOT, env={**os.environ, "OTEL_ML_NATIVE": "0"}, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
