"""A stack from outside: start it, end it, ask how it is."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from otel_ml.errors import CommandError
from otel_ml.stack.programs import NAMES, PORTS, PROGRAMS, Plan, shipped
from otel_ml.stack.supervisor import LOCK, PLAN, STATE, log_of
from otel_ml.store.schema import boot_and_start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

__all__ = ["Seen", "checked_address", "down", "free_ports", "plan_of", "running", "seen", "taken", "up"]

State = Literal["ready", "starting", "restarting", "stopped"]

_UP = "up.lock"  # held by `up` while it is at work
_SECRETS = "/etc/alertmanager/secrets"  # as the shipped configuration has it
_DOWN_S = 20.0
_ASK_S = 2.0
_LAST_WORDS = 5
_TOO_OFTEN = 3  # starts that failed while coming up, until that is final


@dataclass(frozen=True)
class Seen:
    """How one program is, just now."""

    name: str
    url: str | None
    state: State
    restarts: int = 0
    exit_code: int | None = None


def running(folder: Path) -> bool:
    """Whether a supervisor has this folder."""
    try:
        with (folder / LOCK).open("r", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def plan_of(folder: Path) -> Plan | None:
    """What the folder's stack was started as; None where there never was one."""
    plain = _read(folder / PLAN)
    return Plan.from_json(folder, plain) if plain else None


def _read(path: Path) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        message = f"{path} cannot be read ({error}); remove it"
        raise CommandError(message, exit_code=1) from None
    return plain


def seen(folder: Path) -> list[Seen]:
    """How each program is; those that live are asked whether they are ready (2 s at most each)."""
    plan = plan_of(folder)
    if plan is None or not running(folder):
        return [Seen(name, None, "stopped") for name in NAMES]
    told = _read(folder / STATE).get("programs", {})
    found = []
    for program in PROGRAMS:
        known = told.get(program.name, {})
        state: State = "restarting" if known.get("restarts") is not None else "starting"
        if known.get("pid") is not None:
            state = "ready" if _answers(plan.ready_url(program)) else "starting"
        url = plan.url(program.port)
        found.append(Seen(program.name, url, state, known.get("restarts", 0), known.get("exit_code")))
    return found


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback needs no proxy
    try:
        with opener.open(url, timeout=_ASK_S) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


# --- ports ------------------------------------------------------------------------------------


def taken(listen: str, ports: Mapping[str, int]) -> dict[str, int]:
    """Those of `ports` that something listens on already."""
    found = {}
    for name, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((listen, port))
            except OSError:
                found[name] = port
    return found


def free_ports(listen: str, fixed: Mapping[str, int]) -> dict[str, int]:
    """A port for each name: `fixed` where given, else one that is free now."""
    with contextlib.ExitStack() as held:
        ports = dict(fixed)
        for name in PORTS:
            if name not in ports:
                probe = held.enter_context(socket.socket())
                probe.bind((listen, 0))
                ports[name] = int(probe.getsockname()[1])
    return ports


def checked_address(listen: str) -> str:
    """The address to listen on.

    Raises:
        CommandError: it is no IPv4 address of this machine.
    """
    try:
        ipaddress.IPv4Address(listen)
        with socket.socket() as probe:
            probe.bind((listen, 0))
    except (ValueError, OSError):
        message = f"OTEL_ML_LISTEN={listen}: need an IPv4 address of this machine, such as 127.0.0.1"
        raise CommandError(message) from None
    return listen


# --- up ---------------------------------------------------------------------------------------


def up(plan: Plan, source: Path | None, timeout_s: float) -> Iterator[list[Seen]]:
    """Start the stack; yields how it comes up, a few times a second, until all of it is ready.

    Args:
        plan: what to start, and where.
        source: a folder of configurations; by default those that shipped.
        timeout_s: how long to wait for all to be ready.

    Raises:
        CommandError: a program does not start, or not all are ready in time; nothing is left running.
    """
    with _alone(plan.folder):
        yield from _up(plan, source or shipped(), timeout_s)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second `up` of the same folder away while one is at work."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        file = (folder / _UP).open("a", encoding="utf-8")
    except OSError as error:
        message = f"{folder} cannot be used ({error.strerror}); set OTEL_ML_STACK_DIR to another folder"
        raise CommandError(message, exit_code=1) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"another `otel-ml stack up` is at work in {folder}"
            raise CommandError(message, exit_code=1) from None
        if running(folder):
            message = f"a stack runs in {folder} already"
            raise CommandError(message, exit_code=1)
        yield


def _up(plan: Plan, source: Path, timeout_s: float) -> Iterator[list[Seen]]:
    _lay_out(plan, source)
    with log_of(plan.folder, "supervisor").open("ab") as said:
        supervisor = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-m", "otel_ml.stack.supervisor", str(plan.folder)],
            stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + timeout_s
        while True:
            time.sleep(0.2)
            if supervisor.poll() is not None:
                _fail(plan.folder, "supervisor", f"ended with code {supervisor.returncode}")
            now = seen(plan.folder) if running(plan.folder) else []
            yield now
            for one in now:
                if one.restarts >= _TOO_OFTEN:
                    _fail(plan.folder, one.name, f"does not start (exit code {one.exit_code})")
            if now and all(one.state == "ready" for one in now):
                return
            if time.monotonic() > deadline:
                late = next((one.name for one in now if one.state != "ready"), "supervisor")
                _fail(plan.folder, late, f"is not ready after {timeout_s:g} s")
    except BaseException:
        supervisor.terminate()
        supervisor.wait()  # it ends its programs first, within its own bound
        down(plan.folder)
        raise


def _lay_out(plan: Plan, source: Path) -> None:
    """Make the folder, for this user alone, with a copy of the configurations and our targets in it."""
    for name in ("logs", "secrets", "data", *(f"data/{name}" for name in NAMES)):
        (plan.folder / name).mkdir(mode=0o700, exist_ok=True)
    (plan.folder / "secrets").chmod(0o700)
    if plan.config.exists():
        shutil.rmtree(plan.config)
    shutil.copytree(source, plan.config, ignore=shutil.ignore_patterns("__pycache__"))
    for name, targets in plan.targets().items():
        path = plan.config / "prometheus" / "targets" / f"{name}.yaml"
        path.write_text(json.dumps(targets), encoding="utf-8")
    # Alertmanager reads no variable: the folder of its addresses is written into its copy.
    path = plan.config / "alertmanager" / "alertmanager.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(_SECRETS, str(plan.folder / "secrets")), encoding="utf-8")
    (plan.folder / STATE).unlink(missing_ok=True)
    (plan.folder / PLAN).write_text(json.dumps(plan.to_json(), indent=2), encoding="utf-8")


def _fail(folder: Path, name: str, how: str) -> None:
    log = log_of(folder, name)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_WORDS:] if log.exists() else []
    message = "\n".join([f"{name} {how}; its last words (all of them: {log}):", *(f"  {line}" for line in lines)])
    raise CommandError(message, exit_code=1)


# --- down -------------------------------------------------------------------------------------


def down(folder: Path) -> bool:
    """End the stack and whatever a crashed one left behind; whether there was anything to end.

    Raises:
        CommandError: something does not end.
    """
    if running(folder):  # a supervisor that has just begun tells in a moment who it is
        _until((folder / STATE).exists, _DOWN_S / 4)
    state = _read(folder / STATE)
    known = [state.get("supervisor", {}), *state.get("programs", {}).values()]
    alive = [one for one in known if _lives(one)]
    supervisor = state.get("supervisor", {})
    if "pid" in supervisor and running(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(supervisor["pid"], signal.SIGTERM)
        _until(lambda: not running(folder), _DOWN_S)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for one in filter(_lives, known):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one["pid"], number)
        _until(lambda: not any(map(_lives, known)), _DOWN_S / 4)
    rest = [one for one in known if _lives(one)]
    if rest:
        message = f"processes {', '.join(str(one['pid']) for one in rest)} do not end; type: kill -9 with these numbers"
        raise CommandError(message, exit_code=1)
    return bool(alive)


def _lives(one: Mapping[str, Any]) -> bool:
    """Whether the process is still that one, and not a later one with its number."""
    pid = one.get("pid")
    if pid is None:
        return False
    start = boot_and_start(pid)
    return start is not None and start == one.get("start")


def _until(done: Callable[[], bool], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not done() and time.monotonic() < deadline:
        time.sleep(0.05)
