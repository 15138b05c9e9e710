"""prometheus_client: metrics alone, kept in memory until someone scrapes."""

# mypy: disable-error-code="import-not-found, import-untyped, no-untyped-call, unused-ignore"
from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from tests.bench.conditions import Condition

if TYPE_CHECKING:
    from tests.bench.loops import Serving, Training

CONDITIONS = (
    Condition(
        "prometheus",
        "prometheus_client",
        "calls a step; metrics only",
        packages=("prometheus-client",),
        loops=__name__,
    ),
)


def train(task: Training) -> None:
    """Train and feed a histogram, a counter and two gauges a step, with a scrape endpoint open."""
    from prometheus_client import Counter, Gauge, Histogram, start_http_server

    start_http_server(0, addr="127.0.0.1")
    duration, steps = Histogram("step_seconds", "step"), Counter("steps", "steps")
    loss_gauge, rate_gauge = Gauge("loss", "loss"), Gauge("learning_rate", "rate")
    begun = perf_counter()
    for inputs, targets in task.batches:
        task.optimizer.zero_grad()
        loss = task.loss(task.model(inputs), targets)
        loss.backward()
        task.optimizer.step()
        value, took = loss.item(), perf_counter() - begun
        begun += took
        duration.observe(took)
        steps.inc()
        loss_gauge.set(value)
        rate_gauge.set(task.optimizer.param_groups[0]["lr"])
        task.watch.lap(value)


def infer(task: Serving) -> None:
    """Answer and feed a histogram and a counter a request, with a scrape endpoint open."""
    from prometheus_client import Counter, Histogram, start_http_server

    start_http_server(0, addr="127.0.0.1")
    duration, requests = Histogram("request_seconds", "request"), Counter("requests", "requests")
    for inputs in task.requests:
        begun = perf_counter()
        task.model(inputs)
        duration.observe(perf_counter() - begun)
        requests.inc()
        task.watch.lap()
