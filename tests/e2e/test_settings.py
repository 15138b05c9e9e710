"""OpenTelemetry's own variables mean what its specification says, and ours what they say: in real processes."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import urllib.request
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

from otel_ml.core.identity import step_trace_id
from tests.e2e.launching import INSTRUMENT, LAUNCHERS, PROGRAMS, RUN, Outcome, environment, launch, plainly, recorded
from tests.e2e.receivers import Received, grpc_receiver, http_receiver, nested, orphans, steps_of_logs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STEPS = 15  # of the observed program


@pytest.fixture
def received() -> Iterator[Received]:
    """A running OTLP receiver over http/protobuf."""
    with http_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The observed program without us."""
    return plainly("observed.py", tmp_path_factory.mktemp("plain"))


def run(
    received: Received, directory: Path, *, launcher: tuple[str, ...] = RUN, program: str = "observed.py", **more: str
) -> Outcome:
    """Run a program that sends to this receiver and stores in `runs`, with more set in its environment."""
    variables = {
        "OTEL_ML_DIR": str(directory / "runs"),
        "OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": received.protocol,
        **more,
    }
    ended = launch(launcher, program, cwd=directory, timeout=120, **variables)
    sys.stderr.write(ended.stderr)  # shown where a test fails
    return ended


def stored(directory: Path) -> dict[str, int]:
    """How many rows of each signal the local store holds."""
    reader = recorded(directory / "runs")
    return {"traces": len(reader.spans()), "metrics": len(reader.points()), "logs": len(reader.logs())}


# --- samplers ------------------------------------------------------------------------------


def sampled(run_id: str, attempt: int, ratio: float) -> set[int]:
    """The steps whose trace the ratio sampler keeps, by its own rule."""
    sampler = TraceIdRatioBased(ratio)
    ids = {number: step_trace_id(run_id, attempt, number) for number in range(STEPS)}
    return {
        number for number, trace_id in ids.items()
        if sampler.should_sample(None, trace_id, "ml.step").decision is Decision.RECORD_AND_SAMPLE
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sampler", "ratio", "program", "launcher"),
    [
        ("always_on", 1.0, "user_spans.py", "opentelemetry-instrument"),
        ("always_off", 0.0, "observed.py", "otel-ml run"),
        ("traceidratio", 0.5, "observed.py", "opentelemetry-instrument"),
        ("traceidratio", 0.5, "user_spans.py", "otel-ml run"),
        ("parentbased_traceidratio", 0.25, "observed.py", "otel-ml run"),
    ],
)
def test_sampler(sampler: str, ratio: float, program: str, launcher: str, received: Received, tmp_path: Path) -> None:
    """A step and the program's own spans in it are kept or dropped together, and nothing lacks its parent."""
    ended = run(
        received, tmp_path, launcher=LAUNCHERS[launcher], program=program, OTEL_ML_RUN_ID="sampled",
        OTEL_TRACES_SAMPLER=sampler, OTEL_TRACES_SAMPLER_ARG=str(ratio),
    )  # fmt: skip

    truth = ended.truth
    kept = sampled("sampled", 0, ratio) & set(range(truth["steps"]))
    assert 0 < len(kept) < truth["steps"] or ratio in {0.0, 1.0}
    steps = [span for span in received.spans if span.name == "ml.step"]
    assert sorted(step.attributes["ml.step.number"] for step in steps) == sorted(kept)
    assert {s.attributes["ml.step.number"]: s.trace_id for s in steps} == {
        number: format(step_trace_id("sampled", 0, number), "032x") for number in kept
    }
    assert orphans(received.spans) == []
    found = nested(received.spans)
    own = [tuple(span) for span in truth["spans"]]
    assert [span for span in found if span[1] is not None] == sorted((span for span in own if span[1] in kept), key=str)
    outside = Counter(span for span in found if span[1] is None)
    if ratio == 1:
        assert outside == Counter(span for span in own if span[1] is None)
    assert outside <= Counter((name, None, around) for name, step, around in own if step not in kept)
    assert {(s.trace_id, s.span_id) for s in recorded(tmp_path / "runs").spans()} == {
        (s.trace_id, s.span_id) for s in received.spans
    }


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_logs_and_metrics_are_not_sampled(ratio: float, received: Received, tmp_path: Path) -> None:
    """Whatever the sampler drops, each log record is sent with its step and trace, and metrics count every step."""
    ended = run(
        received, tmp_path, OTEL_ML_RUN_ID="sampled", OTEL_TRACES_SAMPLER="traceidratio",
        OTEL_TRACES_SAMPLER_ARG=str(ratio),
    )  # fmt: skip

    inside = {body: step for body, step in ended.truth["logs"] if step is not None}
    own = {log.body: log for log in received.logs if log.scope == "program"}
    assert sorted(own) == sorted(body for body, _ in ended.truth["logs"])
    assert {body: (own[body].attributes["ml.step.number"], own[body].trace_id) for body in inside} == {
        body: (step, format(step_trace_id("sampled", 0, step), "032x")) for body, step in inside.items()
    }
    assert received.totals("ml.training.steps") == {"ml.outcome=ok": STEPS}
    assert received.totals("ml.training.step.duration") == {"ml.framework.name=torch": STEPS}
    assert [log.event for log in received.logs if log.event.startswith("ml.run.")] == [
        "ml.run.started", "ml.run.finished",
    ]  # fmt: skip


# --- exporters -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signal", "launcher"),
    [("traces", "otel-ml run"), ("metrics", "opentelemetry-instrument"), ("logs", "otel-ml run")],
)
def test_none(signal: str, launcher: str, received: Received, plain: Outcome, tmp_path: Path) -> None:
    """`none` as a signal's exporter: it is neither sent nor stored, and the other two are."""
    ended = run(
        received, tmp_path, launcher=LAUNCHERS[launcher],
        **{f"OTEL_{signal.upper()}_EXPORTER": "none", "OTEL_ML_SUMMARY": "0" if signal == "metrics" else "1"},
    )  # fmt: skip

    assert (ended.stdout, ended.code) == (plain.stdout, plain.code)
    others = sorted({"traces", "metrics", "logs"} - {signal})
    assert received.sent() == others
    assert sorted(name for name, rows in stored(tmp_path).items() if rows) == others
    if signal == "metrics":
        assert ended.stderr == ""
    else:
        assert f"steps       {STEPS}\n" in ended.stderr


def documents(text: str) -> list[dict[str, Any]]:
    """The JSON documents in a text, whatever stands between them."""
    decoder = json.JSONDecoder()
    found = []
    at = 0
    while (start := text.find("{\n", at)) >= 0:
        document, at = decoder.raw_decode(text, start)
        found.append(document)
    return found


def test_console(tmp_path: Path) -> None:
    """The console exporters print each signal, beside what the program prints."""
    console = {f"OTEL_{signal}_EXPORTER": "console" for signal in ("TRACES", "METRICS", "LOGS")}
    ended = launch(RUN, "observed.py", cwd=tmp_path, timeout=120, OTEL_ML_DIR=str(tmp_path / "runs"), **console)

    printed = documents(ended.stdout)
    spans = Counter(found["name"] for found in printed if "parent_id" in found)
    assert (spans["ml.step"], spans["batch"], spans["ml.run"]) == (STEPS, STEPS, 1)
    events = [found["event_name"] for found in printed if found.get("event_name")]
    assert {"ml.run.started", "ml.run.finished"} <= set(events)
    metrics = {
        metric["name"]
        for found in printed if "resource_metrics" in found
        for resource in found["resource_metrics"]
        for scope in resource["scope_metrics"]
        for metric in scope["metrics"]
    }  # fmt: skip
    assert {"ml.training.steps", "ml.training.step.duration", "ml.training.loss"} <= metrics
    assert f'{{"steps": {STEPS}, ' in ended.stdout  # the truth's line may have an exporter's words in it
    assert all(stored(tmp_path).values())


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_prometheus(received: Received, tmp_path: Path) -> None:
    """While the program runs, Prometheus can scrape it at the port asked for, and OTLP goes out at the interval."""
    port = free_port()
    variables = {
        "OTEL_ML_DIR": str(tmp_path / "runs"),
        "OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint,
        "OTEL_METRICS_EXPORTER": "prometheus,otlp",
        "OTEL_EXPORTER_PROMETHEUS_PORT": str(port),
        "OTEL_METRIC_EXPORT_INTERVAL": "200",
    }
    running = subprocess.Popen(
        [*RUN, str(PROGRAMS / "observed.py"), "wait"], cwd=tmp_path, env=environment(**variables),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with running:
        try:
            received.wait_for(lambda: received.totals("ml.training.steps") == {"ml.outcome=ok": STEPS})
            before = len(received.headers["metrics"])
            received.wait_for(lambda: len(received.headers["metrics"]) >= before + 3)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
                scraped = answer.read().decode()
            assert running.poll() is None
        finally:
            _, errors = running.communicate("\n", timeout=60)
    assert (running.returncode, "finished" in errors) == (0, True)
    samples = {}
    for line in scraped.splitlines():
        if match := re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
            samples[match[1], labels.get("ml_outcome") or labels.get("ml_phase") or labels.get("le", "")] = match[3]
    assert float(samples["ml_training_steps_total", "ok"]) == STEPS
    assert float(samples["ml_training_step_duration_seconds_count", ""]) == STEPS
    assert float(samples["ml_training_step_duration_seconds_bucket", "+Inf"]) == STEPS
    assert "ml_training_loss" in {name for name, _ in samples}
    assert 'ml_run_id="observed-' in next(line for line in scraped.splitlines() if line.startswith("target_info{"))


# --- the shape of metrics, and who says it -------------------------------------------------


def test_exponential_histograms_and_the_users_resource(received: Received, tmp_path: Path) -> None:
    """The standard switch gives exponential histograms with the totals of the explicit ones; the user's names win."""
    run(
        received, tmp_path, launcher=INSTRUMENT,
        OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION="base2_exponential_bucket_histogram",
        OTEL_RESOURCE_ATTRIBUTES="team=vision,service.instance.id=box-1,deployment.environment.name=lab",
        OTEL_SERVICE_NAME="trainer",
    )  # fmt: skip

    histograms = {point.name: point.kind for point in received.points if point.count is not None}
    assert "ml.training.step.duration" in histograms
    assert set(histograms.values()) == {"exponential_histogram"}
    assert [p.name for p in received.points if p.count is not None and p.in_buckets != p.count] == []
    exponential = {
        (p.name, str(sorted(p.attributes.items()))): (p.count, p.sum) for p in received.points if p.count is not None
    }
    points = [p for p in recorded(tmp_path / "runs").points(latest=True) if p.kind == "histogram"]
    explicit = {(p.name, str(sorted(p.attributes.items()))): (p.count, p.sum) for p in points}
    assert exponential == explicit
    assert exponential["ml.training.step.duration", "[('ml.framework.name', 'torch')]"][0] == STEPS

    expected = {
        "team": "vision",
        "service.instance.id": "box-1",
        "deployment.environment.name": "lab",
        "service.name": "trainer",
        "ml.run.name": "observed",
    }
    for different in received.resources().values():
        (resource,) = different
        assert {key: resource.get(key) for key in expected} == expected


def test_delta_temporality(tmp_path: Path) -> None:
    """With delta temporality, over grpc, every counter and histogram is a delta, and they add up to the truth."""
    with grpc_receiver() as received:
        run(
            received, tmp_path, OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE="delta",
            OTEL_METRIC_EXPORT_INTERVAL="5",
        )  # fmt: skip

        found = {(p.name, p.temporality) for p in received.points if p.kind != "gauge"}
        assert {name for name, temporality in found if temporality != "delta"} == set()
        assert received.totals("ml.training.steps") == {"ml.outcome=ok": STEPS}
        assert received.totals("ml.training.samples") == {"": 8 * STEPS}
        assert received.totals("ml.training.step.duration") == {"ml.framework.name=torch": STEPS}
    kinds = {(p.name, p.temporality) for p in recorded(tmp_path / "runs").points() if p.kind in {"sum", "histogram"}}
    assert {temporality for _, temporality in kinds} == {"cumulative"}


CONFIGURATION = """\
file_format: "1.0"
resource:
  attributes:
    - {name: service.name, value: from-the-file}
tracer_provider:
  processors:
    - batch: {exporter: {otlp_http: {endpoint: "ENDPOINT/v1/traces"}}}
  sampler: {parent_based: {root: {always_on: {}}}}
meter_provider:
  readers:
    - periodic: {interval: 1000, exporter: {otlp_http: {endpoint: "ENDPOINT/v1/metrics"}}}
logger_provider:
  processors:
    - batch: {exporter: {otlp_http: {endpoint: "ENDPOINT/v1/logs"}}}
"""


def test_configuration_file(received: Received, plain: Outcome, tmp_path: Path) -> None:
    """With a configuration file the providers are the file's: all signals go where it says, and the store joins."""
    file = tmp_path / "otel.yaml"
    file.write_text(CONFIGURATION.replace("ENDPOINT", received.endpoint), encoding="utf-8")
    ended = launch(
        RUN, "observed.py", cwd=tmp_path, timeout=120, OTEL_ML_DIR=str(tmp_path / "runs"), OTEL_CONFIG_FILE=str(file)
    )

    assert (ended.stdout, ended.code) == (plain.stdout, plain.code)
    assert received.sent() == ["logs", "metrics", "traces"]
    for different in received.resources().values():
        (resource,) = different
        assert resource["service.name"] == "from-the-file"
    assert orphans(received.spans) == []
    assert nested(received.spans) == sorted(map(tuple, ended.truth["spans"]), key=str)
    assert steps_of_logs(received.logs, received.spans) == sorted(map(tuple, ended.truth["logs"]), key=str)
    assert received.totals("ml.training.steps") == {"ml.outcome=ok": STEPS}
    reader = recorded(tmp_path / "runs")
    assert {(s.trace_id, s.span_id) for s in reader.spans()} == {(s.trace_id, s.span_id) for s in received.spans}
    assert {log.body for log in reader.logs()} == {log.body for log in received.logs}
    assert {p.name for p in reader.points()} == {p.name for p in received.points}
    assert f"steps       {STEPS}\n" in ended.stderr


OWN_VIEW = """\
import json

import torch
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View

from otel_ml import distro

reader = InMemoryMetricReader()
buckets = ExplicitBucketHistogramAggregation([0.0, 3600.0])
view = View(instrument_name="ml.training.step.duration", name="mine", attribute_keys=set(), aggregation=buckets)
metrics.set_meter_provider(MeterProvider([reader], views=[view]))
distro.configure()
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for _ in range(15):
    optimizer.zero_grad()
    model(torch.randn(4, 8)).square().mean().backward()
    optimizer.step()
distro.shutdown()
scopes = [scope for resource in reader.get_metrics_data().resource_metrics for scope in resource.scope_metrics]
points = [
    [metric.name, dict(point.attributes), getattr(point, "count", None), list(getattr(point, "bucket_counts", ()))]
    for scope in scopes for metric in scope.metrics for point in metric.data.data_points
]
print(json.dumps(points))
"""


def test_own_view(tmp_path: Path) -> None:
    """A View of the program's, on a meter provider of its own, makes exactly one stream: the one that it describes."""
    program = tmp_path / "own_view.py"
    program.write_text(OWN_VIEW, encoding="utf-8")
    ended = launch((sys.executable,), program, cwd=tmp_path, timeout=120, OTEL_ML_DIR=str(tmp_path / "runs"))

    assert ended.code == 0, ended.stderr
    points = json.loads(ended.stdout)
    assert [point for point in points if point[0] in {"mine", "ml.training.step.duration"}] == [
        ["mine", {}, STEPS, [0, STEPS, 0]]
    ]
    streams = Counter((name, str(sorted(attributes.items()))) for name, attributes, *_ in points)
    assert set(streams.values()) == {1}
    assert "duplicate" not in ended.stderr.lower()


# --- switched off --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value", "launcher"),
    [
        ("OTEL_SDK_DISABLED", "true", "otel-ml run"),
        ("OTEL_ML_ENABLED", "0", "otel-ml run"),
        ("OTEL_ML_ENABLED", "0", "opentelemetry-instrument"),
    ],
)
def test_off(variable: str, value: str, launcher: str, received: Received, plain: Outcome, tmp_path: Path) -> None:
    """Switched off, the program runs as if nobody had launched it: nothing is sent, stored or said."""
    ended = run(received, tmp_path, launcher=LAUNCHERS[launcher], **{variable: value})

    assert (ended.stdout, ended.stderr, ended.code) == (plain.stdout, plain.stderr, plain.code)
    assert received.sent() == []
    assert not (tmp_path / "runs").exists()


def test_disabled_instrumentation(received: Received, plain: Outcome, tmp_path: Path) -> None:
    """Without our instrumentation of torch the program's own telemetry is sent as it is, and no run is told of."""
    ended = run(received, tmp_path, OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="otel_ml_torch")

    assert (ended.stdout, ended.code) == (plain.stdout, plain.code)
    assert "ml.step" not in {span.name for span in received.spans}
    expected = sorted(((name, None, around) for name, _, around in ended.truth["spans"]), key=str)
    assert nested(received.spans) == expected
    assert orphans(received.spans) == []
    assert sorted(log.body for log in received.logs if log.scope == "program") == sorted(
        body for body, _ in ended.truth["logs"]
    )
    assert not {p.name for p in received.points if p.name.startswith("ml.training.")}
    assert not (tmp_path / "runs").exists()


# --- what cannot be ------------------------------------------------------------------------

STARTS = "print('started')\n"


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("OTEL_ML_STEPS_PER_SECOND", "fast", "Type OTEL_ML_STEPS_PER_SECOND=0.1, or unset it for 1.0."),
        ("OTEL_ML_SUMARY", "0", "there is no such setting. Did you mean OTEL_ML_SUMMARY?"),
        ("OTEL_ML_VIEWS_DROP", "ml.trainig.loss", "(did you mean ml.training.loss?)"),
        ("OTEL_ML_VIEWS_EXPONENTIAL", "ml.training.loss", "no histogram of ours matches ml.training.loss"),
    ],
)
def test_refused(launcher: str, variable: str, value: str, said: str, tmp_path: Path) -> None:
    """A setting of ours that cannot be ends the launcher before the program starts, with what to type."""
    program = tmp_path / "starts.py"
    program.write_text(STARTS, encoding="utf-8")
    ended = launch(LAUNCHERS[launcher], program, cwd=tmp_path, timeout=60, **{variable: value})

    assert (ended.stdout, ended.code, len(ended.stderr.splitlines())) == ("", 2, 1)
    assert ended.stderr.startswith(f"otel-ml: {variable}")
    assert said in ended.stderr


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/jason", "no traces are sent; type 'http/protobuf' or 'grpc'."),
        ("OTEL_TRACES_EXPORTER", "jaegr", "Requested component 'jaegr' not found"),
        (
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "localhost:4318",
            "need a URL; nothing is sent there. Type OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://localhost:4318.",
        ),
    ],
)
def test_left_out(  # what the specification asks: a warning, and the value is ignored
    launcher: str, variable: str, value: str, said: str, received: Received, tmp_path: Path
) -> None:
    """An exporter that cannot be is told of in one line and left out; the other signals are sent, the store kept."""
    ended = run(received, tmp_path, launcher=LAUNCHERS[launcher], program="plain_loop.py", **{variable: value})

    assert ended.code == 0
    first, *others = ended.stderr.splitlines()
    assert first.startswith(f"otel-ml: {variable}={value}: ")
    assert said in first
    assert variable not in "".join(others)
    assert received.sent() == ["logs", "metrics"]
    assert all(stored(tmp_path).values())


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("OTEL_METRIC_EXPORT_INTERVAL", "10s", "need a number of milliseconds ≥ 1; it is ignored. Type {}=10000."),
        ("OTEL_ATTRIBUTE_COUNT_LIMIT", "x", "need a number ≥ 0; it is ignored. Type {}=128."),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0", "need a number ≥ 1; it is ignored. Type {}=2048."),
        ("OTEL_PYTHON_ID_GENERATOR", "foo", "it is ignored. Type random, or unset it."),
    ],
)
def test_ignored(  # as the specification asks
    launcher: str, variable: str, value: str, said: str, received: Received, tmp_path: Path
) -> None:
    """A value that OpenTelemetry cannot take is told in one line, with what to type, and counts as unset."""
    more = {variable: value, "OTEL_ML_SUMMARY": "0"}
    ended = run(received, tmp_path, launcher=LAUNCHERS[launcher], program="plain_loop.py", **more)

    assert (ended.code, len(ended.stderr.splitlines())) == (0, 1)
    assert ended.stderr.startswith(f"otel-ml: {variable}={value}: ")
    assert ended.stderr.endswith(f"{said.format(variable)}\n")
    assert received.sent() == ["logs", "metrics", "traces"]
    assert all(stored(tmp_path).values())


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_no_configuration_file(launcher: str, tmp_path: Path) -> None:
    """A configuration file that is none is told in one line, and the program runs unrecorded."""
    program = tmp_path / "starts.py"
    program.write_text(STARTS, encoding="utf-8")
    ended = launch(LAUNCHERS[launcher], program, cwd=tmp_path, timeout=60, OTEL_CONFIG_FILE="/nope.yaml")

    assert (ended.stdout, ended.code, len(ended.stderr.splitlines())) == ("started\n", 0, 1)
    assert ended.stderr.startswith("otel-ml: nothing is recorded: OTEL_CONFIG_FILE=/nope.yaml: ")
