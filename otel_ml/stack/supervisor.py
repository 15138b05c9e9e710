"""The process that keeps the programs of a stack alive, and takes them with it when it goes.

Started by `otel-ml stack up` in a session of its own: `python -m otel_ml.stack.supervisor FOLDER`. It holds
FOLDER/lock while it lives, writes FOLDER/state.json at each change (on a full disk, once it can), starts a program
that ended again (after 1 s, then twice as long each time, 30 s at most) and ends them all at SIGTERM. Each program is
told by the kernel when the supervisor dies (Linux), so that not even SIGKILL leaves an orphan.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from otel_ml.core.parent import tie
from otel_ml.stack.programs import NAMES, Plan
from otel_ml.store.schema import boot_and_start

__all__ = ["LOCK", "PLAN", "STATE", "log_of", "main"]

LOCK, PLAN, STATE = "lock", "plan.json", "state.json"

_GRACE_S = 10.0
_LONGEST_WAIT_S = 30.0
_CALM_S = 60.0  # a program that lived this long starts again without a wait
_LOOK_S = 0.25
_LOG_BYTES = 32 << 20


def log_of(folder: Path, name: str) -> Path:
    """Where a program's own words go."""
    return folder / "logs" / f"{name}.log"


@dataclass
class _Kept:
    """One program and what became of it."""

    name: str
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    restarts: int = -1
    wait_s: float = 0.0
    due: float = 0.0
    exit_code: int | None = None

    def told(self) -> dict[str, Any]:
        pid = self.process.pid if self.process is not None else None
        return {
            "pid": pid,
            "start": boot_and_start(pid) if pid is not None else None,
            "restarts": max(0, self.restarts),
            "exit_code": self.exit_code,
        }


class Supervisor:
    """Starts what the plan says and keeps it so until `stop()`."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._kept = [_Kept(name) for name in NAMES]
        self._environment = plan.environment(os.environ)
        self._stopping = False
        self._untold = False  # the state file is not what is
        self._die_with_us = tie(signal.SIGTERM)

    def stop(self, *_: object) -> None:
        """End all of them, soon."""
        self._stopping = True

    def run(self) -> None:
        """Until `stop()`."""
        try:
            while not self._stopping:
                changed = [self._look_after(kept) for kept in self._kept]
                if any(changed) or self._untold:
                    self._tell()
                time.sleep(_LOOK_S)
        finally:
            self._end()

    def _look_after(self, kept: _Kept) -> bool:
        """Whether anything about it changed."""
        now = time.monotonic()
        if kept.process is not None and kept.process.poll() is not None:
            kept.exit_code, kept.process = kept.process.returncode, None
            kept.wait_s = 1.0 if now - kept.started > _CALM_S else min(_LONGEST_WAIT_S, 2 * kept.wait_s or 1.0)
            kept.due = now + kept.wait_s
            return True
        if kept.process is None and now >= kept.due:
            self._start(kept)
            return True
        _trim(log_of(self._plan.folder, kept.name))
        return False

    def _start(self, kept: _Kept) -> None:
        try:
            with log_of(self._plan.folder, kept.name).open("ab") as said:
                kept.process = subprocess.Popen(  # noqa: S603 - the binaries that `up` found
                    self._plan.command(kept.name), cwd=self._plan.folder, env=self._environment,
                    stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                    preexec_fn=self._die_with_us,  # noqa: PLW1509 - this process has one thread
                )  # fmt: skip
        except OSError as error:
            _say(f"{kept.name} is not started: {error}")
            kept.due = time.monotonic() + _LONGEST_WAIT_S
        kept.started = time.monotonic()
        kept.restarts += 1

    def _tell(self) -> None:
        """Write the state file; where the disk takes nothing, again at the next look, and the programs go on."""
        state = {
            "supervisor": {"pid": os.getpid(), "start": boot_and_start(os.getpid())},
            "programs": {kept.name: kept.told() for kept in self._kept},
        }
        path = self._plan.folder / STATE
        fresh = path.with_suffix(".new")
        try:
            fresh.write_text(json.dumps(state), encoding="utf-8")
            fresh.replace(path)
        except OSError as error:
            if not self._untold:
                _say(f"{path} cannot be written: {error}")
            self._untold = True
        else:
            self._untold = False

    def _end(self) -> None:
        """The Collector first: it hands on what it holds while the others still take it."""
        deadline = time.monotonic() + _GRACE_S
        for kept in self._kept:
            if kept.process is not None:
                kept.process.terminate()
            if kept.name == "collector":
                _wait(kept, min(deadline, time.monotonic() + _GRACE_S / 2))
        for kept in self._kept:
            if not _wait(kept, deadline) and kept.process is not None:
                kept.process.kill()
                kept.process.wait()
            kept.process = None
        self._tell()


def _say(text: str) -> None:
    """A line into our log, if it takes one."""
    with contextlib.suppress(OSError):
        print(f"otel-ml: {text}", file=sys.stderr, flush=True)  # noqa: T201 - its log


def _wait(kept: _Kept, deadline: float) -> bool:
    if kept.process is None:
        return True
    try:
        kept.exit_code = kept.process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def _trim(log: Path) -> None:
    """A log beyond its size becomes the one before; the program goes on writing at the new beginning."""
    with contextlib.suppress(OSError):
        if log.stat().st_size > _LOG_BYTES:
            with log.open("rb") as old, log.with_suffix(".log.1").open("wb") as kept:
                while part := old.read(1 << 20):
                    kept.write(part)
            os.truncate(log, 0)


def _locked(folder: Path) -> IO[str] | None:
    """The lock, held until this process ends; None where another supervisor has it."""
    file = (folder / LOCK).open("a+", encoding="utf-8")
    for _ in range(20):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        time.sleep(0.1)  # who asks whether we run holds it for an instant
    file.close()
    return None


def main(folder: Path) -> int:
    """Supervise the stack of `folder` until SIGTERM; 1 where another already does."""
    os.umask(0o077)  # for the programs' files as well
    lock = _locked(folder)
    if lock is None:
        print("otel-ml: another supervisor has this folder", file=sys.stderr)  # noqa: T201 - its log
        return 1
    plan = Plan.from_json(folder, json.loads((folder / PLAN).read_text(encoding="utf-8")))
    supervisor = Supervisor(plan)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, supervisor.stop)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with lock:
        supervisor.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
