"""However a program is ended, it ends as it would have, and what it did is on disk."""

from __future__ import annotations

import json
import os
import re
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from otel_ml.overview import to_json
from otel_ml.store.ending import read_ending
from otel_ml.store.reader import RunReader
from tests.e2e.launching import LAUNCHERS, PLAIN, RUN, recorded, step_records, totals
from tests.faults.processes import (
    Process,
    at_best,
    killed_while_watched,
    missing_s,
    once,
    run,
    side_by_side,
    steps_said,
    stored,
    wait_until,
)
from tests.faults.receiver import Receiver

if TYPE_CHECKING:
    from tests.e2e.launching import Outcome


def headline(outcome: Outcome) -> str:
    """How the summary says that the run ended, without its times."""
    lines = [line.strip() for line in outcome.stderr.splitlines()]
    return re.sub(r" (after|in) [^ ,]+ ?[a-zµ]*", "", next(line for line in lines if line[:1] in set("✓✗■●")))


def signals(pid: int) -> dict[str, set[int]]:
    """What a process blocks, ignores and catches, but for the two signals that are the C library's own."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        kind: {number for number in signal.valid_signals() if int(status[kind], 16) >> (number - 1) & 1}
        for kind in ("SigBlk", "SigIgn", "SigCgt")
    }


def sleeps(pid: int) -> bool:
    """Whether the kernel has nothing to run of a process's first thread."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


# --- SIGTERM -------------------------------------------------------------------------------


def test_terminated_inside_c(tmp_path: Path) -> None:
    """SIGTERM inside a C call that never ends kills as without us, by no handler, and the steps before are kept."""

    def work(launcher: str) -> tuple[Outcome, dict[str, set[int]]]:
        runs = tmp_path / launcher
        with Process(WAYS[launcher], "told.py", cwd=tmp_path, OTEL_ML_DIR=str(runs)) as program:
            pid = int(program.until("READY")[0])
            if launcher in LAUNCHERS:
                wait_until(runs, steps=19)  # the last one is open until something follows
            program.say("busy")
            program.until("BUSY")
            once(lambda: sleeps(pid), "the call")
            set_up = signals(pid)
            program.send(signal.SIGTERM)
            return program.end(), set_up

    ended = side_by_side(work, WAYS)

    last = {name: (o.code, o.stdout.splitlines()[-1]) for name, (o, _) in ended.items()}
    assert last == dict.fromkeys(WAYS, (-signal.SIGTERM, "BUSY"))
    assert {name: set_up for name, (_, set_up) in ended.items()} == dict.fromkeys(WAYS, ended["plain"][1])
    for launcher in LAUNCHERS:
        assert [row["ml.step.number"] for row in step_records(tmp_path / launcher)] == list(range(19))
        found = stored(tmp_path / launcher)
        assert found is not None
        assert (found.state, found.problems) == ("killed", ())
    assert headline(ended["otel-ml run"][0]) == "✗ killed by signal 15 (SIGTERM)"


WAYS = {"plain": PLAIN, **LAUNCHERS}


# --- SIGINT --------------------------------------------------------------------------------


def test_interrupted(tmp_path: Path) -> None:
    """Ctrl-C, and a second one while the program tidies up, end it by SIGINT as they would, and the run is kept."""

    def work(way: str) -> Outcome:
        runs = tmp_path / way
        with Process(RUN, "patient.py", way, cwd=tmp_path, OTEL_ML_DIR=str(runs)) as program:
            program.until("READY")
            program.send(signal.SIGINT)
            if way == "tidy":
                program.until("TIDYING")
                program.send(signal.SIGINT)
            return program.end()

    outcomes = side_by_side(work, ["once", "tidy"])

    assert {(o.code, headline(o)) for o in outcomes.values()} == {(-2, "■ interrupted by signal 2 (SIGINT)")}
    assert outcomes["once"].stdout.endswith("READY\nLEAVING\n")
    assert outcomes["tidy"].stdout.endswith("READY\nTIDYING\nLEAVING\n")
    for way, outcome in outcomes.items():
        traceback, _, _ = outcome.stderr.partition("━━ patient")
        assert traceback.count("\nKeyboardInterrupt\n") == (2 if way == "tidy" else 1)
        assert "otel_ml/" not in traceback
        said = totals(tmp_path / way)
        assert (said.outcome, said.steps >= 20, said.records_dropped) == ("interrupted", True, 0)


def test_interrupted_while_we_send(tmp_path: Path) -> None:
    """A second Ctrl-C, while we wait for an endpoint at the exit, ends that wait at once and without a word."""

    def work(launcher: str) -> tuple[int, int, bool]:
        runs = tmp_path / launcher
        environ = {"OTEL_ML_SHUTDOWN_TIMEOUT": "600", "OTEL_EXPORTER_OTLP_TIMEOUT": "600", "OTEL_ML_DIR": str(runs)}
        with Receiver("stalled") as receiver:
            environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = receiver.endpoint
            with Process(LAUNCHERS[launcher], "patient.py", cwd=tmp_path, OTEL_ML_SUMMARY="0", **environ) as program:
                program.until("READY")
                program.send(signal.SIGINT)
                program.until("LEAVING")
                once(lambda: finished(runs), "the run's end in the store")
                program.send(signal.SIGINT)
                outcome = program.end()
        return outcome.code, outcome.stderr.count("KeyboardInterrupt"), "otel_ml/" in outcome.stderr

    assert side_by_side(work, LAUNCHERS) == dict.fromkeys(LAUNCHERS, (-signal.SIGINT, 1, False))


def finished(runs: Path) -> bool:
    """Whether the run has said goodbye."""
    found = stored(runs)
    return found is not None and found.state == "interrupted"


# --- no goodbye ------------------------------------------------------------------------------


def test_killed_in_a_step(tmp_path: Path) -> None:
    """SIGKILL between any two instructions costs at most the last second; the file opens, and who ended it is told."""

    def killed(runs: Path) -> float:
        looks, outcome = killed_while_watched(tmp_path, runs, "endless.py")
        said = steps_said(outcome)
        kept = [row["ml.step.number"] for row in step_records(runs)]
        assert kept == list(range(len(kept)))
        assert looks[-1][1] <= len(kept) <= len(said) + 1
        assert outcome.code == -signal.SIGKILL
        assert headline(outcome) == "✗ killed by signal 9 (SIGKILL)"
        found = stored(runs)
        assert found is not None
        assert (found.state, found.problems, found.steps) == ("killed", (), len(kept))
        return missing_s(looks, said)

    assert at_best(killed, tmp_path) <= 1


ENDS = {
    "_exit 3": (3, "✗ failed, exit code 3", "failed"),
    "segfault": (-signal.SIGSEGV, "✗ killed by signal 11 (SIGSEGV)", "killed"),
}
RARE = {
    "_exit 0": (0, "✓ finished, exit code 0", "finished"),
    "abort": (-signal.SIGABRT, "✗ killed by signal 6 (SIGABRT)", "killed"),
}


@pytest.mark.parametrize("ends", [ENDS, pytest.param(RARE, marks=pytest.mark.rare)], ids=["common", "rare"])
def test_no_goodbye(ends: dict[str, tuple[int, str, str]], tmp_path: Path) -> None:
    """Whatever ends the program without Python's leave, its code is its own, and what was on disk opens and is told."""

    def work(order: str) -> tuple[int, str, str]:
        runs = tmp_path / order
        with Process(RUN, "told.py", cwd=tmp_path, OTEL_ML_DIR=str(runs)) as program:
            program.until("READY")
            wait_until(runs, steps=19)
            program.say(order)
            outcome = program.end()
        found = stored(runs)
        assert found is not None
        assert (found.steps, found.problems) == (19, ())
        return outcome.code, headline(outcome), found.state

    assert side_by_side(work, ends) == ends


# --- memory ------------------------------------------------------------------------------------

MEMORY = {"caught": (0, 22, "✓ finished, exit code 0", "finished", 20), "uncaught": (
    1, 11, "✗ failed, exit code 1", "failed", 10
)}  # fmt: skip


def test_out_of_memory(tmp_path: Path) -> None:
    """A program that has used up its memory meets its own MemoryError and no other, and what it did is kept."""

    def work(mode: str) -> tuple[int, int, str, str, int]:
        runs = tmp_path / mode
        with Process(RUN, "memory.py", mode, cwd=tmp_path, OTEL_ML_DIR=str(runs)) as program:
            program.until("READY")
            wait_until(runs, steps=9)
            program.say("on")
            outcome = program.end()
        lines = len(outcome.stdout.splitlines())
        assert outcome.stderr.count("Traceback") == (mode == "uncaught")
        return outcome.code, lines, headline(outcome), totals(runs).outcome, totals(runs).steps

    assert side_by_side(work, MEMORY) == MEMORY


# --- exceptions --------------------------------------------------------------------------------


def test_an_exception_without_a_text(tmp_path: Path) -> None:
    """A run that ends by an exception whose `str()` raises is told whole, and the traceback is the program's own."""
    runs = tmp_path / "runs"
    ways = {
        "plain": lambda: run(PLAIN, "mute.py", cwd=tmp_path),
        "ours": lambda: run(RUN, "mute.py", cwd=tmp_path, OTEL_ML_DIR=str(runs), OTEL_ML_SUMMARY="0"),
    }
    outcomes = side_by_side(lambda way: ways[way](), ways)

    assert outcomes["ours"] == outcomes["plain"]
    assert outcomes["plain"].stderr.endswith("MuteError: <exception str() failed>\n")
    said = totals(runs)
    assert (said.outcome, said.error, said.steps, said.errors) == (
        "failed", "MuteError: <exception str() failed>", 5, 0,
    )  # fmt: skip
    logs = {log.event_name: log for log in recorded(runs).logs() if log.event_name in ENDINGS}
    assert set(logs) == ENDINGS
    assert logs["ml.exception"].attributes["exception.message"] == "<exception str() failed>"


ENDINGS = {"ml.exception", "ml.diagnosis", "ml.run.finished"}


# --- servers -----------------------------------------------------------------------------------


def test_server_that_ends_by_its_signal(tmp_path: Path) -> None:
    """A server that ends itself by SIGTERM once it has tidied up, so that `atexit` never runs, ends so, and is told."""
    runs = tmp_path / "runs"
    with Process(RUN, "server.py", cwd=tmp_path, OTEL_ML_DIR=str(runs)) as program:
        program.until("READY")
        once(lambda: asked(runs) == 8, "eight answers in the store")
        program.send(signal.SIGTERM)
        outcome = program.end()

    assert (outcome.code, outcome.stdout) == (-signal.SIGTERM, "READY\ntidied up\n")
    assert headline(outcome) == "✗ killed by signal 15 (SIGTERM)"
    found = stored(runs)
    assert found is not None
    assert (found.state, found.problems) == ("killed", ())
    assert asked(runs) == 8


def asked(runs: Path) -> int:
    """The answers in the store."""
    found = stored(runs)
    return 0 if found is None else len(RunReader(found).spans("ml.inference"))


@pytest.mark.parametrize("signals", [{}, {"OTEL_TRACES_SAMPLER": "always_off"}], ids=["traced", "untraced"])
def test_requests_of_a_killed_server(tmp_path: Path, signals: dict[str, str]) -> None:
    """SIGKILL costs a server the requests of its last second at most, long before their metrics are collected."""
    runs = tmp_path / "runs"
    with Process(
        RUN, "served.py", cwd=tmp_path, OTEL_ML_DIR=str(runs), OTEL_METRIC_EXPORT_INTERVAL="3600000", **signals
    ) as program:
        program.until("READY")
        for asked, in_all in ((20, 20), (30, 50)):
            program.say(str(asked))
            program.until("ANSWERED")
            once(partial(requests, runs, in_all), "the requests so far in the store")
        found = stored(runs)
        assert found is not None
        os.kill(found.processes[0].pid, signal.SIGKILL)
        outcome = program.end()

    said = totals(runs)
    assert (said.outcome, said.inference.count, said.inference_failed, said.inference_samples) == ("killed", 50, 5, 90)
    assert said.framework == "torch"
    assert None not in (said.inference.p50_s, said.inference.p95_s, said.inference.max_s)
    assert RunReader(found).points() == []
    ending, found = read_ending(found.path), stored(runs)
    assert found is not None
    assert ending is not None
    assert (found.ended_unix_ns, ending.pid) == (ending.at_unix_ns, said.pid)
    assert said.duration_s == (ending.at_unix_ns - said.started_unix_ns) / 1e9
    assert headline(outcome) == "✗ killed by signal 9 (SIGKILL)"


def requests(runs: Path, wanted: int) -> bool:
    """Whether the store knows of this many requests."""
    found = stored(runs)
    return found is not None and RunReader(found).totals()[0].inference.count == wanted


@pytest.mark.parametrize("steps", [0, 3], ids=["idle", "training"])
def test_workers_that_a_server_ends(tmp_path: Path, steps: int) -> None:
    """A program that ended well is finished for all who tell of it, and shown is it or else the busiest worker."""
    runs = tmp_path / "runs"
    with Process(RUN, "pool.py", str(steps), "30", "12", cwd=tmp_path, OTEL_ML_DIR=str(runs)) as program:
        program.until("READY")
        once(lambda: served(runs) == [12, 30], "the requests of both workers")
        program.say("on")
        outcome = program.end()

    found = stored(runs)
    assert found is not None
    assert found.ending is not None
    told = json.loads(to_json(recorded(runs).totals(), found.ending))
    shown, *others = told["processes"]
    assert (outcome.code, headline(outcome), found.state) == (0, "✓ finished, exit code 0", "finished")
    assert (told["run"]["outcome"], told["run"]["exit_code"]) == ("finished", 0)
    assert (shown["steps"], shown["inference"]["count"]) == ((steps, 0) if steps else (0, 30))
    assert sorted(each["outcome"] for each in others) == ["killed"] * len(others)
    begun = min(each["started_unix_ns"] for each in told["processes"])
    span = (told["run"]["started_unix_ns"], told["run"]["ended_unix_ns"])
    assert span == (found.started_unix_ns, found.ended_unix_ns) == (begun, found.ending.at_unix_ns)


def served(runs: Path) -> list[int]:
    """The requests of each process that served any."""
    found = stored(runs)
    counts = [] if found is None else [totals.inference.count for totals in RunReader(found).totals()]
    return sorted(count for count in counts if count)
