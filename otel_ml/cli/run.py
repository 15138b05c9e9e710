"""Run a program, unchanged, and see what its training did.

    otel-ml run train.py --epochs 3        a script, with this Python
    otel-ml run -m package.train           a module
    otel-ml run torchrun train.py          any command; the Pythons it starts are seen

The program's output, exit code and signals are its own; the summary goes to stderr when
it ends. We stay its parent in the same process group: what the terminal sends (Ctrl-C,
Ctrl-Z, a hang-up) reaches it directly, what is sent to us alone is passed on, and we end
the way it ended. Where we are killed, so is the program, as it would have been in our place.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

from otel_ml.configuration import apply_file
from otel_ml.core.identity import hand_down, resolve
from otel_ml.core.parent import tie
from otel_ml.environment import choose_distro
from otel_ml.errors import CommandError, say
from otel_ml.settings import INTERNAL_LAUNCHER, Settings, in_launcher

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, MutableMapping, Sequence

__all__ = ["instrument", "prepare_parser", "run"]

_NOT_FOUND = 127
_NOT_EXECUTABLE = 126
_SIGNALED = 128

# Sent to us alone, these are meant for the program.
_FORWARDED = (
    signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
    signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGXCPU, signal.SIGTSTP, signal.SIGCONT,
)  # fmt: skip
# A timer that was set before `exec otel-ml run …` is ours alone: nobody but we can tell the program.
_TIMERS = (signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF)
# Python ignores these for itself; the program is to start with what it would have had.
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Ours come before the program; from its name on, every word is the program's."""
    parser.usage = "otel-ml run [-v] [--name NAME] [--dir DIR] [--] script.py | -m module | command  [arguments…]"
    parser.add_argument("-v", "--verbose", action="store_true", help="say what was set up, and how")
    parser.add_argument("--name", help="the run's name (OTEL_ML_RUN_NAME)")
    parser.add_argument("--dir", help="the folder that holds the runs (OTEL_ML_DIR)")
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, help="run a module, as `python -m` does")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="a script, or any command, with its arguments")


def run(args: argparse.Namespace) -> int:
    """Run the program to its end; its exit code, unless a signal ended it: then the same signal ends us."""
    chosen = {"OTEL_ML_RUN_NAME": args.name, "OTEL_ML_DIR": args.dir, "OTEL_ML_VERBOSE": "1" if args.verbose else None}
    environ = {**os.environ, **{name: value for name, value in chosen.items() if value is not None}}
    apply_file(environ)
    settings = Settings.from_env(environ)
    command = _command(args)
    executable = _executable(command)
    if not settings.enabled:
        _replace(executable, command, environ)

    outermost = not in_launcher(environ)
    identity = resolve(environ, command)
    hand_down(environ, identity)
    environ["OTEL_ML_DIR"] = str(settings.directory)  # the program may look from another folder
    instrument(environ)
    if settings.verbose:
        say(f"run {identity.run_id}, data in {settings.directory}")

    child = _Child(executable, command, environ)
    status = child.wait()
    if outermost and settings.store:
        _tell(settings.directory, identity.run_id, child.pid, status, summary=settings.summary)
    return _end_like(status)


def instrument(environ: MutableMapping[str, str]) -> None:
    """Make every Python that is started with `environ` set itself up with our distro.

    OTel's own start-up folder goes first on PYTHONPATH, as `opentelemetry-instrument` puts
    it there; unlike there, the current folder is not added, so `sys.path[0]` and what can
    be imported stay as they are.
    """
    choose_distro(environ)
    environ[INTERNAL_LAUNCHER] = "1"
    spec = find_spec("opentelemetry.instrumentation.auto_instrumentation")
    if spec is None or spec.origin is None:
        message = "opentelemetry-instrumentation is not installed; type: pip install opentelemetry-instrumentation"
        raise CommandError(message)
    start_up = str(Path(spec.origin).parent)
    before = environ.get("PYTHONPATH", "")
    kept = [entry for entry in before.split(os.pathsep) if entry != start_up] if before else []
    environ["PYTHONPATH"] = os.pathsep.join([start_up, *kept])


# --- the command ---------------------------------------------------------------------------


def _command(args: argparse.Namespace) -> list[str]:
    """The whole command line of the program."""
    words: list[str] = args.command
    if args.module is not None:
        if not args.module:
            message = "-m needs a module, as in: otel-ml run -m package.train"
            raise CommandError(message)
        return [sys.executable, "-m", *args.module, *words]
    if words[:1] == ["--"]:
        words = words[1:]
    if not words:
        message = "what is to be run? For example: otel-ml run train.py"
        raise CommandError(message)
    if words[0].endswith(".py") and Path(words[0]).is_file():
        return [sys.executable, *words]
    return words


def _executable(command: Sequence[str]) -> str:
    """The file to execute, as a shell would find it."""
    found = which(command[0])
    if found is not None:
        return found
    if os.sep in command[0] and Path(command[0]).is_file():
        message = f"{command[0]}: not executable; type: chmod +x {command[0]}"
        raise CommandError(message, exit_code=_NOT_EXECUTABLE)
    kind = "no such script" if command[0].endswith(".py") else "no such command"
    message = f"{command[0]}: {kind} in {Path.cwd()} or on PATH"
    raise CommandError(message, exit_code=_NOT_FOUND)


def _refused(executable: str, error: OSError) -> CommandError:
    advice = "; is its first line missing (#!/bin/sh)?" if error.errno == errno.ENOEXEC else ""
    return CommandError(f"{executable}: {error.strerror}{advice}", exit_code=_NOT_EXECUTABLE)


def _replace(executable: str, command: Sequence[str], environ: Mapping[str, str]) -> None:
    """Become the program, as if we had never been there; does not return."""
    for number in _IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execve(executable, list(command), dict(environ))
    except OSError as error:
        raise _refused(executable, error) from None


# --- the child -----------------------------------------------------------------------------


class _Child:
    """The program, running. Signals are blocked before it starts, so none is lost, and are read one by one.

    No handler is installed: a blocked signal waits until it is read, and reading it tells
    whether the kernel sent it (the terminal did, and so to the program as well) or a process.
    """

    def __init__(self, executable: str, command: Sequence[str], environ: Mapping[str, str]) -> None:
        # What was ignored before us (nohup, a shell's `&`) stays ignored, for the program too.
        self._watched = {number for number in _FORWARDED if signal.getsignal(number) != signal.SIG_IGN}
        self._paused = False
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {*self._watched, signal.SIGCHLD})
        try:
            self.pid = _spawn(executable, list(command), environ, before)
        except OSError as error:
            raise _refused(executable, error) from None

    def wait(self) -> int:
        """Wait for the end, passing signals on; the status, as `os.waitpid` gives it."""
        while True:
            number, from_kernel = _next_signal({*self._watched, signal.SIGCHLD})
            if number == signal.SIGCHLD:
                status = self._reap()
                if status is not None:
                    return status
            elif number == signal.SIGTSTP:
                self._pause(tell=not from_kernel)
            elif number == signal.SIGCONT:
                self._resume()
            elif not from_kernel or number in _TIMERS:
                os.kill(self.pid, number)

    def _pause(self, *, tell: bool) -> None:
        """Stop as the program does; the kernel decides whether, for it lets nobody stop whom no shell would wake."""
        if tell:
            os.kill(self.pid, signal.SIGTSTP)
            self._paused = True
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})

    def _resume(self) -> None:
        """Wake the program, unless whoever woke us (`fg`) woke it, too."""
        if self._paused or _is_stopped(self.pid):
            os.kill(self.pid, signal.SIGCONT)
        self._paused = False

    def _reap(self) -> int | None:
        """The program's status if it has ended. As process 1 of a container we reap strangers as well."""
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == self.pid:
                return status
            if pid == 0:
                return None


def _spawn(executable: str, command: list[str], environ: Mapping[str, str], mask: Iterable[int]) -> int:
    """Start the program with the signals that it would have had, tied to us where that can be; its process."""
    die_with_us = tie(signal.SIGKILL)
    if die_with_us is None:
        return os.posix_spawn(executable, command, environ, setsigmask=mask, setsigdef=_IGNORED_BY_PYTHON)
    refusal, answer = os.pipe()  # closed by exec
    pid = os.fork()
    if pid == 0:
        try:
            die_with_us()
            for number in (*_IGNORED_BY_PYTHON, signal.SIGINT):
                if number in _IGNORED_BY_PYTHON or signal.getsignal(number) is signal.default_int_handler:
                    signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.execve(executable, command, environ)
        except OSError as error:
            os.write(answer, str(error.errno).encode())
        finally:
            os._exit(_NOT_EXECUTABLE)
    os.close(answer)
    with os.fdopen(refusal, "rb") as stream:
        said = stream.read()
    if said:
        os.waitpid(pid, 0)
        raise OSError(int(said), os.strerror(int(said)))
    return pid


def _is_stopped(pid: int) -> bool:
    """Whether this child is stopped at the moment; the answer can be had again."""
    if not hasattr(os, "waitid"):  # macOS, before Python 3.13
        return False
    return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None


def _next_signal(watched: set[signal.Signals]) -> tuple[int, bool]:
    """The next of these signals, and whether it came from the kernel, as Ctrl-C does."""
    if sys.platform != "darwin":
        info = signal.sigwaitinfo(watched)
        return info.si_signo, info.si_code > 0
    number = signal.sigwait(watched)  # macOS does not say who sent it
    return number, number in (signal.SIGINT, signal.SIGQUIT) and _in_foreground()


def _in_foreground() -> bool:
    try:
        with Path("/dev/tty").open("rb") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


# --- its end ---------------------------------------------------------------------------------


def _tell(directory: Path, run_id: str, pid: int, status: int, *, summary: bool) -> None:
    """Note the run's end and print its summary; whatever goes wrong costs one line and never the exit code."""
    # A Ctrl-C that ended the program is over (ignoring it forgets it); another one ends the summary.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        from otel_ml.store.ending import Ending, write_ending
        from otel_ml.store.schema import run_folder

        killed = os.WIFSIGNALED(status)
        ending = Ending(
            exit_code=None if killed else os.WEXITSTATUS(status),
            signal=os.WTERMSIG(status) if killed else None,
            at_unix_ns=time.time_ns(),
            pid=pid,
        )
        write_ending(run_folder(directory, run_id), ending)
        if summary and sys.stderr is not None:
            from otel_ml.overview import print_run

            print_run(directory, run_id, ending=ending, file=sys.stderr)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the program's exit code is at stake
        say(f"no summary: {type(error).__name__}: {error}")


def _end_like(status: int) -> int:
    """The program's exit code; or, where a signal ended it, our own end by that signal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end is decided
    if not os.WIFSIGNALED(status):
        return os.WEXITSTATUS(status)
    number = os.WTERMSIG(status)
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()
    _leave_no_core()
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    return _SIGNALED + number  # process 1 of a container cannot kill itself


def _leave_no_core() -> None:
    """The program has left its core dump, if any; ours would say nothing."""
    import resource

    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
