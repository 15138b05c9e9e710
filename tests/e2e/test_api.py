"""What a program says itself, under each way in: in the right step, in the local store and behind a Collector."""

from __future__ import annotations

import ast
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.backends import ports
from tests.e2e.launching import LAUNCHERS, PLAIN, launch, recorded, step_records, totals
from tests.e2e.stack import soon

if TYPE_CHECKING:
    from tests.e2e.launching import Outcome
    from tests.e2e.stack import Stack

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
STEPS = 16  # two epochs of eight batches
WAYS = {
    **{name: (launcher, ()) for name, launcher in LAUNCHERS.items()},
    "configure()": (PLAIN, ("--configure",)),
}


def rings(way: str, folder: Path, **env: str) -> Outcome:
    """Run the example with three traced functions and two values a step."""
    launcher, words = WAYS[way]
    words = ("--epochs=2", *words)
    more: dict[str, Any] = {**env, "OTEL_ML_DIR": str(folder / "runs")}
    ended = launch(launcher, EXAMPLES / "decorators.py", *words, cwd=folder, **more)
    assert ended.code == 0, ended.stderr
    return ended


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_in_the_right_step(way: str, tmp_path: Path) -> None:
    """Traced calls are children of the step they were made in and values in its record, whatever began to record."""
    plain = launch(PLAIN, EXAMPLES / "decorators.py", "--epochs=2", cwd=tmp_path)
    ended = rings(way, tmp_path)
    assert ended.stdout == plain.stdout
    rows = step_records(tmp_path / "runs")
    assert [row["ml.step.number"] for row in rows] == list(range(STEPS))
    for row in rows:
        assert row["ml.step.scalar.train/loss"] == row["ml.training.loss"]
        assert 0 <= row["ml.step.scalar.train/accuracy"] <= 1
    store = recorded(tmp_path / "runs")
    spans = list(store.spans())
    steps = {span.span_id: span for span in spans if span.name == "ml.step"}
    assert sorted(span.attributes["ml.step.number"] for span in steps.values()) == list(range(STEPS))
    for name, function in (("augment", "augment"), ("train", "train")):
        mine = [span for span in spans if span.name == name]
        parents = [steps[str(span.parent_span_id)] for span in mine]
        assert sorted(step.attributes["ml.step.number"] for step in parents) == list(range(STEPS))
        for span, step in zip(mine, parents, strict=True):
            assert span.attributes["ml.step.number"] == step.attributes["ml.step.number"]
            assert span.attributes["code.function.name"] == f"__main__.{function}"
            assert step.start_unix_ns <= span.start_unix_ns < span.end_unix_ns <= step.end_unix_ns
    evaluations = [span for span in spans if span.name == "evaluate"]
    assert [span.parent_span_id for span in evaluations] == [None, None]
    told = [dict(log.attributes) for log in store.logs(event="ml.scalars")]
    assert [one["ml.step.number"] for one in told] in ([7, 15], [[7, 15]])
    (event,) = store.logs(event="rings.told_apart")
    assert set(event.attributes) == {"accuracy"}
    assert totals(tmp_path / "runs").scalars["train/loss"].count == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("way", ["opentelemetry-instrument", "configure()"])
def test_behind_a_collector(way: str, stack: Stack, tmp_path: Path) -> None:
    """The same are in Prometheus, Jaeger and Loki, under the run's id."""
    run, service = ("api-configured", "rings") if way == "configure()" else ("api-launched", "api-launched")
    rings(way, tmp_path, OTEL_ML_RUN_ID=run, OTEL_SERVICE_NAME=run, OTEL_EXPORTER_OTLP_ENDPOINT=stack.endpoint)
    (last,) = [row for row in step_records(tmp_path / "runs") if row["ml.step.number"] == STEPS - 1]
    query = f'ml_training_scalar{{ml_run_id="{run}", ml_scalar_name="train/loss"}}'
    assert soon(lambda: stack.value(query)) == last["ml.step.scalar.train/loss"]
    accuracy = f'ml_training_scalar{{ml_run_id="{run}", ml_scalar_name="accuracy", ml_split="validation"}}'
    assert soon(lambda: stack.value(accuracy)) == totals(tmp_path / "runs").scalars["validation/accuracy"].last
    traces = soon(lambda: found if len(found := stack.traces(service, "train")) == STEPS else [])
    assert len(traces) == STEPS
    for trace in traces:
        (step,) = (span for span in trace if span["name"] == "ml.step")
        mine = [span for span in trace if span["name"] in ("augment", "train")]
        assert [span["parents"] for span in mine] == [[step["id"]]] * 2
    lines = soon(lambda: stack.loki(f'{{service_name="{service}"}} | event_name="rings.told_apart"'))
    assert [labels["accuracy"] for labels, _ in lines]
    values = stack.loki(f'{{service_name="{service}"}} | event_name="ml.scalars"')
    assert [labels["ml_run_id"] for labels, _ in values][:1] == [run]


@pytest.mark.slow
def test_a_loop_of_ones_own(tmp_path: Path) -> None:
    """A training that no framework knows of has steps, phases, data waits, an evaluation and a checkpoint."""
    ended = launch(
        LAUNCHERS["otel-ml run"], EXAMPLES / "custom_loop.py", "--steps=20", cwd=tmp_path,
        OTEL_ML_DIR=str(tmp_path / "runs"), TMPDIR=str(tmp_path),
    )  # fmt: skip
    assert ended.code == 0, ended.stderr
    found = totals(tmp_path / "runs")
    assert (found.steps, found.evaluations, found.checkpoints_saved, found.epochs) == (40, 2, 1, 2)
    assert (found.samples, set(found.phases)) == (40 * 32, {"data_wait", "forward", "backward", "residual"})
    assert {name: curve.count for name, curve in found.scalars.items()} == {"loss": 40, "norm": 40, "test/accuracy": 2}
    rows = step_records(tmp_path / "runs")
    assert [row["ml.epoch.number"] for row in rows] == [0] * 20 + [1] * 20


@pytest.mark.slow
def test_a_notebook(tmp_path: Path) -> None:
    """Cells that train are recorded without a launcher, and the summary is there without an end."""
    ended = launch(PLAIN, EXAMPLES / "notebook.py", cwd=tmp_path, OTEL_ML_DIR=str(tmp_path / "runs"))
    assert ended.code == 0, ended.stderr
    assert "● running" in ended.stdout
    assert "✓ finished" in ended.stderr
    assert "steps       36\n" in ended.stdout
    (config,) = (log for log in recorded(tmp_path / "runs").logs(event="ml.config") if "ml.run.name" in log.attributes)
    assert dict(config.attributes) == {"ml.run.name": "another rate", "ml.config.value.lr": 0.2, "ml.step.number": 15}


LATE = """\
import json
import torch

model = torch.nn.Linear(8, 1)
optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
loader = torch.utils.data.DataLoader(torch.randn(64, 8), batch_size=4)

import otel_ml

first = otel_ml.configure(exporter="local")
assert otel_ml.configure() is first
for batch in loader:
    optimizer.zero_grad()
    model(batch).square().mean().backward()
    optimizer.step()
    scheduler.step()
print("truth", json.dumps({"rate": scheduler.get_last_lr()}))
otel_ml.shutdown()
otel_ml.record("too late", 1)
"""


def test_configured_late(tmp_path: Path) -> None:
    """A model, an optimizer, its scheduler and a loader of before `configure()` are seen, and work as ever."""
    program = tmp_path / "late.py"
    program.write_text(LATE, encoding="utf-8")
    ended = launch(PLAIN, program, cwd=tmp_path, OTEL_ML_DIR=str(tmp_path / "runs"))
    assert ended.code == 0, ended.stderr
    assert ended.truth == {"rate": [0.005000000000000001]}
    found = totals(tmp_path / "runs")
    assert (found.steps, found.samples, found.scalars) == (16, 64, {})
    rates = [row["ml.training.learning_rate"] for row in step_records(tmp_path / "runs")]
    assert json.dumps(sorted(set(rates))) == "[0.005000000000000001, 0.05]"


LATE_JAX = """\
import jax, jax.numpy as jnp
from torch import save
import otel_ml

@jax.jit
def train(weights, x):
    loss, slope = jax.value_and_grad(lambda w: jnp.square(x @ w).mean())(weights)
    return weights - 0.1 * slope, loss

weights = jnp.ones(4)
weights, loss = train(weights, jnp.ones((8, 4)))
otel_ml.configure(exporter="local")
for _ in range(6):
    weights, loss = train(weights, jnp.ones((8, 4)))
    otel_ml.record("mine", loss)
"""


def test_jax_configured_late(tmp_path: Path) -> None:
    """A function that JAX had compiled before `configure()` is seen; what was imported by its name is told."""
    program = tmp_path / "late.py"
    program.write_text(LATE_JAX, encoding="utf-8")
    ended = launch(PLAIN, program, cwd=tmp_path, OTEL_ML_DIR=str(tmp_path / "runs"))
    assert ended.code == 0, ended.stderr
    (said,) = (line for line in ended.stderr.splitlines() if "imported by its name" in line)
    assert said == (
        "otel-ml: configure() came after `save` was imported by its name: its calls are not seen. "
        "Call it by its module's name, or configure() first."
    )
    rows = step_records(tmp_path / "runs")
    assert [row["ml.step.scalar.mine"] for row in rows] == [row["ml.training.loss"] for row in rows]
    assert len(rows) == 6


SCRAPED = """\
import urllib.request
import otel_ml

otel_ml.configure(exporter="prometheus", endpoint="127.0.0.1:{first}")
for n in range(3):
    with otel_ml.step():
        otel_ml.record("n", n)
for _ in range(2):
    assert otel_ml.flush()
    with urllib.request.urlopen("http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    print([line for line in lines if line.startswith(("ml_training_steps_total", "ml_training_scalar"))])
"""


def test_prometheus(tmp_path: Path) -> None:
    """The second rank's scrape endpoint is at the next port; it tells each series once, however often it is flushed."""
    (port,) = ports(1)
    program = tmp_path / "scraped.py"
    program.write_text(SCRAPED.format(first=int(port) - 1, port=port), encoding="utf-8")
    ended = launch(PLAIN, program, cwd=tmp_path, OTEL_ML_DIR=str(tmp_path / "runs"), LOCAL_RANK="1", RANK="1")
    assert ended.code == 0, ended.stderr
    once, again = ended.stdout.splitlines()
    assert once == again
    assert [line.split("{")[0] for line in ast.literal_eval(once)] == ["ml_training_steps_total", "ml_training_scalar"]
    assert [line.split()[-1] for line in ast.literal_eval(once)] == ["3.0", "2.0"]


def test_zipkin(tmp_path: Path) -> None:
    """Zipkin gets the spans, as JSON, at its own path."""
    asked: list[tuple[str, list[dict[str, Any]]]] = []

    class Zipkin(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(202)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Zipkin) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        program = tmp_path / "once.py"
        program.write_text(
            f"import otel_ml\notel_ml.configure(exporter='zipkin', endpoint='http://127.0.0.1:{server.server_port}')\n"
            "with otel_ml.step(), otel_ml.span('mine'): pass\n",
            encoding="utf-8",
        )
        ended = launch(PLAIN, program, cwd=tmp_path, OTEL_ML_DIR=str(tmp_path / "runs"))
        server.shutdown()
    assert ended.code == 0, ended.stderr
    assert {path for path, _ in asked} == {"/api/v2/spans"}
    spans = {span["name"]: span for _, batch in asked for span in batch}
    assert set(spans) == {"mine", "ml.step", "ml.run"}
    assert spans["mine"]["parentId"] == spans["ml.step"]["id"]


@pytest.mark.parametrize("way", ["otel-ml run", "opentelemetry-instrument", "configure()"])
def test_a_wrong_configuration(way: str, tmp_path: Path) -> None:
    """A key that does not exist ends the program before it starts, with what to type."""
    file = tmp_path / "otel-ml.yaml"
    file.write_text("exportr: otlp\n", encoding="utf-8")
    launcher, words = WAYS[way]
    ended = launch(launcher, EXAMPLES / "decorators.py", *words, cwd=tmp_path, OTEL_ML_CONFIG=str(file))
    assert ended.code != 0
    assert ended.stdout == ""
    assert "exportr: there is no such key. Did you mean exporter?" in ended.stderr


@pytest.mark.parametrize("way", ["otel-ml run", "opentelemetry-instrument"])
def test_a_configuration_file(way: str, tmp_path: Path) -> None:
    """The file's keys hold under the launchers too."""
    file = tmp_path / "otel-ml.yaml"
    file.write_text(f"service_name: rings\nrun_name: by file\ndirectory: {tmp_path / 'elsewhere'}\n", encoding="utf-8")
    program = tmp_path / "once.py"
    program.write_text("import otel_ml\nwith otel_ml.step(): pass\n", encoding="utf-8")
    ended = launch(LAUNCHERS[way], program, cwd=tmp_path, OTEL_ML_CONFIG=str(file))
    assert ended.code == 0, ended.stderr
    resource = recorded(tmp_path / "elsewhere").resource()
    assert (resource["service.name"], resource["ml.run.name"]) == ("rings", "by file")
