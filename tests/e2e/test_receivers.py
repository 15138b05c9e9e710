"""A program sends its three signals to a real OTLP receiver, over http/protobuf and over grpc."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.launching import LAUNCHERS, Outcome, launch, plainly, recorded
from tests.e2e.receivers import RECEIVERS, Received, nested, orphans, roots, steps_of_logs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# One way to start a program for each protocol; the second keeps nothing on this machine.
WAYS = {"http/protobuf": ("otel-ml run", "1"), "grpc": ("opentelemetry-instrument", "0")}


@dataclass(frozen=True)
class Sent:
    """One program's run: what it printed, what came over the wire, and the folder of the local store."""

    outcome: Outcome
    received: Received
    runs: Path
    stored: bool


@pytest.fixture(scope="module", params=WAYS)
def sent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sent]:
    """What one run of the observed program sent."""
    launcher, store = WAYS[request.param]
    directory = tmp_path_factory.mktemp("sent")
    with RECEIVERS[request.param]() as received:
        environment = {
            "OTEL_ML_DIR": str(directory / "runs"),
            "OTEL_ML_STORE": store,
            "OTEL_EXPORTER_OTLP_HEADERS": "x-team=vision,x-word=two%20words",
            "OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": received.protocol,
        }
        outcome = launch(LAUNCHERS[launcher], "observed.py", cwd=directory, timeout=120, **environment)
        yield Sent(outcome, received, directory / "runs", store == "1")


def step_columns(received: Received) -> dict[int, dict[str, Any]]:
    """Each step's record, whether it came singly or in columns."""
    rows = [log.attributes for log in received.logs if log.event == "ml.step"]
    for log in received.logs:
        if log.event == "ml.steps":
            columns = {k: v for k, v in log.attributes.items() if isinstance(v, list)}
            count = len(columns["ml.step.number"])
            rows += [{k: v[n] for k, v in columns.items()} for n in range(count)]
    return {row["ml.step.number"]: row for row in rows}


def test_signals(sent: Sent, tmp_path: Path) -> None:
    """All three signals come, each from the same resource with the run's id, and the program prints what it did."""
    plain = plainly("observed.py", tmp_path)
    assert (sent.outcome.stdout, sent.outcome.code) == (plain.stdout, plain.code)
    assert sent.received.sent() == ["logs", "metrics", "traces"]
    resources = sent.received.resources()
    assert {signal: len(different) for signal, different in resources.items()} == {"logs": 1, "metrics": 1, "traces": 1}
    (traces,), (metrics,), (logs,) = (resources[signal] for signal in ("traces", "metrics", "logs"))
    assert traces == metrics == logs
    assert traces["ml.run.id"].startswith("observed-")
    assert traces["service.name"] == traces["ml.run.name"] == "observed"


def test_headers(sent: Sent) -> None:
    """Each request of each signal carries the headers that were asked for."""
    found = {
        signal: {(headers.get("x-team"), headers.get("x-word")) for headers in requests}
        for signal, requests in sent.received.headers.items()
    }
    assert found == {signal: {("vision", "two words")} for signal in ("traces", "metrics", "logs")}


def test_store(sent: Sent) -> None:
    """The local store holds what was sent, unless it is off: then nothing is written at all."""
    if not sent.stored:
        assert not sent.runs.exists()
        return
    run = recorded(sent.runs)
    assert run.resource() == sent.received.resources()["traces"][0]
    assert {(s.trace_id, s.span_id, s.name) for s in run.spans()} == {
        (s.trace_id, s.span_id, s.name) for s in sent.received.spans
    }
    assert sorted(str((log.event_name or "", log.body)) for log in run.logs()) == sorted(
        str((log.event, log.body)) for log in sent.received.logs
    )
    assert {p.name for p in run.points()} == {p.name for p in sent.received.points}


def test_a_step_is_a_trace(sent: Sent) -> None:
    """Each kept step is a trace of its own: a root with the phases as children, linked to the run."""
    spans = sent.received.spans
    (run,) = [span for span in spans if span.name == "ml.run"]
    steps = sorted((s for s in spans if s.name == "ml.step"), key=lambda span: span.attributes["ml.step.number"])
    assert [step.attributes["ml.step.number"] for step in steps] == list(range(sent.outcome.truth["steps"]))
    assert [(step.parent_id, step.links) for step in steps] == [(None, ((run.trace_id, run.span_id),))] * len(steps)
    assert len({span.trace_id for span in (run, *steps)}) == 1 + len(steps)
    for step in steps:
        phases = [s for s in spans if s.parent_id == step.span_id and s.scope == step.scope]
        assert {(p.name, p.attributes["ml.phase"]) for p in phases} == {
            (name, name) for name in ("data_wait", "forward", "backward", "optimizer")
        }
        assert {p.trace_id for p in phases} == {step.trace_id}
        assert all(step.start_unix_ns <= p.start_unix_ns <= p.end_unix_ns <= step.end_unix_ns for p in phases)


def test_parents(sent: Sent) -> None:
    """No span lacks its parent, and every span has a root."""
    assert orphans(sent.received.spans) == []
    assert len(roots(sent.received.spans)) == len(sent.received.spans)


def test_loss(sent: Sent) -> None:
    """The loss of each step's span, and of its record, is what the program printed, to the last bit."""
    printed = {int(step): float(loss) for step, loss in sent.outcome.losses()}
    assert len(printed) == sent.outcome.truth["steps"]
    spans = [span.attributes for span in sent.received.spans if span.name == "ml.step"]
    assert {step["ml.step.number"]: step["ml.training.loss"] for step in spans} == printed
    rows = step_columns(sent.received)
    assert {number: row["ml.training.loss"] for number, row in rows.items()} == printed


def test_the_programs_own_spans(sent: Sent) -> None:
    """The program's own spans nest under the step they were opened in, also in threads that took the context along."""
    assert nested(sent.received.spans) == sorted(map(tuple, sent.outcome.truth["spans"]), key=str)


def test_the_programs_own_logs(sent: Sent) -> None:
    """The program's own log records belong to a span of the step they were written in."""
    assert steps_of_logs(sent.received.logs, sent.received.spans, "program") == sorted(
        map(tuple, sent.outcome.truth["logs"]), key=str
    )
    said = {log.body: log.attributes.get("ml.step.number") for log in sent.received.logs if log.scope == "program"}
    inside = {body: step for body, step in sent.outcome.truth["logs"] if step is not None}
    assert {body: said[body] for body in inside} == inside


def test_metrics(sent: Sent) -> None:
    """Counters, and the counts of histograms, are exact."""
    truth = sent.outcome.truth
    found = {name: sent.received.totals(f"ml.training.{name}") for name in ("steps", "samples", "micro_batches")}
    assert found == {
        "steps": {"ml.outcome=ok": truth["steps"]},
        "samples": {"": truth["samples"]},
        "micro_batches": {"": truth["micro_batches"]},
    }
    assert sent.received.totals("ml.training.step.duration") == {"ml.framework.name=torch": truth["steps"]}
    phases = sent.received.totals("ml.training.phase.duration")
    assert {k: phases[f"ml.phase={k}"] for k in ("data_wait", "forward", "backward", "optimizer")} == dict.fromkeys(
        ("data_wait", "forward", "backward", "optimizer"), truth["steps"]
    )
