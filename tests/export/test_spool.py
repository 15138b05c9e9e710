"""What an endpoint did not acknowledge is sent once, in order, and what it refuses is set aside and shown."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from otel_ml.export.spool import Spool, replay, ways
from otel_ml.store import outbox
from otel_ml.store.ledger import Ledger
from otel_ml.store.reader import undelivered
from otel_ml.store.schema import migrate
from tests.export.far import TAKEN, Answer, Far, recorded
from tests.store.conftest import Program

if TYPE_CHECKING:
    from pathlib import Path

    from otel_ml.export.spool import Report

NOTHING = {"spans": 0, "logs": 0, "points": 0}
ALL = {"spans": 3, "logs": 2, "points": 2}  # the counter is collected when the program flushes, and at its end


def sent_to(far: Far, path: Path, **options: Any) -> Report:
    """What comes of sending a file's records there."""
    found = ways({}, far.endpoint)
    try:
        return replay(path, found, **options)
    finally:
        for way in found.values():
            way.close()


# --- after the end --------------------------------------------------------------------------


def test_what_is_left_is_sent_in_order_and_once(tmp_path: Path) -> None:
    """A replay sends everything, the oldest first, and a second one nothing."""
    path = recorded(tmp_path)
    with Far() as far:
        first, second = sent_to(far, path), sent_to(far, path)

    assert (first.sent, second.sent) == (ALL, NOTHING)
    assert (far.spans(), far.logs(), far.points()) == (["s0", "s1", "s2"], ["ml.step", "ml.step"], {"steps": 2})
    assert undelivered(path).left == NOTHING


def test_records_come_with_their_resource_and_scope(tmp_path: Path) -> None:
    """A request is whole: whose its records are, by which scope, with the schema URLs."""
    path = recorded(tmp_path, spans=1)
    with Far() as far:
        sent_to(far, path)

    (outer,) = next(request for signal, request in far.taken if signal == "spans").resource_spans
    (inner,) = outer.scope_spans
    assert {a.key: a.value.string_value for a in outer.resource.attributes}["ml.run.id"] == "run-1"
    assert (outer.schema_url, inner.schema_url) == ("https://example.test/schema", "https://example.test/scope")
    assert (inner.scope.name, inner.scope.version, [span.name for span in inner.spans]) == ("otel_ml", "1.0", ["s0"])


def test_what_had_no_endpoint_is_sent_when_that_is_asked(tmp_path: Path) -> None:
    """A run recorded with no endpoint at all is left alone, until its owner says otherwise."""
    path = recorded(tmp_path, owed=False)
    with Far() as far:
        unasked, asked = sent_to(far, path), sent_to(far, path, unasked=True)

    assert (unasked.sent, asked.sent) == (NOTHING, ALL)


def test_a_file_of_an_older_version_is_sent_too(tmp_path: Path) -> None:
    """It knows of no endpoint, so its records are as of a run that had none."""
    path = recorded(tmp_path)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("DROP TABLE deliveries")
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    before = undelivered(path)
    with Far() as far:
        unasked, asked = sent_to(far, path), sent_to(far, path, unasked=True)

    assert (before.left, unasked.sent, asked.sent) == (NOTHING, NOTHING, ALL)


@pytest.mark.parametrize("status", [429, 503])
def test_an_endpoint_is_left_alone_as_long_as_it_says(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Retry-After` is waited for where there is time, and then everything arrives once."""
    path = recorded(tmp_path)
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    answers = [(status, {"Retry-After": "100"}, b""), (status, {"Retry-After": "7"}, b"")]
    with Far(lambda _signal, _request: answers.pop(0) if answers else TAKEN) as far:
        report = sent_to(far, path, wait_s=1000)

    assert (report.sent, report.trouble) == (ALL, "")
    assert far.spans() == ["s0", "s1", "s2"]
    assert [wait >= least for wait, least in zip(waits, (100, 7), strict=True)] == [True, True]


def test_nobody_waits_longer_than_asked(tmp_path: Path) -> None:
    """Where the endpoint wants to be left alone for longer, all of it stays and the reason is told."""
    path = recorded(tmp_path)
    with Far(lambda _signal, _request: (503, {"Retry-After": "100"}, b"tired")) as far:
        report = sent_to(far, path, wait_s=1)

    assert (report.sent, report.refused) == (NOTHING, NOTHING)
    assert report.trouble == f"{far.endpoint}/v1/traces: 503 tired"
    assert undelivered(path).left == ALL


def poison(signal: str, request: Any) -> Answer:
    """The endpoint takes no request that has span s13 in it."""
    spans = (
        [s.name for o in request.resource_spans for i in o.scope_spans for s in i.spans] if signal == "spans" else []
    )
    return (400, {}, b"no s13") if "s13" in spans else TAKEN


def test_the_record_that_is_refused_is_found_and_set_aside(tmp_path: Path) -> None:
    """Of a batch with one record that the endpoint refuses, all others arrive once; that one is counted and shown."""
    path = recorded(tmp_path, spans=40)
    with Far(poison) as far:
        first, second = sent_to(far, path), sent_to(far, path)
        found = undelivered(path)
        far.answer = lambda _signal, _request: TAKEN
        again = sent_to(far, path, again=True)

    assert (first.sent["spans"], first.refused["spans"], first.trouble) == (39, 1, "")
    assert first.reasons == {"spans": "400 no s13"}
    assert (second.sent, second.refused) == (NOTHING, NOTHING)
    assert (found.left["spans"], found.refused["spans"], found.reasons) == (0, 1, {"spans": "400 no s13"})
    assert (again.sent["spans"], undelivered(path).refused["spans"]) == (1, 0)
    assert far.spans() == [*(f"s{n}" for n in range(40) if n != 13), "s13"]


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_an_endpoint_that_takes_nothing_costs_no_record(status: int, tmp_path: Path) -> None:
    """Where not even an empty request is taken, it is not the records' fault: all stay, and the answer is told."""
    path = recorded(tmp_path)
    with Far(lambda _signal, _request: (status, {}, b"who are you?")) as far:
        report = sent_to(far, path)

    assert (report.sent, report.refused, report.trouble) == (
        NOTHING,
        NOTHING,
        f"{far.endpoint}/v1/traces: {status} who are you?",
    )
    assert undelivered(path).left == ALL
    assert len(far.asked) <= 2


def test_what_was_taken_in_part_is_not_sent_again(tmp_path: Path) -> None:
    """An endpoint that takes a request but for some records names none: they count as refused, with its words."""
    path = recorded(tmp_path)
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = 2
    answer.partial_success.error_message = "too old"
    with Far(lambda signal, _: (200, {}, answer.SerializeToString() if signal == "spans" else b"")) as far:
        first, second = sent_to(far, path), sent_to(far, path)

    assert (first.sent["spans"], first.refused["spans"], first.reasons["spans"]) == (1, 2, "too old")
    assert second.sent == NOTHING


def test_two_replays_at_once_send_nothing_twice(tmp_path: Path) -> None:
    """Two that work on the same file share the work."""
    path = recorded(tmp_path, spans=1500)
    reports: list[Report] = []
    with Far() as far:
        both = [threading.Thread(target=lambda: reports.append(sent_to(far, path))) for _ in range(2)]
        for each in both:
            each.start()
        for each in both:
            each.join()

    assert sum(report.sent["spans"] for report in reports) == 1500
    assert len(far.spans()) == len(set(far.spans())) == 1500
    assert undelivered(path).left == NOTHING


def test_headers_and_compression_are_as_opentelemetry_says(tmp_path: Path) -> None:
    """The signal's own variables come before those of all signals."""
    path = recorded(tmp_path)
    environ = {
        "OTEL_EXPORTER_OTLP_HEADERS": "tenant=all",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "tenant=traces,key=a%20b",
    }
    with Far() as far:
        environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = far.endpoint
        found = ways(environ)
        replay(path, found)
        for way in found.values():
            way.close()

    told = [
        (signal, headers.get("tenant"), headers.get("key"))
        for (signal, _), headers in zip(far.asked, far.headers, strict=True)
    ]
    assert told == [("spans", "traces", "a b"), ("logs", "all", None), ("points", "all", None)]


# --- while a process runs -------------------------------------------------------------------


def wait_for(condition: Any) -> None:
    """Return when it holds."""
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_running_process_sends_what_its_exporter_gave_up(tmp_path: Path) -> None:
    """What an exporter gave up is sent by itself, as late as the endpoint asks; what is in flight is not touched."""
    answers = [(503, {"Retry-After": "2"}, b"")]
    with Far(lambda _signal, _request: answers.pop() if answers else TAKEN) as far:
        program = Program(tmp_path)
        ledger = program.writer.ledger = Ledger(["spans"])
        Spool(program.writer, {"OTEL_EXPORTER_OTLP_ENDPOINT": far.endpoint})
        made = [program.tracer.start_span(f"s{number}") for number in range(4)]
        for span in made:
            span.end()
        program.spans.force_flush()
        ids = [(span.get_span_context().trace_id, span.get_span_context().span_id) for span in made]
        ledger.told("spans", ids[:2], arrived=False)
        wait_for(far.spans)
        ledger.told("spans", ids[2:], arrived=True)
        program.end()

    assert far.spans() == ["s0", "s1"]
    moments = [moment for _, moment in far.asked]
    assert moments[1] - moments[0] >= 2
    assert program.writer.path is not None
    assert undelivered(program.writer.path).left["spans"] == 0


class Asked(dict[str, str]):
    """Variables that count how often one of them is looked for."""

    times = 0

    def get(self, key: str, default: Any = None) -> Any:
        self.times += key == "OTEL_EXPORTER_OTLP_CERTIFICATE"
        return super().get(key, default)


def test_a_setting_that_cannot_be_is_told_once_and_costs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """However often the spool tries, a certificate that is not there is told once, and all is kept for a replay."""
    program = Program(tmp_path)
    ledger = program.writer.ledger = Ledger(["spans"])
    missing = tmp_path / "missing.pem"
    variables = Asked(
        OTEL_EXPORTER_OTLP_ENDPOINT="https://127.0.0.1:9", OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
        OTEL_EXPORTER_OTLP_CERTIFICATE=str(missing),
    )  # fmt: skip
    spool = Spool(program.writer, variables)
    made = [program.tracer.start_span(f"s{number}") for number in range(3)]
    for span in made:
        span.end()
    program.spans.force_flush()
    ids = [(span.get_span_context().trace_id, span.get_span_context().span_id) for span in made]
    ledger.told("spans", ids, arrived=False)
    wait_for(lambda: variables.times >= 2)
    spool.stop()
    assert spool._thread is not None
    spool._thread.join(30)
    program.end()

    told = (
        f"{missing} cannot be read (No such file or directory); it is named by OTEL_EXPORTER_OTLP_*CERTIFICATE or _KEY"
    )
    assert [record.getMessage() for record in caplog.records] == [f"otel-ml: spans cannot be sent again: {told}."]
    assert program.writer.path is not None
    with Far() as far:
        sent_to(far, program.writer.path)
    assert far.spans() == ["s0", "s1", "s2"]


def test_a_timeout_that_is_no_number_is_none(tmp_path: Path) -> None:
    """What waits is sent as if no timeout were set."""
    path = recorded(tmp_path)
    with Far() as far:
        found = ways({"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, far.endpoint)
        report = replay(path, found)
        for way in found.values():
            way.close()

    assert (report.sent, report.trouble) == (ALL, "")


def test_what_was_given_up_before_it_was_written_is_sent_too(tmp_path: Path) -> None:
    """Records that the store held back until the first step, while their export failed, are sent by and by."""
    with Far() as far:
        program = Program(tmp_path, gate=False)
        ledger = program.writer.ledger = Ledger(["spans"])
        Spool(program.writer, {"OTEL_EXPORTER_OTLP_ENDPOINT": far.endpoint})
        made = [program.tracer.start_span(f"s{number}") for number in range(2)]
        for span in made:
            span.end()
        program.spans.force_flush()
        ids = [(span.get_span_context().trace_id, span.get_span_context().span_id) for span in made]
        ledger.told("spans", ids, arrived=False)
        ledger.told("spans", [(1, 1)], arrived=True)
        time.sleep(2)  # the spool looks, and finds nothing to send
        program.writer.open_gate()
        program.tracer.start_span("s2").end()
        program.spans.force_flush()
        wait_for(far.spans)
        program.end()

    assert far.spans() == ["s0", "s1"]


def test_a_damaged_record_holds_up_no_other(tmp_path: Path) -> None:
    """Bytes on disk that are no record are set aside as such; what stands around them is sent."""
    path = recorded(tmp_path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE spans SET otlp = x'ff' WHERE name = 's1'")
    with Far() as far:
        report = sent_to(far, path)

    assert (report.sent, report.refused["spans"]) == ({**ALL, "spans": 2}, 1)
    assert report.reasons == {"spans": "damaged on disk"}
    assert far.spans() == ["s0", "s2"]


def test_deleted_rows_that_were_never_sent_have_a_count_of_their_own(tmp_path: Path) -> None:
    """At the file's cap the oldest rows go; those the endpoint lacks are counted apart."""
    program = Program(tmp_path, run_bytes=300_000)
    ledger = program.writer.ledger = Ledger(["spans"])
    arrived = 0
    for turn in range(8):
        made = [program.tracer.start_span(f"s{number}", attributes={"text": "x" * 200}) for number in range(100)]
        for span in made:
            span.end()
        program.spans.force_flush()
        if turn < 4:
            ids = [(span.get_span_context().trace_id, span.get_span_context().span_id) for span in made]
            ledger.told("spans", ids, arrived=True)
            arrived += 100
    program.end()

    assert program.writer.path is not None
    drops = program.writer.dropped()
    with sqlite3.connect(program.writer.path) as connection:
        (kept,) = connection.execute("SELECT count(*) FROM spans").fetchone()
    connection.close()
    assert drops["spans run_bytes"] + drops.get("spans unsent", 0) + kept == 800
    assert undelivered(program.writer.path).left["spans"] + drops.get("spans unsent", 0) == 400
    assert drops["spans run_bytes"] <= arrived


# --- which rows -----------------------------------------------------------------------------

NUMBERS = st.lists(st.integers(1, 60), max_size=40)


@given(st.lists(st.tuples(st.sampled_from(["acknowledged", "refused"]), NUMBERS), max_size=8))
def test_ranges_say_what_was_said_of_each_row(said: list[tuple[str, list[int]]]) -> None:
    """However rows are marked, what is left is what was neither taken nor refused, and touching ranges are one."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection)
    outbox.owe(connection, "spans", 11)
    taken: set[int] = set()
    refused: set[int] = set()
    for state, ids in said:
        outbox.mark(connection, "spans", state, set(ids), None if state == "acknowledged" else "no")
        if state == "acknowledged":
            taken |= set(ids)
            refused -= set(ids)
        else:
            refused |= set(ids)

    def rows(**options: Any) -> set[int]:
        return {
            n for first, last in outbox.gaps(connection, "spans", **options) for n in range(first, min(last, 60) + 1)
        }

    assert rows() == set(range(11, 61)) - taken - refused
    assert rows(unasked=True) == set(range(1, 61)) - taken - refused
    assert rows(again=True) == (set(range(11, 61)) | refused) - taken
    ranges = connection.execute(
        "SELECT first, last FROM deliveries WHERE state = 'acknowledged' ORDER BY first"
    ).fetchall()
    assert ranges == list(outbox.runs(taken))
    connection.close()


# --- which records arrived ------------------------------------------------------------------


def spans_of(numbers: range) -> list[tuple[int, int]]:
    """What spans are known by."""
    return [(1, number) for number in numbers]


def test_it_is_the_same_whether_the_store_or_the_endpoint_was_first() -> None:
    """A record is acknowledged once both have told of it."""
    ledger = Ledger(["spans"])
    ledger.stored("spans", list(enumerate(spans_of(range(1, 4)), 1)))
    ledger.told("spans", spans_of(range(2, 6)), arrived=True)
    first = ledger.take()
    ledger.stored("spans", list(enumerate(spans_of(range(4, 7)), 4)))

    assert (first, ledger.take()) == ({"spans": [2, 3]}, {"spans": [4, 5]})
    assert ledger.in_flight("spans") == {1, 6}


def test_what_failed_or_was_passed_by_twice_is_not_in_flight() -> None:
    """A failed batch is free to be sent, and so is what the SDK's queue dropped: two later batches were told of."""
    ledger = Ledger(["logs"])
    known_by = [{"n": n} for n in range(10)]  # by identity: equal ones are different records
    ledger.stored("logs", list(enumerate(known_by, 1)))
    ledger.told("logs", known_by[2:4], arrived=False)
    failed = ledger.in_flight("logs")
    ledger.told("logs", known_by[4:6], arrived=True)

    assert failed == {1, 2, 5, 6, 7, 8, 9, 10}
    assert ledger.in_flight("logs") == {5, 6, 7, 8, 9, 10}  # of these, two arrived and are not noted yet
    assert ledger.take() == {"logs": [5, 6]}
    assert ledger.failing == {"logs": False}


@pytest.mark.parametrize(
    ("told", "acknowledged"),
    [
        ([(15, True), (25, True), (35, True)], {1, 2, 3, 4, 5, 6}),
        ([(15, True), (25, False), (35, True)], {1, 2, 5, 6}),
        ([(15, False), (25, False), (35, True)], {5, 6}),
        ([(35, True)], {5, 6}),
        ([(25, True), (35, True)], {1, 2, 3, 4, 5, 6}),
    ],
    ids=["each", "one failed", "two failed", "one that was held up", "two between two"],
)
def test_a_collection_that_arrived_stands_for_the_one_or_two_before_it(
    told: list[tuple[int, bool]], acknowledged: set[int]
) -> None:
    """Collections of a time in which exports failed or were held up are left to be sent: no curve has a hole."""
    ledger = Ledger(["points"])
    stored = [(1, 2, 10), (3, 4, 20), (5, 6, 30)]
    for at, arrived in told:
        while stored and stored[0][2] < at:
            ledger.collected(*stored.pop(0))
        ledger.told_points(at, arrived=arrived)

    assert set(ledger.take().get("points", [])) == acknowledged
    assert ledger.in_flight("points") == set()
