"""Real backends for the tests: where their programs are, ports for them, and one kept running for a while."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.launching import environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PATIENCE_S = 60


def located(name: str) -> str | None:
    """Where this backend's program is."""
    folders = [os.environ.get("OTEL_ML_BACKENDS", ""), os.environ.get("PATH", "")]
    return shutil.which(name, path=os.pathsep.join(filter(None, folders)))


def backend(name: str) -> str:
    """Where this backend's program is; the test is skipped where there is none."""
    found = located(name)
    if found is None:
        pytest.skip(f"needs {name}, in the folder that OTEL_ML_BACKENDS names or on PATH; see CONTRIBUTING.md")
    return found


def ports(count: int) -> list[str]:
    """Ports that nothing listens on, all different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [str(probe.getsockname()[1]) for probe in probes]


def until(ready: Callable[[], Any], process: subprocess.Popen[str], log: Path) -> Any:
    """What `ready()` answers, as soon as that is something; OSErrors mean not yet."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            answer = ready()
            if answer:
                return answer
        time.sleep(0.05)
    pytest.fail(f"it did not come; the last words were {log.read_text(encoding='utf-8')[-2000:]}")


def _answers(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        return True


@contextmanager
def started(command: list[str], folder: Path, port: str, **env: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A backend that listens on its port; ended, in order, on the way out."""
    log = folder / "said.txt"
    with (
        log.open("w", encoding="utf-8") as said,
        subprocess.Popen(command, cwd=folder, env=environment(**env), stdout=said, stderr=said, text=True) as process,
    ):
        try:
            until(lambda: _answers(int(port)), process, log)
            yield process, log
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
