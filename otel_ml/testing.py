"""What a program's telemetry would be, as plain data: for tests, ours and users'.

`capture()` runs the whole pipeline in this process on in-memory exporters; nothing leaves
it and no global provider is set. Torch programs inside the block are hooked as under a
launcher; without a framework, `otel_ml.core.context.recorders.mine().record(…)` makes
events by hand. There is no background thread: what was recorded is told at the end of the
block, or at each `Captured.turn()`, so what comes out does not depend on the time of day.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Histogram, InMemoryMetricReader, Sum
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
