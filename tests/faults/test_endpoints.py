"""Whatever becomes of the OTLP endpoint, the program ends as it would have, in time, and the local store is whole."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.launching import INSTRUMENT, PLAIN, RUN, recorded, step_records
from tests.export.far import Far
from tests.faults.processes import ALL, FIRST, PROGRAMS, Process, once, run, side_by_side
from tests.faults.receiver import BEHAVIOURS, Receiver

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.launching import Outcome

# Nobody but us ends a request or a wait: with OTel's own ten seconds it would end by itself.
PATIENT = {"OTEL_EXPORTER_OTLP_TIMEOUT": "300", "OTEL_METRIC_EXPORT_INTERVAL": "500"}
RARE = ["unavailable now and then", "forbids", "garbage in an answer", "hangs up", "slow", "too many"]
BAD = sorted(set(BEHAVIOURS) - {"good", *RARE})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What the program does without us."""
    return run(PLAIN, "leaving.py", cwd=tmp_path_factory.mktemp("plain"))


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
        "traces": sorted(span.step for span in found.spans(name="ml.step") if (span.step or 0) < FIRST),
        "runs": len(found.spans(name="ml.run")),
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
    "traces": list(range(FIRST)),
    "runs": 1,
    "steps": 20,
    "drops": {},
    "problems": [],
    "left": [".json", ".sqlite"],  # what the launcher saw of the end, and one file a process
}


@pytest.mark.parametrize("behaviours", [BAD, pytest.param(RARE, marks=pytest.mark.rare)], ids=["common", "rare"])
def test_bad_endpoint(behaviours: list[str], plain: Outcome, tmp_path: Path) -> None:
    """Whatever the endpoint does, the program prints and exits as without us, within its second, and nothing lacks."""

    def work(behaviour: str) -> tuple[str, int, int, int, dict[str, Any]]:
        own = tmp_path / behaviour
        own.mkdir()
        with Receiver(behaviour) as receiver:
            environ = PATIENT | {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_ML_DIR": str(own / "runs")}
            ours = run(RUN, "leaving.py", cwd=own, OTEL_ML_SHUTDOWN_TIMEOUT="1", **environ)
        errors, summaries = ours.stderr.count("Traceback"), ours.stderr.count("✓ finished")
        return ours.stdout, ours.code, errors, summaries, whole(own / "runs")

    assert plain.code == 0
    assert side_by_side(work, behaviours) == dict.fromkeys(behaviours, (plain.stdout, 0, 0, 1, WHOLE))


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
        assert Counter(span.name for span in receiver.spans())["ml.step"] >= FIRST
        assert list(receiver.counted("ml.training.steps").values()) == [20]
    assert whole(tmp_path / "runs") == WHOLE


@pytest.fixture
def marked(tmp_path: Path) -> str:
    """A folder for PYTHONPATH that has any process under the launcher say GONE once we have done all at its exit."""
    folder = tmp_path / "marked"
    about = folder / "marked-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: marked\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[opentelemetry_pre_instrument]\nmarked = marked:register\n")
    (folder / "marked.py").write_text(MARKED)
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


MARKED = """import atexit

def register():
    from otel_ml.distro import shutdown
    atexit.unregister(shutdown)
    atexit.register(print, "GONE", flush=True)  # what is registered first is called last
    atexit.register(shutdown)
"""


def test_exit_takes_no_longer(tmp_path: Path, marked: str) -> None:
    """Where an endpoint never answers, the exit waits as long as it is told, five seconds untold, and no longer."""

    def work(way: str) -> float:
        own = tmp_path / way
        own.mkdir()
        environ = PATIENT | BOUNDS[way] | {"OTEL_ML_SUMMARY": "0", "OTEL_ML_DIR": str(own / "runs")}
        with Receiver("stalled") as receiver:
            environ |= {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "PYTHONPATH": marked}
            with Process(INSTRUMENT, "leaving.py", way, cwd=own, **environ) as program:
                program.until("LEAVING")
                left = time.monotonic()
                program.until("GONE")
                took = time.monotonic() - left
                assert program.end().code == (way == "fail")
                return took

    took = side_by_side(work, BOUNDS, at_once=4)

    assert 2 * max(took["short"], took["fail"]) < took["long"]  # whatever comes to each bound is as long for all
    assert took["short"] < took["untold"] < took["long"]


BOUNDS: dict[str, dict[str, str]] = {
    "short": {"OTEL_ML_SHUTDOWN_TIMEOUT": "1"},
    "fail": {"OTEL_ML_SHUTDOWN_TIMEOUT": "1"},  # by an exception
    "untold": {},
    "long": {"OTEL_ML_SHUTDOWN_TIMEOUT": "9"},
}


def test_exception_with_a_dead_endpoint(plain: Outcome, tmp_path: Path) -> None:
    """An exception's traceback and exit code pass through where nobody listens, and it is told of in the store."""
    with Receiver("dead") as receiver:
        environ = PATIENT | {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_ML_DIR": str(tmp_path / "runs")}
        outcome = run(INSTRUMENT, "leaving.py", "fail", cwd=tmp_path, OTEL_ML_SHUTDOWN_TIMEOUT="1", **environ)

    assert (outcome.stdout, outcome.code) == (plain.stdout, 1)
    assert TRACEBACK in outcome.stderr
    (totals,) = recorded(tmp_path / "runs").totals()
    assert (totals.outcome, totals.error, totals.steps) == ("failed", "ValueError: on purpose", 20)


def test_one_record_is_refused(tmp_path: Path) -> None:
    """Of a batch that is refused for one log record all others arrive once, while the program runs; it is told."""

    def answer(signal: str, request: Any) -> tuple[int, dict[str, str], bytes]:
        outers = request.resource_logs if signal == "logs" else ()
        bodies = [log.body.string_value for o in outers for i in o.scope_logs for log in i.log_records]
        return (400, {}, b"not that one") if f"made {STEPS}" in bodies else (200, {}, b"")

    with Far(answer) as far:
        environ = ALL | {"OTEL_EXPORTER_OTLP_ENDPOINT": far.endpoint, "OTEL_ML_DIR": str(tmp_path / "runs")}
        with Process(RUN, "gated.py", cwd=tmp_path, **environ) as program:
            program.say(str(STEPS))
            program.until("MADE")
            once(lambda: {*MANY}.intersection(far.logs()), "the steps that came with it")
            program.say(str(STEPS))
            program.hang_up()
            ended = program.end()

    here = Counter(log.event_name or "" for log in recorded(tmp_path / "runs").logs())
    assert ended.code == 0
    assert here - Counter(far.logs()) == Counter({"": 1})
    assert Counter(far.logs()) - here == Counter()
    told = " ".join(ended.stderr.split())
    assert "The endpoint refuses 1 log record (400 not that one). To try again: otel-ml replay gated-" in told


STEPS = 30

TRACEBACK = f"""Traceback (most recent call last):
  File "{PROGRAMS / "leaving.py"}", line 18, in <module>
    raise ValueError("on purpose")
ValueError: on purpose
"""
