"""torchtel: spans around forward, backward and the optimizer of a model handed over."""

# mypy: disable-error-code="import-not-found, import-untyped, no-untyped-call, unused-ignore"
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.bench import loops
from tests.bench.conditions import Condition

if TYPE_CHECKING:
    from tests.bench.loops import Serving, Training

CONDITIONS = (
    Condition(
        "torchtel",
        "torchtel, OTLP",
        "two calls, hands over the model",
        packages=("torchtel",),
        loops=__name__,
        evidence="sink",
        variables={"OTEL_EXPORTER_OTLP_ENDPOINT": "{sink}"},
    ),
)


def _instrument(task: Training | Serving) -> Any:
    from torchtel import PyTorchInstrumentor, setup_opentelemetry

    setup_opentelemetry()
    return PyTorchInstrumentor().instrument(model=task.model)


def train(task: Training) -> None:
    """Train with torchtel's patches in place."""
    instrumentor = _instrument(task)
    loops.train(task)
    instrumentor.uninstrument()


def infer(task: Serving) -> None:
    """Answer with torchtel's patches in place."""
    instrumentor = _instrument(task)
    loops.infer(task)
    instrumentor.uninstrument()
