"""A training that sets up OpenTelemetry of its own, and writes what it exports to telemetry.json."""

import atexit
import json
import logging
from pathlib import Path

import torch
from opentelemetry import _logs, metrics, trace
from opentelemetry.instrumentation.logging.handler import LoggingHandler
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from torch import nn

spans = InMemorySpanExporter()
tracer_provider = TracerProvider()
tracer_provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(tracer_provider)
reader = InMemoryMetricReader()
view = View(instrument_name="ml.training.step.duration", aggregation=ExplicitBucketHistogramAggregation([0.5, 60.0]))
meter_provider = MeterProvider([reader], views=[view])
records = InMemoryLogRecordExporter()


def write() -> None:
    """Write everything exported by now, ours and whoever else's."""
    data = reader.get_metrics_data()
    streams = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics] if data else []
    durations = [m for m in streams if m.name == "ml.training.step.duration"]
    exported = {
        "spans": [[s.name, s.context.trace_id] for s in spans.get_finished_spans()],
        "durations": [[list(p.explicit_bounds), p.count] for m in durations for p in m.data.data_points],
        "events": [r.log_record.event_name for r in records.get_finished_logs() if r.log_record.event_name],
        "run": tracer_provider.resource.attributes.get("ml.run.id"),
    }
    Path("telemetry.json").write_text(json.dumps(exported))


atexit.register(write)  # before the providers end, in the order that atexit keeps
metrics.set_meter_provider(meter_provider)
logger_provider = LoggerProvider()
logger_provider.add_log_record_processor(SimpleLogRecordProcessor(records))
_logs.set_logger_provider(logger_provider)
logging.basicConfig(level=logging.INFO, handlers=[LoggingHandler(logger_provider=logger_provider)])

torch.manual_seed(0)
model = nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
log = logging.getLogger("own")
tracer = trace.get_tracer("own")
counter = metrics.get_meter("own").create_counter("own.steps")
steps = 5
for step in range(steps):
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(torch.randn(4, 8)), torch.randn(4, 1))
    with tracer.start_as_current_span("own"):
        loss.backward()
    log.info("after %d", step)
    optimizer.step()
    counter.add(1)
    print("loss", step, repr(loss.item()))

tracer_provider.force_flush()
with tracer.start_as_current_span("after"):
    data = reader.get_metrics_data()
found = {m.name: m.data.data_points for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics}
print("own", [s.name for s in spans.get_finished_spans() if s.instrumentation_scope.name == "own"])
print("own.steps", [p.value for p in found["own.steps"]])
print("logs", [r.log_record.body for r in records.get_finished_logs() if not r.log_record.event_name])


truth = {"steps": steps, "skipped": 0, "failed": 0, "evaluations": 0, "inference": 0}
print("truth", json.dumps({**truth, "micro_batches": steps, "samples": None, "exit": 0}))
