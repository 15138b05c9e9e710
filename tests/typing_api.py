# pyright: strict
"""Every public name as type checkers of users see it: never run, checked by `tests/test_typing.py`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import assert_type

import otel_ml
from otel_ml import events, logs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from opentelemetry.trace import Span  # noqa: F401 - in `assert_type`
    from structlog.stdlib import BoundLogger  # noqa: F401 - as above

    from otel_ml.api import Batches  # noqa: F401 - as above


@otel_ml.traced
def bare(x: int, *more: str, key: float = 0.5) -> list[str]:
    """A function."""
    return [f"{x}{key}", *more]


@otel_ml.traced(name="told", arguments=["x"], attributes={"team": "vision"})
def called(x: int, *more: str, key: float = 0.5) -> list[str]:
    """A function."""
    return [f"{x}{key}", *more]


@otel_ml.traced(arguments=True)
async def later(x: int) -> str:
    """A coroutine."""
    return str(x)


@otel_ml.traced
def counted(x: int) -> Iterator[int]:
    """A generator."""
    yield x


@otel_ml.traced
async def stream(x: int) -> AsyncIterator[int]:
    """An asynchronous generator."""
    yield x


@otel_ml.timed
def timed_bare(x: int) -> str:
    """A function."""
    return str(x)


@otel_ml.timed()
def timed_called(x: int) -> str:
    """A function."""
    return str(x)


@otel_ml.timed("named")
def timed_named(x: int) -> str:
    """A function."""
    return str(x)


@otel_ml.span("load", files=3)
def spanned(x: int) -> str:
    """A function."""
    return str(x)


@otel_ml.run("baseline", lr=0.1)
@otel_ml.epoch(0)
@otel_ml.step()
@otel_ml.phase("augment")
@otel_ml.evaluation("test")
@otel_ml.checkpoint("model.pt")
@otel_ml.request()
@logs.LogContext(fold=3)
def parted(x: int) -> str:
    """A function."""
    return str(x)


class Model:
    """Has methods of every kind."""

    @otel_ml.traced
    def method(self, x: int) -> str:
        """A method."""
        return str(x)

    @otel_ml.traced(arguments=True)
    @classmethod
    def above(cls, x: int) -> str:
        """A class's, decorated."""
        return str(x)

    @classmethod
    @otel_ml.traced
    def below(cls, x: int) -> str:
        """A class's."""
        return str(x)

    @otel_ml.timed
    @staticmethod
    def still(x: int) -> str:
        """Nobody's, decorated."""
        return str(x)

    @property
    @otel_ml.span("shown")
    def shown(self) -> int:
        """A property."""
        return 1


def decorators_keep_signatures() -> None:
    """A decorated function's type is its own."""
    same: Callable[[int], str] = timed_bare
    assert_type(bare(1, "a", key=2.0), list[str])
    assert_type(called(1, "a", key=2.0), list[str])
    assert_type(counted(1), "Iterator[int]")
    assert_type(stream(1), "AsyncIterator[int]")
    assert_type(same(1), str)
    assert_type(timed_called(1), str)
    assert_type(timed_named(1), str)
    assert_type(spanned(1), str)
    assert_type(parted(1), str)
    assert_type(Model().method(1), str)
    assert_type(Model.above(1), str)
    assert_type(Model.below(1), str)
    assert_type(Model.still(1), str)
    assert_type(Model().shown, int)
    assert_type(otel_ml.traced(len)([1]), int)
    coroutine: Coroutine[Any, Any, str] = later(1)
    coroutine.close()


def blocks() -> None:
    """What `with … as` gives: OpenTelemetry's span where there is one, else nothing of use."""
    with otel_ml.span("load", files=3, codec=None) as span:
        assert_type(span, "Span")
        span.set_attribute("found", 2)
    with otel_ml.request("r-17", size=2) as request:
        assert_type(request, "Span")
    with otel_ml.run() as run:
        assert_type(run, object)
    with (
        otel_ml.run("baseline", lr=0.1),
        otel_ml.epoch(0),
        otel_ml.step(),
        otel_ml.step(3),
        otel_ml.phase("augment"),
        otel_ml.evaluation(),
        otel_ml.checkpoint(Path("model.pt"), operation="load"),
        otel_ml.timed("augment"),
        otel_ml.timed(),
        logs.LogContext(fold=3),
    ):
        pass


async def asynchronous_blocks() -> None:
    """The same in coroutines."""
    async with otel_ml.span("load") as span, otel_ml.request(), otel_ml.timed("x"), otel_ml.phase("y"):
        assert_type(span, "Span")
    assert_type(await later(1), str)
    async for item in stream(1):
        assert_type(item, int)


def calls(values: dict[str, float]) -> None:
    """What is called."""
    otel_ml.record("loss", 0.5)
    otel_ml.record("val/acc", 1, step=3, split="test")
    otel_ml.record(values, split="test")
    otel_ml.event("curriculum.changed", stage=2)
    otel_ml.event("curriculum.changed", "harder now", attributes={"a.b": 1}, stage=2)
    otel_ml.profile(steps=3)
    assert_type(otel_ml.flush(), bool)
    assert_type(otel_ml.flush(timeout=1.0), bool)
    assert_type(otel_ml.__version__, str)
    assert_type(otel_ml.data([1, 2]), "Batches[int]")
    for batch in otel_ml.data([(1, "a")]):
        assert_type(batch, tuple[int, str])
    otel_ml.configure()
    otel_ml.configure(
        service_name="train", exporter="otlp", endpoint="http://localhost:4318", sample=0.1, instrument=False,
        run_name="baseline", directory=Path("runs"),
    )  # fmt: skip
    otel_ml.summary()
    otel_ml.summary(sys.stderr)
    otel_ml.shutdown()


def logging_calls() -> None:
    """What `otel_ml.logs` and `otel_ml.events` offer."""
    logs.setup_logging()
    logs.setup_logging("DEBUG", format="json", file=Path("train.jsonl"), rotate="1 day")
    logs.setup_logging(logging.INFO, format="console", rotate=10_000_000)
    assert_type(logs.get_logger(), "BoundLogger")
    assert_type(logs.get_logger(__name__), "BoundLogger")
    event: dict[str, Any] = {"event": "x"}
    logs.add_context(None, "info", event)
    events.training_started(model="x")
    events.epoch_done(1, loss=0.5)
    events.model_loaded("resnet", parameters=3, path=Path("x"))
    events.memory_warning("low", used=1, free=2)
    events.checkpoint_saved("x", size=1)
