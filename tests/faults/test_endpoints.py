"""Whatever becomes of the OTLP endpoint, the program ends as it would have, in time, and the local store is whole."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.launching import INSTRUMENT, PLAIN, RUN, recorded, step_records
from tests.faults.processes import Process, run, side_by_side
from tests.faults.receiver import BEHAVIOURS, Receiver

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.launching import Outcome

# Nobody but us ends a request or a wait: with OTel's own ten seconds it would end by itself.
PATIENT = {"OTEL_EXPORTER_OTLP_TIMEOUT": "300", "OTEL_METRIC_EXPORT_INTERVAL": "500"}
BAD = sorted(set(BEHAVIOURS) - {"good"})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What the program does without us."""
    return run(PLAIN, "leaving.py", cwd=tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds one for each behaviour."""
    return tmp_path_factory.mktemp("endpoints")


@pytest.fixture(scope="module")
def ended(folder: Path) -> dict[str, Outcome]:
    """How the program ended, by what its endpoint did; it is given one second to leave."""

    def work(behaviour: str) -> Outcome:
        own = folder / behaviour
        own.mkdir()
        with Receiver(behaviour) as receiver:
            environ = PATIENT | {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_ML_DIR": str(own / "runs")}
            return run(RUN, "leaving.py", cwd=own, OTEL_ML_SHUTDOWN_TIMEOUT="1", **environ)

    return side_by_side(work, BAD)


def whole(directory: Path) -> dict[str, Any]:
    """What must be in the store of a program that ended by itself."""
    found = recorded(directory)
    (process,) = found.processes()
    (totals,) = found.totals()
    return {
        "state": process.state,
        "told": (totals.steps, totals.outcome),
        "records": [row["ml.step.number"] for row in step_records(directory)],
        "logs": Counter(log.event_name or log.body for log in found.logs() if log.event_name not in MANY),
        "spans": Counter(span.name for span in found.spans() if span.parent_span_id is None),
        "steps": found.points("ml.training.steps", latest=True)[0].value,
        "drops": process.drops,
        "problems": found.problems(),
        "left": sorted(path.suffix for path in process.path.parent.iterdir()),
    }


MANY = ("ml.step", "ml.steps")
WHOLE = {
    "state": "finished",
    "told": (20, "finished"),
    "records": list(range(20)),
    "logs": {"ml.run.started": 1, "ml.config": 1, "half way": 1, "ml.diagnosis": 1, "ml.run.finished": 1},
    "spans": {"ml.step": 10, "ml.run": 1},
    "steps": 20,
    "drops": {},
    "problems": [],
    "left": [".sqlite"],
}


@pytest.mark.parametrize("behaviour", BAD)
def test_bad_endpoint(behaviour: str, ended: dict[str, Outcome], plain: Outcome, folder: Path) -> None:
    """The program prints and exits as without us, within its bound, and its store lacks nothing."""
    outcome = ended[behaviour]

    assert (outcome.stdout, outcome.code) == (plain.stdout, plain.code) == (plain.stdout, 0)
    assert "Traceback" not in outcome.stderr
    assert "✓ finished" in outcome.stderr
    assert whole(folder / behaviour / "runs") == WHOLE


def test_exit_waits_as_long_as_it_is_told(plain: Outcome, tmp_path: Path) -> None:
    """With a long bound the exit waits for a slow endpoint, which then has everything."""
    with Receiver("stalled") as receiver:
        environ = PATIENT | {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_ML_DIR": str(tmp_path / "runs")}
        with Process(RUN, "leaving.py", cwd=tmp_path, OTEL_ML_SHUTDOWN_TIMEOUT="600", **environ) as program:
            program.until("LEAVING")
            receiver.released.set()
            outcome = program.end()

        assert outcome.stdout == plain.stdout
        assert Counter(log.event_name for log in receiver.logs())["ml.run.finished"] == 1
        assert Counter(span.name for span in receiver.spans())["ml.step"] == 10
        assert list(receiver.counted("ml.training.steps").values()) == [20]
    assert whole(tmp_path / "runs") == WHOLE


def test_exception_with_a_dead_endpoint(tmp_path: Path) -> None:
    """An exception's traceback and exit code pass through where nobody listens, and it is told of in the store."""
    without = run(PLAIN, "leaving.py", "fail", cwd=tmp_path)
    with Receiver("dead") as receiver:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_ML_DIR": str(tmp_path / "runs")}
        outcome = run(
            INSTRUMENT, "leaving.py", "fail", cwd=tmp_path, OTEL_ML_SHUTDOWN_TIMEOUT="1", **PATIENT, **environ
        )

    assert (outcome.stdout, outcome.code) == (without.stdout, without.code) == (without.stdout, 1)
    assert without.stderr[without.stderr.index("Traceback") :] in outcome.stderr
    (totals,) = recorded(tmp_path / "runs").totals()
    assert (totals.outcome, totals.error, totals.steps) == ("failed", "ValueError: on purpose", 20)
