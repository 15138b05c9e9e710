"""Crowds, overflow, errors of ours, careless handlers, values that nothing can hold, and secrets."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from otel_ml.core.native import load
from tests.e2e.launching import INSTRUMENT, PLAIN, RUN, recorded, step_records, totals
from tests.faults.processes import ALL, run, side_by_side
from tests.faults.receiver import Receiver

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.launching import Outcome


def pair(program: str, *arguments: str, cwd: Path, **env: str) -> tuple[Outcome, Outcome]:
    """The program's end without us and with us."""
    ways: dict[tuple[str, ...], dict[str, str]] = {PLAIN: {}, RUN: {"OTEL_ML_DIR": str(cwd / "runs"), **env}}
    ended = side_by_side(lambda way: run(way, program, *arguments, cwd=cwd, **ways[way]), ways)
    return ended[PLAIN], ended[RUN]


def test_crowd(tmp_path: Path) -> None:
    """Two hundred threads and fifty tasks compute what they did, and every step, answer, span and log is there."""
    plain, ours = pair("crowd.py", cwd=tmp_path)

    assert (ours.stdout, ours.code) == (plain.stdout, plain.code) == (plain.stdout, 0)
    found = recorded(tmp_path / "runs")
    (said,) = found.totals()
    assert (said.steps, said.steps_failed, said.evaluations, said.records_dropped, said.errors) == (601, 0, 1, 0, 0)
    assert len(step_records(tmp_path / "runs")) == 601
    assert Counter(log.body for log in found.logs() if not log.event_name) == {"in a thread": 200, "in a task": 50}
    assert Counter(span.name for span in found.spans())["in a task"] == 50


def test_overflow(tmp_path: Path) -> None:
    """A full recorder loses events and nothing else: each is counted, and the summary says so."""
    steps = 4000
    environ = {"OTEL_ML_DIR": str(tmp_path / "runs"), "OTEL_ML_BUFFER": "1024"}
    ours = run(RUN, "train.py", str(steps), cwd=tmp_path, **environ)

    assert ours.code == 0
    assert len(ours.stdout.splitlines()) == steps
    said = totals(tmp_path / "runs")
    assert said.records_dropped > 0
    assert said.records + said.records_dropped == 4 * steps + 1  # zero_grad, forward, backward, step; one construction
    assert 0 < said.steps < steps
    assert all(row["ml.step.duration"] >= 0 for row in step_records(tmp_path / "runs"))
    assert f"{said.records_dropped:,} of our records were dropped" in ours.stderr
    dropped = recorded(tmp_path / "runs").points("otel_ml.record.dropped", latest=True)
    assert [point.value for point in dropped] == [said.records_dropped]


def test_bursts(tmp_path: Path) -> None:
    """Of more spans and logs than can be written as they come, each that is lost is counted, and the end says so."""
    count = 20_000
    ours = run(RUN, "burst.py", str(count), cwd=tmp_path, OTEL_ML_DIR=str(tmp_path / "runs"))

    assert (ours.stdout, ours.code) == ("done\n", 0)
    found = recorded(tmp_path / "runs")
    (process,) = found.processes()
    kept = {
        "spans": sum(span.name == "burst" for span in found.spans()),
        "logs": sum(log.body == "burst" for log in found.logs()),
    }
    for signal, here in kept.items():  # a few of our own may be among the lost
        assert count <= here + process.drops.get(f"{signal} queue_full", 0) <= count + 20
    assert set(process.drops) <= {"spans queue_full", "logs queue_full"}
    lost = " and ".join(
        f"{process.drops[f'{signal} queue_full']:,} {word}"
        for signal, word in (("logs", "log records"), ("spans", "spans"))
        if f"{signal} queue_full" in process.drops
    )
    said = " ".join(line.strip(" ▲") for line in ours.stderr.splitlines())
    assert f"Not in the local store: {lost}, which came faster than they could be written." in said


SABOTAGED = [
    "otel_ml.instrument.torch.values:scalar",
    "otel_ml.instrument.torch.values:shape",
    "otel_ml.instrument.torch.modules:Roots._describe",
    "otel_ml.core.context:Registry.number",
    "otel_ml.core.recorder:Recorders._make",
    "otel_ml.pipeline.steps:Tracker.feed",
    "otel_ml.pipeline.telemetry:Telemetry.take",
    "otel_ml.pipeline.spans:Spans.step",
    "otel_ml.pipeline.instruments:Instruments.flush",
    "otel_ml.store.writer:StoreWriter._insert",
]
CALLED_BY_C = [
    "otel_ml.instrument.torch.autograd:_read",
    "otel_ml.instrument.torch.optimizer:_number",
    "otel_ml.instrument.torch.optimizer:_rates",
]
if load("otel_ml.instrument.torch._hooks") is not None:
    SABOTAGED += CALLED_BY_C


def test_errors_of_ours(tmp_path: Path) -> None:
    """Where functions of ours raise, the program does not notice; each error is counted, each place logged once."""
    tally = tmp_path / "tally"
    environ = {"OTEL_ML_DIR": str(tmp_path / "runs"), "OTEL_ML_STRICT": "0"}
    ways = {
        PLAIN: lambda: run(PLAIN, "sabotage.py", str(tally), cwd=tmp_path),
        RUN: lambda: run(RUN, "sabotage.py", str(tally), *SABOTAGED, cwd=tmp_path, **environ),
    }
    plain, ours = side_by_side(lambda way: ways[way](), ways).values()

    assert (ours.stdout, ours.code) == (plain.stdout, plain.code) == (plain.stdout, 0)
    raised = json.loads(tally.read_text())
    assert set(raised) == set(SABOTAGED)
    said = totals(tmp_path / "runs")
    assert said.errors == sum(raised.values())
    assert f"otel-ml met {said.errors} errors of its own" in ours.stderr
    logged = re.findall(r"^otel-ml: error in (.*); the program is not affected$", ours.stderr, re.MULTILINE)
    assert sorted(logged) == sorted(set(logged))
    assert said.steps >= 12  # of fourteen: two findings met an error


def test_careless_handlers(tmp_path: Path) -> None:
    """A handler that logs, one that raises and a stderr that is a logger do as they did, and each record comes once."""
    with Receiver() as receiver:
        plain, ours = pair("handlers.py", cwd=tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint, **ALL)

        assert (ours.stdout, ours.code) == (plain.stdout, plain.code) == (plain.stdout, 0)
        expected = {"words": 5, "heard stderr": 5}
        stored = Counter(log.body for log in recorded(tmp_path / "runs").logs() if not log.event_name)
        assert (stored, totals(tmp_path / "runs").errors) == (expected, 0)
        assert Counter(log.body.string_value for log in receiver.logs() if not log.event_name) == expected


def test_careless_handlers_that_hear_of_exports(tmp_path: Path) -> None:
    """Where exports fail and the handlers hear that, what they say of it makes no record, which would be exported."""
    with Receiver("unavailable") as receiver:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_BLRP_SCHEDULE_DELAY": "100"}
        plain, ours = pair("handlers.py", "audible", cwd=tmp_path, OTEL_ML_SHUTDOWN_TIMEOUT="1", **environ)

    heard = [line for line in ours.stdout.splitlines() if "opentelemetry" in line or "otel_ml" in line]
    assert any(line.startswith("inner heard opentelemetry") for line in heard)
    assert [line for line in ours.stdout.splitlines() if line not in heard] == plain.stdout.splitlines()
    stored = Counter(log.body for log in recorded(tmp_path / "runs").logs() if not log.event_name)
    assert (stored, ours.code) == ({"words": 5, "heard stderr": 5}, 0)


def test_odd_values(tmp_path: Path) -> None:
    """What no telemetry can hold raises nothing and costs at most itself, in the store and on the wire."""
    with Receiver() as receiver:
        plain, ours = pair("odd.py", cwd=tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint, **ALL)

    assert (ours.stdout, ours.code) == (plain.stdout, plain.code) == (plain.stdout, 0)
    found = recorded(tmp_path / "runs")
    names = [line.split()[1:-1] for line in ours.stdout.splitlines() if line.startswith("loss ")]
    ordinary = {f"ordinary {' '.join(name)}" for name in names} | {"ordinary end"}
    odd = {f"odd {' '.join(name)}" for name in names}
    for spans in ([s.name for s in found.spans()], [s.name for s in receiver.spans()]):
        assert {s for s in spans if s.startswith(("ordinary", "odd"))} == ordinary | odd
    for logs in ([str(log.body) for log in found.logs()], [log.body.string_value for log in receiver.logs()]):
        assert {log for log in logs if log.startswith(("ordinary", "odd "))} == ordinary | odd | {"odd body"}
    for (kind, place), records in {
        ("span", "store"): {span.name: span.attributes for span in found.spans()},
        ("log", "store"): {str(log.body): log.attributes for log in found.logs()},
        ("span", "wire"): {span.name: carried(span) for span in receiver.spans()},
        ("log", "wire"): {log.body.string_value: carried(log) for log in receiver.logs()},
    }.items():
        there = {name: records[f"odd {name}"] for name in VALUES}
        assert {name: attributes["ordinary"] for name, attributes in there.items()} == dict.fromkeys(VALUES, 1)
        values = {name: repr(attributes.get("value", LACKING)) for name, attributes in there.items()}
        expected = VALUES | (OF_SPANS if kind == "span" else {}) | (ON_THE_WIRE if place == "wire" else {})
        assert values == {name: repr(value) for name, value in expected.items()}
    (process,) = found.processes()
    assert process.drops == {"spans unencodable": 1, "logs unencodable": 1}  # the names and texts of lone surrogates
    said = totals(tmp_path / "runs")
    assert (said.steps, said.steps_failed, said.outcome) == (len(names), 0, "finished")


def carried(record: Any) -> dict[str, Any]:
    """The attributes of a span or a log record as it was sent."""
    return {attribute.key: content(attribute.value) for attribute in record.attributes}


def content(value: Any) -> Any:
    """What a value on the wire says."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [content(each) for each in value.array_value.values]
    return getattr(value, kind) if kind else None


LACKING = object()
# What becomes of each odd attribute: of a log record in the store, of a span there, of either on the wire.
VALUES = {
    "nan": math.nan, "infinite": math.inf, "negative": -math.inf,
    "huge": 2**80, "hugely negative": -(2**80), "just too large": 2**63, "long": "x" * 10_000_000,
    "bytes": "ff00fe", "surrogate": "a\ud800z", "mixed": [1, "a", None], "huge ones": [2**80, 1],
    "nested": {"a": {"b": [2**80, math.nan, "\udfff"]}},
    "tensor": "float32[3] cpu", "object": "<object>", "class": "<type>", "itself": [1, "<list>"],
}  # fmt: skip
OF_SPANS = {"tensor": "tensor([1., 1., 1.])", "object": None, "class": "<class 'tiny.Tiny'>", "itself": LACKING}
ON_THE_WIRE = {
    **dict.fromkeys(("huge", "hugely negative", "just too large", "surrogate", "huge ones", "nested"), LACKING),
    "bytes": b"\xff\x00\xfe",
}


SECRETS = {
    "argument": "arg0tr0ub4dor3argument",
    "word": "w0rdtr0ub4dor3word",
    "variable": "v4rtr0ub4dor3variable",
    "url": "ur1tr0ub4dor3url",
    "header": "h34dtr0ub4dor3header",
    "exception": "3xctr0ub4dor3exception",
    "log": "l0gtr0ub4dor3log",
    "span": "5pantr0ub4dor3span",
}


def test_secrets(tmp_path: Path) -> None:
    """Secrets of arguments, variables, headers, exceptions, extras, attributes are neither stored, sent nor printed."""
    with Receiver() as receiver:
        ours = run(
            INSTRUMENT,
            "confidential.py",
            f"--api-key={SECRETS['argument']}",
            "--token",
            SECRETS["word"],
            f"--database=postgres://reader:{SECRETS['url']}@db:5432/runs",
            cwd=tmp_path,
            OTEL_ML_DIR=str(tmp_path / "runs"),
            OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint,
            **ALL,
            OTEL_EXPORTER_OTLP_HEADERS=f"authorization=Bearer%20{SECRETS['header']}",
            OTEL_EXPERIMENTAL_RESOURCE_DETECTORS="process,os,host",
            TRACKER_TOKEN=SECRETS["variable"],
            PASSWORD_FOR_TEST=SECRETS["exception"],
            PASSWORD_FOR_LOG=SECRETS["log"],
            PASSWORD_FOR_SPAN=SECRETS["span"],
        )

    assert ours.code == 1
    stored = b"".join(path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file())
    sent = b"".join(body for _, body in receiver.bodies)
    assert b"ConnectionError" in stored
    assert b"ConnectionError" in sent
    assert [name in sent for name in (b"api_key", b"password", b"reader")] == [True] * 3
    assert b"confidential.py" in sent
    assert [kind for kind, secret in SECRETS.items() if secret.encode() in stored] == []
    assert [kind for kind, secret in SECRETS.items() if secret.encode() in sent] == []
    traceback, _, summary = ours.stderr.partition("━━ confidential ━")
    assert SECRETS["exception"] in traceback  # Python's own, as ever
    assert summary
    assert not [kind for kind, secret in SECRETS.items() if secret in summary]
