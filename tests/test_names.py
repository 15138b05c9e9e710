"""The vocabulary is what is really emitted: ordinary torch programs, and every name that comes of them."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pytest
import torch
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import otel_ml
from otel_ml import errors, events, names
from otel_ml.core import runtime
from otel_ml.core.identity import Identity
from otel_ml.core.profiling import Profiler
from otel_ml.pipeline.instruments import Instruments
from otel_ml.pipeline.providers import Providers
from otel_ml.pipeline.resource import resource_of
from otel_ml.stack.path import emit
from otel_ml.testing import Captured, capture

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PACKAGE = Path(__file__).resolve().parent.parent / "otel_ml"

# What names.py holds and nothing emits yet, each with what will.
TO_COME = {
    "hw.id": "only a device that counts its memory has such metrics; a CPU does not",
}
METRICS_TO_COME = {
    "ml.memory.device.peak": "as above",
    "ml.training.mfu": "only where the device's peak is known",
}
# Attributes that a metric may carry and does not yet.
CARRIED_TO_COME = {
    ("ml.memory.allocated", "hw.id"): "as above",
    ("ml.memory.device.peak", "hw.id"): "as above",
    ("ml.memory.limit", "hw.id"): "as above",
    ("ml.training.grad_norm", "ml.optimizer"): "clipping does not say whose gradients they are",
}

# OpenTelemetry's own words, which we use where they are: nothing of ours is called by them.
CONVENTIONS = {"process.runtime.version", "host.name"}
CONVENTIONS_OF_RESOURCE = {
    "service.name", "service.instance.id", "telemetry.distro.name", "telemetry.auto.version",
    "telemetry.sdk.name", "telemetry.sdk.language", "telemetry.sdk.version",
}  # fmt: skip
# A step record holds the values of these metrics under the metric's name.
IN_RECORDS = {names.LOSS.name, names.GRAD_NORM.name, names.LEARNING_RATE.name}
PREFIXES = (
    names.STEP_PHASE,
    names.STEP_LOSS,
    names.STEP_SCALAR,
    names.ARGUMENT,
    names.CONFIG_VALUE,
)  # of keys that end in a phase's, an optimizer's or some name of the program's
THINNED = re.compile(r"\.(?:min|max)$")
# Attributes with a closed set of values: each value is a word of the attribute's sentence.
CLOSED = (
    names.OUTCOME, names.SKIP_REASON, names.TIME_CATEGORY, names.RUN_STATE, names.RUN_OUTCOME,
    names.CHECKPOINT_OPERATION, names.COMPILE_REASON_KIND, names.FRAMEWORK_NAME,
    names.COMPILE_STAGE, names.CACHE_RESULT, names.ANOMALY_KIND,
)  # fmt: skip


@dataclass
class Emitted:
    """Every name that came out."""

    spans: set[str] = field(default_factory=set)
    events: set[str] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)
    metrics: dict[str, tuple[str, str]] = field(default_factory=dict)  # kind and unit
    carried: set[tuple[str, str]] = field(default_factory=set)  # metric and attribute
    values: dict[str, set[Any]] = field(default_factory=dict)  # of closed attributes

    def add(self, seen: Captured) -> None:
        """Take what one block emitted."""
        for span in seen.spans:
            self.spans.add(span["name"])
            self._attributes(span["attributes"])
        for log in (log for log in seen.logs if log["event_name"]):  # the others are the program's
            self.events.add(log["event_name"])
            self._attributes(log["attributes"])
        for point in seen.metrics:
            self.metrics[point["name"]] = point["kind"], point["unit"]
            self._values(point["attributes"])
            self.carried.update((point["name"], key) for key in point["attributes"])

    def _attributes(self, attributes: Mapping[str, Any]) -> None:
        self.attributes.update(attributes)
        self._values(attributes)

    def _values(self, attributes: Mapping[str, Any]) -> None:
        for key, value in attributes.items():
            if key in CLOSED or key == names.PHASE:
                self.values.setdefault(key, set()).update(value if isinstance(value, list) else [value])


class Text(nn.Module):
    """A language model of one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 5)
        self.head = nn.Linear(5, 11)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Score the next token."""
        scores: torch.Tensor = self.head(self.embed(ids))
        return scores


def train_two(path: Path) -> None:
    """Two optimizers, one with groups, clipping, an evaluation, checkpoints in a step and outside, one that fails."""
    model, other = Text(), nn.Linear(11, 1)
    ids = torch.arange(32).reshape(8, 4) % 11
    loader = DataLoader(TensorDataset(ids, ids), batch_size=2)
    groups: list[dict[str, Any]] = [
        {"params": model.embed.parameters()},
        {"params": model.head.parameters(), "lr": 0.2},
    ]
    first = torch.optim.SGD(groups, lr=0.1)
    second = torch.optim.Adam(other.parameters(), lr=0.1)
    for inputs, targets in loader:
        scores = model(inputs)
        loss = nn.functional.cross_entropy(scores.reshape(-1, 11), targets.reshape(-1))
        first.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        first.step()
        second.zero_grad()
        (other(model(inputs).detach()).mean() * float("nan")).backward()
        second.step()
        torch.save(model.state_dict(), path)
    with torch.no_grad():
        model(ids)
    torch.load(path)
    with pytest.raises(FileNotFoundError):
        torch.load(path.with_suffix(".none"))


def train_scaled() -> None:
    """A gradient scaler whose first step overflows."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for factor in (float("inf"), 1.0, 1.0):
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(2, 3)).mean() * factor).backward()
        scaler.step(optimizer)
        scaler.update()


def train_once() -> None:
    """One step, and another by a second optimizer."""
    for _ in range(2):
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.ones(2, 3)).mean().backward()
        optimizer.step()


def train_compiled() -> None:
    """A compiled model that is compiled again for another shape, in a step and outside."""
    model = nn.Linear(3, 1)
    compiled = torch.compile(model, backend="eager", dynamic=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for rows in (2, 3, 3):
        optimizer.zero_grad()
        compiled(torch.ones(rows, 3)).mean().backward()
        optimizer.step()


def infer() -> None:
    """A process that never trains."""
    model = nn.Linear(3, 1)
    with torch.no_grad():
        for _ in range(3):
            model(torch.ones(2, 3))


def train_jax(cache: str) -> None:
    """A compiled step with a named value, waited for; compiled once more from the persistent cache."""
    jax.config.update("jax_compilation_cache_dir", cache)  # type: ignore[no-untyped-call]
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # type: ignore[no-untyped-call]
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)  # type: ignore[no-untyped-call]

    def step(weights: Any, x: Any) -> Any:
        loss, gradient = jax.value_and_grad(lambda w: (x @ w).sum())(weights)
        return weights - gradient, {"loss": loss, "accuracy": loss * 0}

    try:
        for _ in range(2):
            train, weights = jax.jit(step), np.ones((3, 2), "f")
            jax.jit(lambda x: x + 2)(np.ones(2, "f"))
            jax.clear_caches()  # type: ignore[no-untyped-call]
            for _ in range(2):
                weights, values = train(weights, np.ones((2, 3), "f"))
                float(values["loss"])
    finally:
        jax.config.update("jax_compilation_cache_dir", None)  # type: ignore[no-untyped-call]


def save_behind(path: Path) -> None:
    """A step, and an asynchronous checkpoint of orbax's."""
    import orbax.checkpoint as ocp

    train = jax.jit(lambda w: w - jax.grad(lambda w: (w**2).sum())(w))
    weights = train(np.ones(3, "f"))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, {"w": weights})


def train_profiled(folder: Path) -> None:
    """Two steps, the second one captured by the framework's profiler."""
    runtime.profiler = Profiler(lambda: folder, (1, 1), None)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        model(torch.ones(2, 3)).mean().backward()
        optimizer.step()


def annotate() -> None:
    """A program that says what it does, with one value that is none."""

    @otel_ml.traced(arguments=True)
    def load(size: int) -> int:
        return size

    @otel_ml.timed
    def quick() -> None:
        pass

    with otel_ml.run("part", lr=0.1), otel_ml.epoch(0):
        for number in range(2):
            with otel_ml.step(), otel_ml.phase("wait"):
                load(number)
            quick()
        with otel_ml.evaluation("test"):
            otel_ml.record({"accuracy": float("nan"), "f1": 0.5, "name": "text"})
    with otel_ml.request():
        events.training_started()
    events.epoch_done(1)
    events.model_loaded("gpt", parameters=3)
    events.memory_warning("little is left", used=3, free=1)
    events.checkpoint_saved("model.pt", size=3)


def storm() -> None:
    """A compiled function that never gets the same shape twice."""
    double = jax.jit(lambda x: x * 2)
    for rows in range(1, 12):
        double(np.ones(rows, "f"))


def fail() -> None:
    """A step that an exception ends."""
    train_scaled()
    nn.Linear(3, 1)(torch.ones(2, 3)).mean().backward()
    message = "enough"
    raise ValueError(message)


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> Emitted:
    """What ordinary programs emit, all together."""
    path = tmp_path_factory.mktemp("names") / "model.pt"
    found = Emitted()
    cache = str(tmp_path_factory.mktemp("cache"))
    programs: list[Callable[[], None]] = [
        lambda: train_two(path), train_scaled, train_once, train_compiled, infer, lambda: train_jax(cache), storm,
        annotate, lambda: save_behind(path.with_name("behind")), lambda: train_profiled(path.parent),
    ]  # fmt: skip
    for program in programs:
        with capture() as seen:
            program()
            errors.swallowed.add("somewhere")
        runtime.profiler = None
        found.add(seen)
    blocks = []

    def failing() -> None:
        with capture() as seen:
            blocks.append(seen)
            fail()

    with pytest.raises(ValueError, match="enough"):
        failing()
    found.add(blocks[0])
    add_probe(found)
    return found


def add_probe(found: Emitted) -> None:
    """What `otel-ml doctor --path` sends."""
    spans, points, logs = InMemorySpanExporter(), InMemoryMetricReader(), InMemoryLogRecordExporter()
    tracer, logger = TracerProvider(), LoggerProvider()
    tracer.add_span_processor(SimpleSpanProcessor(spans))
    logger.add_log_record_processor(SimpleLogRecordProcessor(logs))
    emit(Providers(tracer, MeterProvider([points]), logger, made=set()))
    found.spans.update(span.name for span in spans.get_finished_spans())
    found.events.update(str(log.log_record.event_name) for log in logs.get_finished_logs())
    data: Any = points.get_metrics_data()
    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
    found.metrics[metric.name] = ("counter", metric.unit)


def store_size() -> tuple[str, str, str]:
    """The one metric that takes a store."""
    reader = InMemoryMetricReader()
    instruments = Instruments(MeterProvider([reader]).get_meter("names"), lambda: 4096)
    data: Any = reader.get_metrics_data()
    instruments.forget()
    metric = data.resource_metrics[0].scope_metrics[0].metrics[0]
    return metric.name, "gauge", metric.unit


def base(key: str) -> str:
    """An attribute's own name: without what a thinned column or a phase adds."""
    key = THINNED.sub("", key)
    return next((str(p) for p in PREFIXES if key.startswith(f"{p}.")), key)


def of_resource() -> set[str]:
    """What a rank of a job says about itself."""
    rank = Identity("job", "gpt", 1, 3, 1, 8, "torchrun", "an-id")
    return set(resource_of(rank, {"telemetry.auto.version": "0.66b2"}).attributes)


def test_spans_and_events_are_the_vocabularys(emitted: Emitted) -> None:
    """Every span's and event's name is in `names.py`, and every one there is emitted."""
    of_the_program = {"annotate.<locals>.load"}
    assert (emitted.spans - of_the_program, emitted.events) == (set(names.SPANS), set(names.EVENTS))


def test_metrics_are_the_vocabularys(emitted: Emitted) -> None:
    """Every metric is in `names.py` with its kind and unit, and every one there is emitted."""
    name, kind, unit = store_size()
    assert {**emitted.metrics, name: (kind, unit)} == {
        m.name: (m.kind, m.unit) for m in names.METRICS.values() if m.name not in METRICS_TO_COME
    }


def test_metrics_carry_what_they_may(emitted: Emitted) -> None:
    """A metric carries the attributes that `names.py` lists for it: none beside them, and each of them somewhere."""
    listed = {(metric.name, str(key)) for metric in names.METRICS.values() for key in metric.attributes}
    assert emitted.carried - listed == set()
    assert listed - emitted.carried == set(CARRIED_TO_COME)


def test_attributes_are_the_vocabularys(emitted: Emitted) -> None:
    """Every attribute is in `names.py` or a word of OpenTelemetry's, and every one there is emitted."""
    told = {base(key) for key in emitted.attributes} - CONVENTIONS - IN_RECORDS
    told |= {key for _, key in emitted.carried} | (of_resource() - CONVENTIONS_OF_RESOURCE)
    assert told - set(names.ATTRIBUTES) == set()
    assert set(names.ATTRIBUTES) - told == set(TO_COME)


def test_conventions_are_used(emitted: Emitted) -> None:
    """OpenTelemetry's own words that this file lists are those that we use."""
    assert emitted.attributes >= CONVENTIONS
    assert of_resource() >= CONVENTIONS_OF_RESOURCE


def test_values_are_the_vocabularys(emitted: Emitted) -> None:
    """An attribute with few values has those that its sentence tells; a phase is one of `names.PHASES`."""
    said = {key: set(re.findall(r"\w+", names.ATTRIBUTES[key].doc)) for key in CLOSED}
    assert {key: emitted.values[key] - said[key] - {None} for key in CLOSED} == {key: set() for key in CLOSED}
    phases = {
        key.removeprefix(f"{names.STEP_PHASE}.") for key in emitted.attributes if key.startswith(names.STEP_PHASE)
    }
    assert emitted.values[names.PHASE] == phases == set(names.PHASES)


def test_no_name_is_written_elsewhere() -> None:
    """A name of ours stands in `names.py` and nowhere else in the code that emits."""
    ours = re.compile(r"ml\.[a-z_]+(\.[a-z_]+)*")
    elsewhere = [
        f"{path.relative_to(PACKAGE)}: {node.value}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name not in ("names.py", "settings.py")  # settings show two as examples
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and ours.fullmatch(node.value)
    ]
    assert elsewhere == []
