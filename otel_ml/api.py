"""What a program can say of itself: where its run, epochs, steps, phases, requests and batches are.

All of it lands in the run that is recorded, in the step in which it is said. What is said
here comes before what is inferred. Nothing here raises into the program or waits; without
a run, each call is left within half a microsecond (`python -m tests.bench.api`).
"""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from otel_ml import names
from otel_ml.core import profiling, runtime
from otel_ml.core.batches import fetch
from otel_ml.core.clock import now
from otel_ml.core.context import inside, limits, recorders, request_id
from otel_ml.core.context import split as current_split
from otel_ml.core.recorder import (
    ABANDONED,
    CHECKPOINT,
    EPOCH_BEGIN,
    EPOCH_END,
    EVALUATION_BEGIN,
    EVALUATION_END,
    FAILED,
    LAST_STEP,
    MARK,
    RUN_PART,
    STEP_BEGIN,
    STEP_END,
)
from otel_ml.decorators import LONGEST_NAME, SpanPart
from otel_ml.errors import guard
from otel_ml.fields import attributes as cleaned
from otel_ml.parts import Part, failed, put_back
from otel_ml.redact import text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from contextvars import Token

    from typing_extensions import Self

    from otel_ml.core.recorder import Recorder

__all__ = [
    "checkpoint", "data", "epoch", "evaluation", "flush", "phase", "profile", "request", "run", "step",
]  # fmt: skip

T = TypeVar("T")

_SLUG = re.compile(r"[A-Za-z0-9._-]{1,80}")


class RunPart(Part):
    """A part of the process's run that has a name and a configuration of its own."""

    _start = 0

    def begin(self) -> None:
        """Tell of the configuration."""
        run = runtime.recording
        if run is None:
            return
        self._start = now()
        with guard("run()"):
            run.annotated()
            name, config = self.given
            if name or config:
                about = cleaned(config, f"{names.CONFIG_VALUE}.")
                if name:
                    about[names.RUN_NAME] = text(name)
                run.event(names.EVENT_CONFIG, f"{name or 'run'}: {_listed(config)}", about)

    def end(self, error: BaseException | None) -> None:
        """Tell of the whole part."""
        recorder = recorders.mine()
        kind = type(error).__qualname__ if failed(error) else None
        about = {names.RUN_NAME: self.given[0], names.ERROR_TYPE: kind}
        recorder.apart = True
        recorder.record(RUN_PART, self._start, now(), about)


def _listed(config: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in cleaned(config).items())


def run(name: str | None = None, /, **config: Any) -> RunPart:
    """Names a part of the run and tells its configuration: `with otel_ml.run("baseline", lr=3e-4, layers=12):`.

    The process has one run, whoever began to record it (a launcher, `configure()`); this joins it. It leaves an
    `ml.config` event with the values (`ml.config.value.<name>`, secrets masked) and a span inside `ml.run`, with its
    error if an exception leaves it. One inside another is a part of its own. A block, or a function's decorator.
    """
    part = RunPart()
    part.given = name, config
    return part


class EpochPart(Part):
    """An epoch."""

    _recorder: Recorder | None = None
    _start = 0

    def begin(self) -> None:
        """The steps from here on are of this epoch."""
        if not isinstance(self.given, int) or self.given < 0:
            limits.over("step", f"epoch({self.given!r}): an epoch is a whole number from 0; it is left out")
            return
        recorder = self._recorder = _mine()
        self._start = now()
        recorder.between()
        recorder.record(EPOCH_BEGIN, self._start, self._start, self.given)

    def end(self, error: BaseException | None) -> None:
        """They are not any more."""
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.between()
            recorder.record(EPOCH_END, self._start, now(), self.given, FAILED if failed(error) else 0)


def epoch(number: int) -> EpochPart:
    """An epoch: `for n in range(3): with otel_ml.epoch(n): …`.

    Its steps carry `ml.epoch.number`; its end is the event `ml.epoch.finished` and the span `ml.epoch`. A block, or a
    function's decorator.
    """
    part = EpochPart()
    part.given = number
    return part


class StepPart(Part):
    """A training step."""

    _recorder: Recorder | None = None
    _start = 0

    def begin(self) -> None:
        """Nothing in it is inferred to begin or end a step."""
        number = -1 if self.given is None else self.given
        if not isinstance(number, int) or not -1 <= number < LAST_STEP or self.given == -1:
            limits.over("step", f"step({self.given!r}): a step is a whole number from 0; it is counted on instead")
            number = -1
        recorder = _mine()
        start = now()
        if 0 <= number < recorder.number + (recorder.state >= 3):
            limits.over("number", f"step({number}): there was one of this number before; it is counted on instead")
        if recorder.begin_step(number):
            self._recorder, self._start = recorder, start
            recorder.record(STEP_BEGIN, start, start, number)

    def end(self, error: BaseException | None) -> None:
        """It is over."""
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            outcome = 0 if error is None else FAILED if failed(error) else ABANDONED
            recorder.end_step(outcome)
            recorder.record(STEP_END, self._start, now(), None, outcome)
            if runtime.profiler is not None and runtime.frameworks:
                runtime.profiler.turned(runtime.leading()[0], recorder.number)


def step(number: int | None = None) -> StepPart:
    """A training step, whatever is inferred: `for batch in loader: with otel_ml.step(): …`.

    It begins with the wait for the batch that was fetched just before, and ends with the block. Forward, backward and
    optimizer inside are its phases, as ever; so are those that `phase()` names. One inside another is a part of the
    outer one, and so is an `evaluation()`. An exception that leaves it makes it failed. A block, or a function's
    decorator: each call is a step.

    Args:
        number: The program's own number, from 0, growing; unset, or where it was there before, steps are counted on.
    """
    part = StepPart()
    if number is not None:
        part.given = number
    return part


class PhasePart(Part):
    """A phase of the step."""

    _start = 0

    def begin(self) -> None:
        """Look at the clock."""
        self._start = now()

    def end(self, error: BaseException | None) -> None:  # noqa: ARG002 - its time was spent
        """Record how long it was."""
        _mine().record(MARK, self._start, now(), str(self.given)[:LONGEST_NAME])


def phase(name: str) -> PhasePart:
    """What this part of a training step is for: `with otel_ml.phase("augment"): …`.

    Its time counts as that phase instead of what it was inferred to be; of two that nest, the inner one's is its own.
    At most 50 names in metrics. A block, or a function's decorator.
    """
    part = PhasePart()
    part.given = name
    return part


class EvaluationPart(Part):
    """An evaluation."""

    _recorder: Recorder | None = None
    _start = 0
    _token: Token[Any] | None = None

    def begin(self) -> None:
        """Nothing in it is a step."""
        recorder = _mine()
        start = now()
        if recorder.begin_evaluation():
            self._recorder, self._start = recorder, start
            recorder.record(EVALUATION_BEGIN, start, start)

    def resume(self) -> None:
        """Values are of this split."""
        self._token = current_split.set(self.given)

    def pause(self) -> None:
        """Values are of the split before."""
        if self._token is not None:
            put_back(current_split, self._token)
            self._token = None

    def end(self, error: BaseException | None) -> None:  # noqa: ARG002 - its time was spent
        """It is over."""
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.end_evaluation()
            recorder.record(EVALUATION_END, self._start, now(), str(self.given)[:LONGEST_NAME])


def evaluation(split: str = "validation") -> EvaluationPart:
    """An evaluation: `with otel_ml.evaluation("test"): …`.

    What is inside is no training step, and `record()` inside is of this split. A block, or a function's decorator.
    """
    part = EvaluationPart()
    part.given = split
    return part


class CheckpointPart(Part):
    """Saving, or loading, a checkpoint."""

    _start = 0
    _around = _outermost = False
    _where: dict[str, Any]

    def begin(self) -> None:
        """Look at the clock; one inside another is a part of that."""
        _mine()
        self._start = now()
        self._outermost = not inside.checkpoint

    def resume(self) -> None:
        """What is saved from here on is a part of it."""
        self._where = vars(inside)  # this thread's; another one may leave the block
        self._around, inside.checkpoint = inside.checkpoint, True

    def pause(self) -> None:
        """And no longer."""
        self._where["checkpoint"] = self._around

    def end(self, error: BaseException | None) -> None:
        """Tell of it, and of the file's size."""
        if not self._outermost:
            return
        with guard("checkpoint()"):
            given, operation = self.given
            path = os.fspath(given)
            kind = None if error is None else type(error).__qualname__
            payload: dict[str, Any] = {"operation": operation, "error": kind, "path": path}
            end = now()
            if Path(path).is_file():
                payload["size"] = Path(path).stat().st_size
            recorders.mine().record(CHECKPOINT, self._start, end, payload)


def checkpoint(path: str | os.PathLike[str], *, operation: Literal["save", "load"] = "save") -> CheckpointPart:
    """Saving a checkpoint, however it is done: `with otel_ml.checkpoint("model.safetensors"): save_file(…)`.

    Args:
        path: Where it is; the size of a file is told.
        operation: `save` or `load`.

    Raises:
        ValueError: another operation.

    What torch and orbax save inside is a part of it. A block, or a function's decorator.
    """
    if operation not in ("save", "load"):
        message = f"checkpoint(operation={operation!r}): type operation='save' or operation='load'"
        raise ValueError(message)
    part = CheckpointPart()
    part.given = path, operation
    return part


class RequestPart(SpanPart):
    """A request that is served."""

    given = names.SPAN_REQUEST
    ours = True
    scope = names.SCOPE
    asked: str | None = None
    _id = ""
    _around: Token[Any] | None = None

    def again(self) -> Self:
        """Another request; without an id of its own it gets a new one."""
        part = super().again()
        part.asked = self.asked
        return part

    def begin(self) -> None:
        """Start its span."""
        asked = self.asked if self.asked is not None else request_id.get()
        self._id = asked if isinstance(asked, str) and _SLUG.fullmatch(asked) else uuid.uuid4().hex
        super().begin()

    def about(self) -> dict[str, Any]:
        """Its attributes."""
        return {**super().about(), names.REQUEST_ID: self._id}

    def resume(self) -> None:
        """What is logged from here on is of this request."""
        self._around = request_id.set(self._id)
        super().resume()

    def pause(self) -> None:
        """And no longer."""
        super().pause()
        self._over()

    def leave(self) -> None:
        """And no longer, for good."""
        super().leave()
        self._over()

    def _over(self) -> None:
        if self._around is not None:
            put_back(request_id, self._around)
            self._around = None


def request(id: str | None = None, **attributes: Any) -> RequestPart:  # noqa: A002 - what it is
    """A request that the program serves: `with otel_ml.request(headers.get("x-request-id")): …`.

    A span `ml.request`, and `ml.request.id` on it and on every log record made inside, also in tasks that it starts.
    A block, or a function's decorator (also a coroutine's).

    Args:
        id: Letters, digits, `._-`, at most 80; nothing, or anything else, gets a new one (in a request, its).
        attributes: As for `span`.
    """
    part = RequestPart()
    part.asked = id
    part.attributes = attributes
    return part


def _mine() -> Recorder:
    """The thread's recorder; the run has something to tell of."""
    if runtime.recording is not None:
        runtime.recording.annotated()
    return recorders.mine()


# --- data, profiles, the end ------------------------------------------------------------------


class Batches(Generic[T]):
    """An iterable whose batches' waits are recorded; all else is the iterable's own."""

    def __init__(self, source: Iterable[T]) -> None:
        self._source = source

    def __iter__(self) -> Iterator[T]:
        iterator = iter(self._source)
        return iterator if runtime.recording is None else self._fetched(iterator)

    @staticmethod
    def _fetched(iterator: Iterator[T]) -> Iterator[T]:
        passing: list[T] = []
        while True:
            if runtime.recording is None:
                yield from iterator
                return
            try:
                passing.append(fetch(iterator.__next__))
            except StopIteration:
                return
            yield passing.pop()  # a batch is the program's alone to keep

    def __next__(self) -> T:
        return fetch(self._source.__next__)  # type: ignore[attr-defined, no-any-return]

    def __bool__(self) -> bool:
        return bool(self._source)

    def __len__(self) -> int:
        return len(self._source)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


def data(source: Iterable[T], /) -> Batches[T]:
    """Where the batches come from: `for batch in otel_ml.data(my_generator()): …`.

    The time that each batch takes to come is the step's data wait, and its coming ends the step before; samples are
    the leading axis of the first array in it. torch's DataLoader and grain are known without it. Iterating again
    iterates the source again.
    """
    return Batches(source)


def profile(*, steps: int = 5) -> None:
    """Have the framework's own profiler capture the next steps, into the run's folder; their spans say where.

    Args:
        steps: How many, from 1.

    It costs what that profiler costs, as long as it runs.
    """
    if runtime.recording is None:
        return
    if not isinstance(steps, int) or steps < 1:
        limits.over("step", f"profile(steps={steps!r}): a whole number from 1; nothing is profiled")
        return
    with guard("profile()"):
        if runtime.profiler is None and runtime.profiles is not None:
            runtime.profiler = profiling.Profiler(runtime.profiles, None, None)
        if runtime.profiler is not None:
            runtime.profiler.ask(steps)


def flush(timeout: float = 5.0) -> bool:
    """Bring all that is recorded so far to the local store and the endpoint; whether it got there in `timeout` seconds.

    For the end of a notebook's cell, or before a process is frozen; a run's end does it by itself. This one waits.
    """
    return runtime.recording is not None and runtime.recording.flush(timeout)
