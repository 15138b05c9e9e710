"""`otel-ml stack` starts real programs, says how they are, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from otel_ml.stack.programs import NAMES, PORTS, Plan, find
from otel_ml.stack.supervisor import PLAN, STATE
from tests.e2e.backends import backend
from tests.e2e.launching import BIN, environment
from tests.e2e.stack import BINARIES, otel_ml, soon

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A stack's folder, whose stack is ended whatever the test did."""
    for name in BINARIES:
        backend(name)
    yield tmp_path / "stack"
    otel_ml("stack", "down", "--dir", str(tmp_path / "stack"))


def pids(folder: Path) -> list[int]:
    """The processes of the stack."""
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return [state["supervisor"]["pid"], *(program["pid"] for program in state["programs"].values())]


def lives(pid: int) -> bool:
    """Whether the process is there, and no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except OSError:
        return False
    return stat[stat.rindex(")") + 2] not in "ZX"


def coming_up(folder: Path) -> subprocess.Popen[str]:
    """`otel-ml stack up`, as it goes on."""
    command = [str(BIN / "otel-ml"), "stack", "up", "--free-ports", "--dir", str(folder)]
    known = environment(**{name: value for name, value in os.environ.items() if name == "OTEL_ML_BACKENDS"})
    return subprocess.Popen(command, env=known, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_up_and_down(folder: Path) -> None:
    """`up` returns once all is ready, says where in JSON, is content when it runs already; `down` ends all of it."""
    where = ("--dir", str(folder))
    up = otel_ml("stack", "up", "--free-ports", "--json", *where)
    assert up.returncode == 0, up.stderr
    told = json.loads(up.stdout)
    assert list(told) == list(NAMES)
    assert {(tuple(one), one["state"]) for one in told.values()} == {(("url", "state"), "ready")}
    status = otel_ml("stack", "status", "--json", *where)
    assert (status.returncode, json.loads(status.stdout)) == (0, told)
    again = otel_ml("stack", "up", *where)
    assert (again.returncode, "runs already" in again.stderr) == (0, True)
    other = otel_ml("stack", "up", "--port", "loki=3999", *where)
    assert (other.returncode, "otel-ml stack down" in other.stderr) == (1, True)
    lines = otel_ml("stack", "logs", "prometheus", "-n", "1", *where).stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["prometheus"]
    assert oct(folder.stat().st_mode & 0o777) == "0o700"

    with urllib.request.urlopen(f"{told['jaeger']['url']}/api/services", timeout=30) as answer:
        assert answer.status == 200  # what a backend does when it was asked must not delay its end
    running = pids(folder)
    assert all(map(lives, running))
    down = otel_ml("stack", "down", *where)
    assert (down.returncode, down.stderr) == (0, "ended\n")
    assert [pid for pid in running if lives(pid)] == []
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    assert {name: one["exit_code"] for name, one in state["programs"].items()} == dict.fromkeys(NAMES, 0)
    after = otel_ml("stack", "status", "--json", *where)
    assert (after.returncode, json.loads(after.stdout)) == (1, {n: {"url": None, "state": "stopped"} for n in NAMES})
    assert otel_ml("stack", "down", *where).stderr == "nothing runs here\n"


@pytest.mark.slow
def test_crashes(folder: Path) -> None:
    """A program that dies is started again; when the supervisor is killed, nothing of the stack outlives it."""
    where = ("--dir", str(folder))
    assert otel_ml("stack", "up", "--free-ports", *where).returncode == 0
    before = pids(folder)
    os.kill(before[1], signal.SIGKILL)
    assert soon(lambda: before[1] not in pids(folder) and None not in pids(folder))
    assert soon(lambda: otel_ml("stack", "status", *where).returncode == 0)
    collector = otel_ml("stack", "status", *where).stdout.splitlines()[0].split("\t")
    assert (collector[0], collector[2:]) == ("collector", ["ready", "1"])

    running = pids(folder)
    os.kill(running[0], signal.SIGKILL)
    assert soon(lambda: not any(map(lives, running)))
    assert otel_ml("stack", "status", *where).returncode == 1


@pytest.mark.slow
def test_interrupted(folder: Path) -> None:
    """Ctrl-C while it comes up leaves nothing."""
    with coming_up(folder) as up:
        assert soon((folder / "logs" / "supervisor.log").exists)
        up.send_signal(signal.SIGINT)
        up.communicate(timeout=60)
    assert up.returncode == 130
    assert not any(str(folder).encode() in path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline"))


@pytest.mark.slow
def test_two_at_once(folder: Path) -> None:
    """Of two that start at once, one does and the other says so."""
    with coming_up(folder) as one, coming_up(folder) as other:
        said = {up.communicate(timeout=60)[1]: up.returncode for up in (one, other)}
    assert sorted(said.values()) == [0, 1]
    (why,) = (text for text, code in said.items() if code == 1)
    assert re.search(r"another `otel-ml stack up` is at work in|a stack runs in .* already", why)


def test_no_programs(tmp_path: Path) -> None:
    """Without the programs, `up` names each that is missing and where to get it, and makes nothing."""
    done = otel_ml("stack", "up", "--dir", str(tmp_path / "stack"), OTEL_ML_BACKENDS=str(tmp_path), PATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "otel-ml: these programs are neither in OTEL_ML_BACKENDS nor on PATH:"
    assert [line.split("\t")[0].strip() for line in done.stderr.splitlines()[1:6]] == [
        "otelcol-contrib or otelcol", "prometheus", "alertmanager", "jaeger", "loki",
    ]  # fmt: skip
    assert all("\thttps://" in line for line in done.stderr.splitlines()[1:6])
    assert not (tmp_path / "stack").exists()


def test_port_taken(folder: Path) -> None:
    """A port that something listens on already is named before anything starts, with what to type."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
        done = otel_ml("stack", "up", "--dir", str(folder), "--free-ports", f"--port=loki={number}")
    assert done.returncode == 1
    assert f"the port of loki ({number})" in done.stderr
    assert "otel-ml stack up --free-ports" in done.stderr
    assert not folder.exists()


@pytest.mark.parametrize(
    ("words", "env", "said"),
    [
        (["up", "--port", "lokki=1"], {}, "need NAME=PORT with a name of collector,"),
        (["up", "--port", "loki=0"], {}, "need NAME=PORT"),
        (["up"], {"OTEL_ML_LISTEN": "everywhere"}, "OTEL_ML_LISTEN=everywhere: need an IPv4 address"),
        (["up", "--config", "/nowhere"], {}, "there is no collector.yaml in it"),
        (["up", "--free-ports", "--port", "loki=4000", "--port", "jaeger=4000"], {}, "port 4000 is asked for twice"),
        (["logs"], {}, "there is no log in"),
    ],
)
def test_refusals(words: list[str], env: dict[str, str], said: str, folder: Path) -> None:
    """What cannot be is told in words, and nothing is started."""
    done = otel_ml("stack", *words, "--dir", str(folder), **env)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert not folder.exists()


@pytest.fixture
def sleepers(tmp_path: Path) -> Path:
    """A folder of programs by the backends' names, which are never ready and do nothing."""
    folder = tmp_path / "sleepers"
    folder.mkdir()
    for name in BINARIES:
        (folder / name).write_text("#!/bin/sh\nexec sleep 600\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


def test_private(sleepers: Path, tmp_path: Path) -> None:
    """Whatever the modes of the folder and of its secrets were, `up` makes them its user's alone."""
    folder = tmp_path / "stack"
    for path in (folder, folder / "secrets"):
        path.mkdir()
        path.chmod(0o755)
    up = ("stack", "up", "--free-ports", "--timeout", "0", "--dir", str(folder))
    done = otel_ml(*up, OTEL_ML_BACKENDS=str(sleepers))
    assert (done.returncode, "is not ready after 0 s" in done.stderr) == (1, True)
    assert {oct(path.stat().st_mode & 0o777) for path in (folder, folder / "secrets")} == {"0o700"}


def children(pid: int) -> set[int]:
    """The processes that a process has started and that live."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            stat = path.read_text(encoding="ascii", errors="replace")
            state, parent = stat[stat.rindex(")") + 2 :].split()[:2]
            if int(parent) == pid and state not in "ZX":
                found.add(int(path.parent.name))
    return found


def test_full_disk(sleepers: Path, tmp_path: Path) -> None:
    """While no file takes a byte, the supervisor keeps its programs; later it tells of them, and it ends in order."""
    folder = tmp_path / "stack"
    (folder / "logs").mkdir(parents=True)
    plan = Plan(folder, "127.0.0.1", PORTS, find(sleepers, ""))
    (folder / PLAN).write_text(json.dumps(plan.to_json()), encoding="utf-8")
    command = [sys.executable, "-m", "otel_ml.stack.supervisor", str(folder)]
    log = (folder / "logs" / "supervisor.log").open("wb")
    with log, subprocess.Popen(command, stdout=log, stderr=log) as supervisor:
        try:
            assert soon((folder / STATE).exists)
            _, before, *_ = pids(folder)
            resource.prlimit(supervisor.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            os.kill(before, signal.SIGKILL)
            assert soon(lambda: before not in children(supervisor.pid) and len(children(supervisor.pid)) == len(NAMES))
            assert pids(folder)[1] == before
            resource.prlimit(supervisor.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert soon(lambda: set(pids(folder)[1:]) == children(supervisor.pid))
            running = children(supervisor.pid)
            resource.prlimit(supervisor.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        finally:
            supervisor.terminate()
        assert supervisor.wait(60) == 0
    assert [pid for pid in running if lives(pid)] == []


@pytest.mark.slow
def test_does_not_start(folder: Path, tmp_path: Path) -> None:
    """A configuration that a program refuses is told with that program's last words, and the rest is ended."""
    from otel_ml.stack.programs import shipped

    config = tmp_path / "config"
    config.mkdir()
    for name in ("prometheus", "alertmanager", "jaeger", "loki", "collector.yaml"):
        (config / name).symlink_to(shipped() / name)
    (config / "collector.yaml").unlink()
    (config / "collector.yaml").write_text("receivers: {nothing: }\n", encoding="utf-8")
    done = otel_ml("stack", "up", "--free-ports", "--config", str(config), "--dir", str(folder))
    assert done.returncode == 1
    assert "collector does not start (exit code 1)" in done.stderr
    assert "nothing" in done.stderr
    assert [pid for pid in pids(folder) if pid is not None and lives(pid)] == []
