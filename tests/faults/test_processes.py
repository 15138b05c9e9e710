"""Children of every kind inherit nothing that runs, and a run of several processes is one run."""

from __future__ import annotations

import functools
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from otel_ml.store.reader import RunReader
from tests.e2e.launching import BIN, INSTRUMENT, PLAIN, RUN, recorded
from tests.faults.processes import run, stored
from tests.faults.receiver import Receiver

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.launching import Outcome


def with_us(launcher: tuple[str, ...], program: str, *arguments: str, cwd: Path) -> tuple[Outcome, Receiver]:
    """The program's end with us, and what was sent meanwhile."""
    with Receiver() as receiver:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_ML_DIR": str(cwd / "runs")}
        return run(launcher, program, *arguments, cwd=cwd, **environ), receiver


@functools.cache
def without_us(program: str, *arguments: str, cwd: Path) -> Outcome:
    """The program's end without us, once a session."""
    return run(PLAIN, program, *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the programs without us."""
    return tmp_path_factory.mktemp("plain")


def sent(receiver: Receiver) -> dict[str, Any]:
    """What reached the endpoint, of whom."""
    return {
        "processes": len(receiver.instances()),
        "steps": sum(receiver.counted("ml.training.steps").values()),
        "goodbyes": sum(log.event_name == "ml.run.finished" for log in receiver.logs()),
        "own": Counter(
            [log.body.string_value for log in receiver.logs() if not log.event_name]
            + [span.name for span in receiver.spans() if span.name.startswith("in ")]
        ),
    }


def kept(directory: Path) -> list[tuple[int, str]]:
    """The steps and the end of each process in the store."""
    return [(totals.steps, totals.outcome) for totals in recorded(directory).totals()]


def test_forks(tmp_path: Path, scratch: Path) -> None:
    """Forked children run and end as without us, have no thread of ours, and add nothing to what is told."""
    ours, receiver = with_us(INSTRUMENT, "forks.py", cwd=tmp_path)

    plain = without_us("forks.py", cwd=scratch)
    assert (ours.stdout, ours.code) == (plain.stdout, plain.code) == (plain.stdout, 0)
    assert "threads 1" in ours.stdout
    assert kept(tmp_path / "runs") == [(17, "finished")]
    assert sent(receiver) == {"processes": 1, "steps": 17, "goodbyes": 1, "own": {"in the parent": 1}}
    assert ours.stderr.count("━━ forks ━") == 1


@pytest.mark.parametrize(
    ("kind", "workers"), [("fork", 16), ("spawn", 4), pytest.param("fork", 64, marks=pytest.mark.slow)]
)
def test_loader_workers(kind: str, workers: int, tmp_path: Path, scratch: Path) -> None:
    """A DataLoader's workers run nothing of ours that they were not born with, and tell of nothing."""
    ours, receiver = with_us(INSTRUMENT, "workers.py", kind, str(workers), cwd=tmp_path)

    plain = without_us("workers.py", "fork", str(workers), cwd=scratch)  # what they print is the same for all kinds
    assert (ours.stdout, ours.code) == (plain.stdout, plain.code) == (plain.stdout, 0)
    assert kept(tmp_path / "runs") == [(2 * workers, "finished")]
    assert sent(receiver) == {"processes": 1, "steps": 2 * workers, "goodbyes": 1, "own": {}}
    assert ours.stderr.count("━━ workers ━") == 1


CHILDREN = {"fork": [3], "spawn": [3, 5, 6], "forkserver": [3]}


@pytest.mark.parametrize("kind", CHILDREN)
def test_children_that_train(kind: str, tmp_path: Path, scratch: Path) -> None:
    """What a spawned child trains is part of the run, what a forked one trains is not, and both are left alone."""
    ours, receiver = with_us(INSTRUMENT, "children.py", kind, cwd=tmp_path)

    plain = without_us("children.py", "fork", cwd=scratch)  # what they print is the same for all kinds
    assert (ours.stdout, ours.code) == (plain.stdout, plain.code) == (plain.stdout, 0)
    expected = CHILDREN[kind]
    assert sorted(steps for steps, _ in kept(tmp_path / "runs")) == expected
    assert sent(receiver) == {"processes": len(expected), "steps": sum(expected), "goodbyes": len(expected), "own": {}}
    assert ours.stderr.count("━━ children ━") == 1


def test_torchrun(tmp_path: Path) -> None:
    """Two ranks under torchrun are one run with one summary, its two processes in step; the agent is none of them."""
    torchrun = str(BIN / "torchrun")
    ours = run(
        (*RUN, torchrun, "--standalone", "--nproc-per-node=2"),
        "ddp.py",
        cwd=tmp_path,
        OTEL_ML_DIR=str(tmp_path / "runs"),
    )

    assert ours.code == 0, ours.stderr
    assert sorted(ours.stdout.splitlines()) == ["rank 0 of 2 done", "rank 1 of 2 done"]
    found = stored(tmp_path / "runs")
    assert found is not None
    assert [(p.rank, p.world_size, p.state) for p in found.processes] == [(0, 2, "finished"), (1, 2, "finished")]
    assert kept(tmp_path / "runs") == [(12, "finished"), (12, "finished")]
    traces = Counter(span.trace_id for span in RunReader(found).spans("ml.step"))
    assert set(traces.values()) == {2}
    assert ours.stderr.count("━━ ddp ━") == 1
