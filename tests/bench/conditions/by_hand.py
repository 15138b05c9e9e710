"""OpenTelemetry written by hand: what a careful engineer adds to a loop today.

A training step is a span with four children and feeds six instruments; an inference is a
span and two instruments. OTLP over http/protobuf, batched, with the SDK's defaults.
"""

# mypy: disable-error-code="import-not-found, import-untyped, no-untyped-call, unused-ignore"
from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from tests.bench.conditions import Condition

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter
    from opentelemetry.trace import Tracer

    from tests.bench.loops import Serving, Training

CONDITIONS = (
    Condition(
        "by-hand",
        "OpenTelemetry by hand, OTLP",
        "every site",
        needs=("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"),
        loops=__name__,
        evidence="sink",
        variables={"OTEL_EXPORTER_OTLP_ENDPOINT": "{sink}", "OTEL_METRIC_EXPORT_INTERVAL": "10000"},
    ),
)


def providers() -> tuple[Tracer, Meter]:
    """Make a tracer and a meter that export; the SDK flushes both at exit."""
    from opentelemetry import metrics, trace
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    tracing = TracerProvider()
    tracing.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(tracing)
    metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())]))
    return trace.get_tracer("training"), metrics.get_meter("training")


def train(task: Training) -> None:
    """Train, each step a span with four children, six instruments fed."""
    tracer, meter = providers()
    step_time = meter.create_histogram("step.duration", "s")
    data_time = meter.create_histogram("data.duration", "s")
    steps = meter.create_counter("steps")
    samples = meter.create_counter("samples")
    loss_gauge = meter.create_gauge("loss")
    rate_gauge = meter.create_gauge("learning_rate")
    batches = iter(task.batches)
    number = 0
    while True:
        begun = perf_counter()
        with tracer.start_as_current_span("step") as span:
            with tracer.start_as_current_span("data"):
                batch = next(batches, None)
            if batch is None:
                break
            inputs, targets = batch
            data_time.record(perf_counter() - begun)
            with tracer.start_as_current_span("forward"):
                task.optimizer.zero_grad()
                loss = task.loss(task.model(inputs), targets)
            with tracer.start_as_current_span("backward"):
                loss.backward()
            with tracer.start_as_current_span("optimizer"):
                task.optimizer.step()
            value = loss.item()
            span.set_attribute("step.number", number)
            span.set_attribute("loss", value)
        step_time.record(perf_counter() - begun)
        steps.add(1)
        samples.add(task.batch_size)
        loss_gauge.set(value)
        rate_gauge.set(task.optimizer.param_groups[0]["lr"])
        number += 1
        task.watch.lap(value)


def infer(task: Serving) -> None:
    """Answer, each request a span, two instruments fed."""
    tracer, meter = providers()
    duration = meter.create_histogram("request.duration", "s")
    requests = meter.create_counter("requests")
    for inputs in task.requests:
        begun = perf_counter()
        with tracer.start_as_current_span("request"):
            task.model(inputs)
        duration.record(perf_counter() - begun)
        requests.add(1)
        task.watch.lap()
