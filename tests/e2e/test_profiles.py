"""A framework's own profiler, for the steps that were named, in the run's folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from otel_ml.store.runs import delete_run, find_run, read_run
from tests.e2e.launching import RUN, environment, launch, recorded

if TYPE_CHECKING:
    from pathlib import Path


ENDLESS = """
import time, torch
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
while True:
    model(torch.ones(2, 3)).mean().backward()
    optimizer.step()
    time.sleep(0.01)
"""


@pytest.mark.parametrize(("program", "pattern"), [("plain_loop", "trace-*.json"), ("jax_plain", "**/*.xplane.pb")])
def test_named_steps(program: str, pattern: str, tmp_path: Path) -> None:
    """The steps named in OTEL_ML_PROFILE_STEPS are captured, and their spans say where."""
    runs = tmp_path / "runs"
    ours = launch(RUN, f"{program}.py", cwd=tmp_path, OTEL_ML_DIR=str(runs), OTEL_ML_PROFILE_STEPS="3-5")

    assert ours.code == 0, ours.stderr
    folder = find_run(runs, None).path / "profiles" / "steps-3-5"
    assert len(list(folder.glob(pattern))) == 1
    assert (folder.stat().st_mode & 0o777, folder.parent.stat().st_mode & 0o777) == (0o700, 0o700)
    spans = [span.attributes for span in recorded(runs).spans(name="ml.step")]
    profiled = {s["ml.step.number"]: s["ml.profile.path"] for s in spans if "ml.profile.path" in s}
    assert profiled == dict.fromkeys((3, 4, 5), str(folder))
    run = read_run(find_run(runs, None).path)
    assert run is not None
    delete_run(runs, run)
    assert list(runs.iterdir()) == []


ASKED = """
import otel_ml, torch
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for number in range(8):
    if number == 3:
        otel_ml.profile(steps=2)
    with otel_ml.step() if number % 2 else otel_ml.phase("odd"):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).mean().backward()
        optimizer.step()
"""


def test_asked_for(tmp_path: Path) -> None:
    """`profile(steps=2)` has the next two steps captured, whoever says what a step is, and their spans say where."""
    runs = tmp_path / "runs"
    program = tmp_path / "asked.py"
    program.write_text(ASKED, encoding="utf-8")
    ours = launch(RUN, program, cwd=tmp_path, OTEL_ML_DIR=str(runs))
    assert ours.code == 0, ours.stderr
    (trace,) = find_run(runs, None).path.glob("profiles/*/trace-*.json")
    spans = [span.attributes for span in recorded(runs).spans(name="ml.step")]
    profiled = {s["ml.step.number"]: s["ml.profile.path"] for s in spans if "ml.profile.path" in s}
    assert profiled == dict.fromkeys((4, 5), str(trace.parent))


def test_signal(tmp_path: Path) -> None:
    """The signal named in OTEL_ML_PROFILE_SIGNAL has the next steps captured; without it, no handler is there."""
    runs = tmp_path / "runs"
    env = environment(OTEL_ML_DIR=str(runs), OTEL_ML_PROFILE_SIGNAL="USR2", OTEL_ML_SUMMARY="0")
    program = tmp_path / "endless.py"
    program.write_text(ENDLESS)
    process = subprocess.Popen([*RUN, str(program)], cwd=tmp_path, env=env, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not list(runs.glob("*/*.sqlite")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGUSR2)
        while not list(runs.glob("*/profiles/*/trace-*.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        (trace,) = runs.glob("*/profiles/*/trace-*.json")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert trace.parent.name.startswith("steps-")


def test_debugging_jax(tmp_path: Path) -> None:
    """OTEL_ML_DEBUG=jax logs each compilation and leaves what was compiled in the run's folder."""
    runs = tmp_path / "runs"
    ours = launch(RUN, "jax_plain.py", cwd=tmp_path, OTEL_ML_DIR=str(runs), OTEL_ML_DEBUG="jax")

    assert ours.code == 0
    assert "Compiling" in ours.stderr
    dumped = [path.name for path in (find_run(runs, None).path / "jax").iterdir()]
    assert [name for name in dumped if "jit_train_" in name]
    assert json.loads(ours.stdout.splitlines()[-1].removeprefix("truth "))["exit"] == 0
