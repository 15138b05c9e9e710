"""`otel-ml run` changes nothing that the program prints, returns or is sent."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import IO

import pytest

LAUNCHER = [sys.executable, "-m", "otel_ml", "run"]

# Prints the name of every signal it gets and ends with 7 after USR2.
LISTENER = """
import signal, sys, time
def heard(number, frame):
    print(signal.Signals(number).name, flush=True)
for name in 'TERM HUP INT QUIT USR1 ALRM VTALRM PROF XCPU CONT'.split():
    signal.signal(getattr(signal, 'SIG' + name), heard)
signal.signal(signal.SIGUSR2, lambda *_: sys.exit(7))
print("ready", flush=True)
while True:
    time.sleep(0.05)  # a signal that another thread was given would not end a pause()
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """The environment without anything of OTel's, and a folder of this test's own for data."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "SLURM_", "TORCHELASTIC_"))}
    return clean | {"OTEL_ML_DIR": str(tmp_path / "runs")}


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A place for the program."""
    return tmp_path / "program.py"


def launch(*words: object, environ: dict[str, str], **options: object) -> subprocess.CompletedProcess[str]:
    """Run to the end under the launcher."""
    command = [*LAUNCHER, *map(str, words)]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload, no-any-return]


def start(*words: object, environ: dict[str, str]) -> subprocess.Popen[str]:
    """Start under the launcher and wait until the program says that it is ready."""
    command = [*LAUNCHER, *map(str, words)]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert line(process.stdout) == "ready"
    return process


def state(pid: int) -> str:
    """What the kernel says that a process does: `T` where it is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def line(stream: IO[str] | None) -> str:
    """The next line that the program prints."""
    assert stream is not None
    return stream.readline().strip()


# --- output, arguments, exit code --------------------------------------------------------


def test_as_without_us(script: Path, environ: dict[str, str]) -> None:
    """A script sees the same arguments, module, first import folder and stdin, and gives the same output and code."""
    script.write_text(
        "import sys\n"
        "folders = [p for p in sys.path if not p.endswith('auto_instrumentation')]\n"
        "print(sys.argv, sys.orig_argv, __name__, __file__, folders, sys.stdin.read())\n"
        "sys.exit(3)\n"
    )
    words = [str(script), "--name", "x", "-v", "--", "-m", "--dir=/y", "--help"]
    plain = subprocess.run(
        [sys.executable, *words], env=environ, input="données", capture_output=True, text=True, check=False
    )
    ours = launch(*words, environ=environ, input="données")
    assert (ours.returncode, ours.stdout) == (plain.returncode, plain.stdout)
    assert ours.returncode == 3


def test_exception(script: Path, environ: dict[str, str]) -> None:
    """An exception's traceback and exit code are the program's own."""
    script.write_text("def f():\n    raise ValueError('no data')\nf()\n")
    plain = subprocess.run([sys.executable, script], env=environ, capture_output=True, text=True, check=False)
    ours = launch(script, environ=environ)
    assert (ours.returncode, ours.stdout) == (1, "")
    assert plain.stderr in ours.stderr


@pytest.mark.parametrize("words", [[], ["--name", "x"], ["--", "y"], ["-v", "-m", "other"]])
def test_module(tmp_path: Path, environ: dict[str, str], words: list[str]) -> None:
    """`-m` runs a module as Python does, and every word behind it is the module's."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "train.py").write_text("import sys; print(sys.argv, sys.path[0], __package__)")
    command = ["-m", "package.train", *words]
    plain = subprocess.run(
        [sys.executable, *command], env=environ, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert launch(*command, environ=environ, cwd=tmp_path).stdout == plain.stdout


@pytest.mark.parametrize("before", [[], ["--"], ["-v", "--"], ["--name", "n", "--"]])
def test_any_command(before: list[str], environ: dict[str, str]) -> None:
    """Any command on PATH runs with its own words, whether or not `--` sets it apart."""
    done = launch(*before, "sh", "-c", 'echo "$0" "$@"; exit 5', "a", "-v", "--", "b", environ=environ)
    assert (done.returncode, done.stdout) == (5, "a -v -- b\n")


def test_executable_script_on_path(tmp_path: Path, environ: dict[str, str]) -> None:
    """A command that is called like a script but is none here is looked for on PATH."""
    tool = tmp_path / "tool.py"
    tool.write_text("#!/bin/sh\necho shell\n")
    tool.chmod(0o755)
    done = launch("tool.py", environ=environ | {"PATH": f"{tmp_path}:{environ['PATH']}"}, cwd="/")
    assert (done.returncode, done.stdout) == (0, "shell\n")


def test_what_cannot_be_run(tmp_path: Path, environ: dict[str, str]) -> None:
    """What cannot be run is told in one line, with the code that a shell would give."""
    (tmp_path / "text").write_text("no program")
    (tmp_path / "broken").write_text("no first line")
    (tmp_path / "broken").chmod(0o755)
    cases: tuple[list[str], ...] = (["no-such-tool"], ["none.py"], ["./text"], ["./broken"], ["-m"], [])
    found = [launch(*words, environ=environ, cwd=tmp_path) for words in cases]
    assert [(done.returncode, done.stderr) for done in found] == [
        (127, f"otel-ml: no-such-tool: no such command in {tmp_path} or on PATH\n"),
        (127, f"otel-ml: none.py: no such script in {tmp_path} or on PATH\n"),
        (126, "otel-ml: ./text: not executable; type: chmod +x ./text\n"),
        (126, "otel-ml: ./broken: Exec format error; is its first line missing (#!/bin/sh)?\n"),
        (2, "otel-ml: -m needs a module, as in: otel-ml run -m package.train\n"),
        (2, "otel-ml: what is to be run? For example: otel-ml run train.py\n"),
    ]


def test_open_files(tmp_path: Path, environ: dict[str, str]) -> None:
    """Files that the shell opened for the program reach it."""
    (tmp_path / "data").write_text("from file 7")
    command = f'exec 7<"{tmp_path}/data"; exec "$@"'
    done = subprocess.run(
        ["sh", "-c", command, "sh", *LAUNCHER, "sh", "-c", "cat <&7"],
        env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "from file 7"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(script: Path, environ: dict[str, str], closed: str) -> None:
    """Whatever streams a shell closed, the exit code is the program's and what remains open has its output alone."""
    script.write_text("import sys; print('out'); sys.exit(int(sys.argv[1]))")
    found = []
    for command in ([sys.executable], [*LAUNCHER, "-v"]):
        for code in (0, 3):
            done = subprocess.run(
                ["sh", "-c", f'"$@" {closed}', "sh", *command, script, str(code)],
                env=environ, capture_output=True, text=True, check=False,
            )  # fmt: skip
            said = [text for text in done.stderr.splitlines() if not text.startswith("otel-ml: ")]
            found.append((done.returncode, done.stdout, said))
    assert found[2:] == found[:2]


def test_signals_have_their_defaults(script: Path, environ: dict[str, str]) -> None:
    """The program starts with the signal mask and dispositions that it would have had."""
    script.write_text(
        "for line in open('/proc/self/status'):\n"
        "    if line.startswith(('SigBlk', 'SigIgn', 'SigCgt')):\n"
        "        name, bits = line.split()\n"
        "        print(name, hex(int(bits, 16) & ~(0b11 << 31)))  # 32 and 33 are the C library's own\n"
    )
    plain = subprocess.run([sys.executable, script], env=environ, capture_output=True, text=True, check=True)
    assert launch(script, environ=environ).stdout == plain.stdout


# --- signals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1,
        signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGXCPU,
    ],
)  # fmt: skip
def test_forwarded(script: Path, environ: dict[str, str], number: signal.Signals) -> None:
    """A signal sent to the launcher reaches the program once, and the program's exit code is ours."""
    script.write_text(LISTENER)
    process = start(script, environ=environ)
    process.send_signal(number)
    assert line(process.stdout) == number.name
    process.send_signal(signal.SIGUSR2)
    rest, _ = process.communicate()
    assert (rest, process.returncode) == ("", 7)


def test_terminated(script: Path, environ: dict[str, str]) -> None:
    """SIGTERM to the launcher ends the program by SIGTERM, and the launcher the same way."""
    script.write_text("import os, signal; print('ready', flush=True); print(os.getpid(), flush=True); signal.pause()")
    process = start(script, environ=environ)
    program = int(line(process.stdout))
    process.terminate()
    assert process.wait() == -signal.SIGTERM
    assert process.communicate()[0] == ""
    assert not Path(f"/proc/{program}").exists()


def test_killed(script: Path, environ: dict[str, str]) -> None:
    """A SIGKILL that reaches the launcher alone, as a timeout's does, leaves no program behind and no pipe open."""
    script.write_text("import signal; print('ready', flush=True); signal.pause()")
    process = start(script, environ=environ)
    process.kill()
    assert process.communicate()[0] == ""  # nobody holds the pipe
    assert process.returncode == -signal.SIGKILL


def test_alarm_set_before(script: Path, environ: dict[str, str]) -> None:
    """A timer that runs in the process which becomes the launcher ends the program as if it had become that."""
    script.write_text("import signal; print('ready', flush=True); signal.pause()")
    limited = "import os, signal, sys; signal.setitimer(signal.ITIMER_REAL, 3); os.execv(sys.argv[1], sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", limited, *LAUNCHER, script], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGALRM  # and nobody holds the pipes, however far it came


def test_stopped_and_woken(script: Path, environ: dict[str, str]) -> None:
    """Stopped and woken alone, the launcher stops and wakes the program; woken with it, it does not repeat that."""
    script.write_text("import os\nprint(os.getpid(), flush=True)" + LISTENER)
    command = [*LAUNCHER, str(script)]
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        preexec_fn=os.setpgrp,  # noqa: PLW1509 - no threads here; a group that its parent can wake
    ) as process:  # fmt: skip
        program = int(line(process.stdout))
        assert line(process.stdout) == "ready"
        for send, stop in ((os.kill, signal.SIGTSTP), (os.killpg, signal.SIGSTOP)):
            send(process.pid, stop)
            while {state(process.pid), state(program)} != {"T"}:
                os.sched_yield()
            send(process.pid, signal.SIGCONT)
            assert line(process.stdout) == "SIGCONT"
        process.send_signal(signal.SIGUSR2)
        rest, _ = process.communicate()
    assert (rest, process.returncode) == ("", 7)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGINT, signal.SIGPIPE])
def test_dies_alike(environ: dict[str, str], number: signal.Signals) -> None:
    """Whatever signal ends the program, the launcher's parent sees the same, and no core dump of ours."""
    done = launch("sh", "-c", f"ulimit -c 0; kill -{int(number)} $$", environ=environ)
    assert done.returncode == -number


def test_keyboard_interrupt(script: Path, environ: dict[str, str]) -> None:
    """A KeyboardInterrupt that nobody catches ends both by SIGINT, with the program's own traceback."""
    script.write_text("raise KeyboardInterrupt")
    done = launch(script, environ=environ)
    assert done.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in done.stderr
    assert "otel_ml/cli" not in done.stderr


def test_ctrl_c_reaches_the_program_once(script: Path, environ: dict[str, str]) -> None:
    """Ctrl-C on a terminal is the terminal's to deliver: the program gets it once, the launcher does not repeat it."""
    script.write_text(LISTENER)
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [*LAUNCHER, script], env=environ, stdin=end, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no threads here
    )  # fmt: skip
    os.close(end)
    assert line(process.stdout) == "ready"
    for _ in range(3):
        os.write(terminal, b"\x03")
        assert line(process.stdout) == "SIGINT"
    process.send_signal(signal.SIGUSR2)
    rest, _ = process.communicate()
    os.close(terminal)
    assert (rest, process.returncode) == ("", 7)


def test_ignored_stays_ignored(script: Path, environ: dict[str, str]) -> None:
    """What nohup ignores stays ignored, in the program as in the launcher."""
    script.write_text(
        "import signal; print('ready', flush=True)\n"
        "print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, flush=True); signal.pause()"
    )
    command = ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh", *LAUNCHER, str(script)]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert [line(process.stdout), line(process.stdout)] == ["ready", "True"]
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == -signal.SIGTERM


# --- environment -----------------------------------------------------------------------------

PRINT_ENVIRONMENT = "import json, os; print(json.dumps(dict(os.environ)))"


def test_environment(tmp_path: Path, script: Path, environ: dict[str, str]) -> None:
    """The program is told who it is, which distro sets it up and where data goes, on top of what it had."""
    script.write_text(PRINT_ENVIRONMENT)
    before = {k: v for k, v in environ.items() if k != "OTEL_ML_DIR"} | {"PYTHONPATH": f"/mine:{tmp_path}"}
    done = launch("--name", "a run", "--dir", "data", script, environ=before, cwd=tmp_path)
    after = json.loads(done.stdout)
    added = {k: v for k, v in after.items() if before.get(k) != v and not k.startswith(("LC_", "PWD", "_"))}
    assert after.keys() >= before.keys()
    start_up, _, rest = added.pop("PYTHONPATH").partition(":")
    assert (Path(start_up) / "sitecustomize.py").is_file()
    assert rest == before["PYTHONPATH"]
    run_id = added.pop("OTEL_ML_RUN_ID")
    assert run_id.startswith("a-run-2")
    assert {k: v for k, v in added.items() if k.startswith("OTEL_")} == {
        "OTEL_ML_RUN_NAME": "a run",
        "OTEL_ML_DIR": str(tmp_path / "data"),
        "OTEL_ML_INTERNAL_LAUNCHER": "1",
        "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "otel,otel_ml",
        "OTEL_PYTHON_DISTRO": "otel_ml",
        "OTEL_PYTHON_CONFIGURATOR": "otel_ml",
    }


@pytest.mark.parametrize("name", [b"bad\xff.py", b"n" * 240 + b".py"])
def test_any_script_name(tmp_path: Path, environ: dict[str, str], name: bytes) -> None:
    """A script whose name is not UTF-8, or is very long, runs as without us, in a run whose name can be read."""
    path = os.fsencode(tmp_path) + b"/" + name
    Path(os.fsdecode(path)).write_text(PRINT_ENVIRONMENT)
    done = subprocess.run([*LAUNCHER, path], env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["OTEL_ML_RUN_NAME"] == ("bad?" if name.startswith(b"bad") else "n" * 200)


def test_refused_once(environ: dict[str, str]) -> None:
    """A setting that is set wrong behind the launcher is told in one line, whoever configures, and the program runs."""
    for configurator in ("otel_ml", "configurator"):
        bad = {"OTEL_ML_SUMMARY": "maybe", "OTEL_PYTHON_CONFIGURATOR": configurator}
        command = ["env", *(f"{k}={v}" for k, v in bad.items()), sys.executable, "-c", "print(1)"]
        done = launch(*command, environ=environ)
        said = [text for text in done.stderr.splitlines() if not text.startswith("Configuration of ")]  # OTel's own
        assert (done.returncode, done.stdout, said) == (
            0, "1\n", ["otel-ml: OTEL_ML_SUMMARY=maybe: need 1 or 0. Type OTEL_ML_SUMMARY=0, or unset it for 1."]
        )  # fmt: skip


def test_without_python_path(script: Path, environ: dict[str, str]) -> None:
    """An empty PYTHONPATH does not become the current folder."""
    script.write_text(
        "import os; print(os.environ['PYTHONPATH'].count(':'), '' in os.environ['PYTHONPATH'].split(':'))"
    )
    done = launch(script, environ=environ | {"PYTHONPATH": ""}, cwd=Path(__file__).parents[2])
    assert done.stdout == "0 False\n"


def test_nested_launchers_are_one_run(script: Path, environ: dict[str, str]) -> None:
    """A launcher inside a launcher keeps the outer run."""
    script.write_text("import os; print(os.environ['OTEL_ML_RUN_ID'])")
    command = ["sh", "-c", 'echo "$OTEL_ML_RUN_ID"; "$@"', "sh", *LAUNCHER, script]
    outer, inner = launch(*command, environ=environ).stdout.split()
    assert outer == inner


def test_switched_off(script: Path, environ: dict[str, str]) -> None:
    """With OTEL_ML_ENABLED=0 the launcher becomes the program, and leaves its environment as it was."""
    script.write_text(
        "import json, os, sys; print('ready', flush=True); print(os.getpid(), json.dumps(dict(os.environ)), flush=True)"
    )
    off = environ | {"OTEL_ML_ENABLED": "0"}
    process = start(script, environ=off)
    pid, _, after = line(process.stdout).partition(" ")
    process.communicate()
    assert int(pid) == process.pid
    assert {k: v for k, v in json.loads(after).items() if k.startswith(("OTEL_", "PYTHON"))} == {
        k: v for k, v in off.items() if k.startswith(("OTEL_", "PYTHON"))
    }


@pytest.mark.parametrize("launcher", [LAUNCHER, [str(Path(sys.executable).with_name("opentelemetry-instrument"))]])
def test_wrong_settings_are_refused_early(script: Path, environ: dict[str, str], launcher: list[str]) -> None:
    """Under both launchers a wrong setting ends it before the program starts, with what to type."""
    script.write_text("print('started')")
    done = subprocess.run(
        [*launcher, *([] if launcher is LAUNCHER else [sys.executable]), script],
        env=environ | {"OTEL_ML_SUMARY": "0"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("otel-ml: OTEL_ML_SUMARY: there is no such setting. Did you mean OTEL_ML_SUMMARY?\n")


@pytest.mark.parametrize(("enabled", "distro"), [("1", "otel_ml"), ("0", "None")])
def test_instrument_chooses_our_distro(script: Path, environ: dict[str, str], enabled: str, distro: str) -> None:
    """Under `opentelemetry-instrument` our distro is chosen, unless we are switched off."""
    script.write_text("import os; print(os.environ.get('OTEL_PYTHON_DISTRO'))")
    instrument = Path(sys.executable).with_name("opentelemetry-instrument")
    done = subprocess.run(
        [instrument, sys.executable, script],
        env=environ | {"OTEL_ML_ENABLED": enabled, "OTEL_ML_SUMMARY": "0"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"{distro}\n"


# --- summary -----------------------------------------------------------------------------------


def test_failing_summary(tmp_path: Path, environ: dict[str, str]) -> None:
    """A summary that cannot be made costs one line and never the program's exit code."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(tmp_path)
    done = launch("sh", "-c", "exit 4", environ=environ | {"OTEL_ML_RUN_ID": "mine"})
    assert done.returncode == 4
    assert done.stderr.startswith("otel-ml: no summary: StoreError: ")
    assert done.stderr.count("\n") == 1


def test_nothing_to_say(environ: dict[str, str]) -> None:
    """A program that recorded nothing gets no summary, and leaves no folder."""
    done = launch("true", environ=environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not Path(environ["OTEL_ML_DIR"]).exists()


def test_verbose(environ: dict[str, str]) -> None:
    """`-v` names the run and the folder, on stderr."""
    done = launch("-v", "true", environ=environ | {"OTEL_ML_RUN_ID": "mine", "OTEL_ML_SUMMARY": "0"})
    assert (done.stdout, done.stderr) == ("", f"otel-ml: run mine, data in {environ['OTEL_ML_DIR']}\n")
