"""The processes that are measured: what they find in their environment, and what they used when they are gone."""

from __future__ import annotations

import compileall
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.loops import stats

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

__all__ = ["ROOT", "Ended", "adopt", "compile_ours", "environment", "finish", "launcher", "script"]

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 900.0
LINGER_S = 20.0
PR_SET_CHILD_SUBREAPER = 36


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The variables of a measured process: the caller's without what would change it, and what all of them have."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "BENCH_", "PYTHON"))}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", **extra}


def compile_ours() -> None:
    """Compile otel-ml, as pip does for what it installs: a measured process writes no bytecode."""
    compileall.compile_dir(ROOT / "otel_ml", quiet=1)


def script(workload: str) -> Path:
    """Where a workload's script is."""
    return ROOT / "tests" / "bench" / "workloads" / f"{workload}.py"


def launcher() -> Path:
    """The `otel-ml` command of this interpreter's environment."""
    return Path(sys.executable).with_name("otel-ml")


def adopt() -> None:
    """Make this process the parent of what its children leave behind."""
    if sys.platform != "linux":
        message = "tests.bench measures through /proc and needs Linux"
        raise SystemExit(message)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@dataclass(frozen=True)
class Ended:
    """What a process, and all that it started, used until the last of them was gone."""

    code: int
    begun_ns: int
    ended_ns: int
    """When the process itself was gone."""
    cpu_s: float
    written: int
    lingered: int
    """How many processes it left behind."""


def finish(
    command: Sequence[str], variables: Mapping[str, str], folder: Path, log: Path, spared: Collection[int] = ()
) -> Ended:
    """Run a command to its end, and all that it started; where that is interrupted, kill them. Spares other children.

    It takes `adopt()` to find what the command leaves behind.
    """
    with log.open("wb") as output:
        begun = time.perf_counter_ns()
        process = subprocess.Popen(
            command, cwd=folder, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        code, cpu_s, written = _reap(process.pid, TIMEOUT_S)
        ended = time.perf_counter_ns()
        process.returncode = code
        lingered = 0
        while orphans := _children(os.getpid()).difference(spared):
            for pid in orphans:
                _, more_cpu_s, more_written = _reap(pid, LINGER_S)
                cpu_s, written, lingered = cpu_s + more_cpu_s, written + more_written, lingered + 1
    except BaseException:
        _kill(spared)
        raise
    return Ended(code, begun, ended, cpu_s, written, lingered)


def _kill(spared: Collection[int]) -> None:
    while left := _children(os.getpid()).difference(spared):
        for pid in left:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _children(parent: int) -> set[int]:
    return {pid for pid, fields in stats().items() if int(fields[1]) == parent}


def _reap(pid: int, patience_s: float) -> tuple[int, float, int]:
    """Wait for a child: its exit code, the CPU seconds and the bytes written by it and by what it reaped."""
    timer = threading.Timer(patience_s, os.kill, (pid, signal.SIGKILL))
    timer.start()
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    finally:
        timer.cancel()
    io = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    _, status, usage = os.wait4(pid, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, int(io["wchar"])
