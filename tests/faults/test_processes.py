"""Children of every kind inherit nothing that runs, and a run of several processes is one run."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from otel_ml.store.reader import RunReader
from tests.e2e.launching import BIN, INSTRUMENT, PLAIN, RUN, recorded
from tests.faults.processes import ALL, FIRST, run, side_by_side, stored
from tests.faults.receiver import Receiver

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.launching import Outcome


def both(
    launcher: tuple[str, ...], program: str, *arguments: str, cwd: Path, plainly: tuple[str, ...] | None = None
) -> tuple[Outcome, Outcome, Receiver]:
    """The program's end without us (with other arguments, where it prints the same), with us, and what was sent."""
    with Receiver() as receiver:
        environ = ALL | {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_ML_DIR": str(cwd / "runs")}
        ways = {
            PLAIN: lambda: run(PLAIN, program, *(plainly or arguments), cwd=cwd),
            launcher: lambda: run(launcher, program, *arguments, cwd=cwd, **environ),
        }
        ended = side_by_side(lambda way: ways[way](), ways)
    return ended[PLAIN], ended[launcher], receiver


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


def test_forks(tmp_path: Path) -> None:
    """Forked children run and end as without us, have no thread of ours, and add nothing to what is told."""
    plain, ours, receiver = both(INSTRUMENT, "forks.py", cwd=tmp_path)

    assert (ours.stdout, ours.code) == (plain.stdout, plain.code) == (plain.stdout, 0)
    assert "threads 1" in ours.stdout
    assert kept(tmp_path / "runs") == [(17, "finished")]
    assert sent(receiver) == {"processes": 1, "steps": 17, "goodbyes": 1, "own": {"in the parent": 1}}
    assert ours.stderr.count("━━ forks ━") == 1


@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        ("fork", 16),
        ("spawn", 2),
        pytest.param("fork", 64, marks=pytest.mark.rare),
        pytest.param("spawn", 4, marks=pytest.mark.rare),
    ],
)
def test_loader_workers(kind: str, workers: int, tmp_path: Path) -> None:
    """A DataLoader's workers run nothing of ours that they were not born with, and tell of nothing."""
    words = (kind, str(workers))
    plain, ours, receiver = both(INSTRUMENT, "workers.py", *words, cwd=tmp_path)

    assert (ours.stdout, ours.code) == (plain.stdout, plain.code) == (plain.stdout, 0)
    assert kept(tmp_path / "runs") == [(2 * workers, "finished")]
    assert sent(receiver) == {"processes": 1, "steps": 2 * workers, "goodbyes": 1, "own": {}}
    assert ours.stderr.count("━━ workers ━") == 1


CHILDREN = {"fork": [3], "spawn": [3, 5, 6], "forkserver": [3]}


@pytest.mark.parametrize(
    "kind", ["spawn", *(pytest.param(kind, marks=pytest.mark.rare) for kind in ("fork", "forkserver"))]
)
def test_children_that_train(kind: str, tmp_path: Path) -> None:
    """What a spawned child trains is part of the run, what a forked one trains is not, and both are left alone."""
    plain, ours, receiver = both(INSTRUMENT, "children.py", kind, cwd=tmp_path, plainly=("fork",))

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
    traces = Counter(span.trace_id for span in RunReader(found).spans("ml.step") if (span.step or 0) < FIRST)
    assert set(traces.values()) == {2}
    assert ours.stderr.count("━━ ddp ━") == 1
