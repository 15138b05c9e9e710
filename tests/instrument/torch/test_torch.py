"""Ordinary torch programs by a clock that they alone move: every nanosecond is in the phase it was spent in."""

from __future__ import annotations

import io
import math
import pickle
import sys
from contextlib import nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import otel_ml
from otel_ml import names
from otel_ml.core.context import recorders
from otel_ml.instrument.torch.values import scalar
from otel_ml.testing import Captured, FakeClock, capture

if TYPE_CHECKING:
    from collections.abc import Callable

FETCH, FORWARD, LOSS, BACKWARD, TURN, AFTER, SAVE = 0.004, 0.010, 0.001, 0.020, 0.005, 0.003, 0.007


class Slow(torch.autograd.Function):
    """Multiplies by one, and its backward takes its time."""

    @staticmethod
    def forward(ctx: Any, clock: FakeClock, x: torch.Tensor) -> torch.Tensor:
        """Take no time."""
        ctx.clock = clock
        return x * 1

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Take 20 ms."""
        ctx.clock.advance(BACKWARD)
        return None, grads[0]


class Model(nn.Module):
    """A line whose forward takes 10 ms and whose backward 20."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.line = nn.Linear(3, 1)
        self.clock = clock

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take 10 ms."""
        self.clock.advance(FORWARD)
        if not torch.is_grad_enabled():
            return torch.as_tensor(self.line(x))
        return torch.as_tensor(Slow.apply(self.clock, self.line(x)))  # type: ignore[no-untyped-call]


class Rows(Dataset[torch.Tensor]):
    """Eight rows, 1 ms each: a batch of four takes 4 ms."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        self.clock.advance(FETCH / 4)
        return torch.full((3,), float(index))


class Timed(torch.optim.SGD):
    """SGD whose step takes 5 ms, and calls its base's."""

    def __init__(self, clock: FakeClock, parameters: Any, **more: Any) -> None:
        super().__init__(parameters, **more)
        self.clock = clock

    def step(self, closure: Any = None) -> Any:
        """Take 5 ms."""
        self.clock.advance(TURN)
        return super().step(closure)


class Heavy:
    """A thing that takes 7 ms to pickle."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock

    def __getstate__(self) -> dict[str, Any]:
        self.clock.advance(SAVE)
        return {}


@dataclass
class Parts:
    """What the programs are made of."""

    clock: FakeClock
    model: Model
    optimizer: Timed

    def loss(self, rows: torch.Tensor) -> torch.Tensor:
        """The forward and the loss, 11 ms."""
        scores = self.model(rows)
        self.clock.advance(LOSS)
        return torch.as_tensor(scores.square().mean())

    def step(self, rows: torch.Tensor) -> None:
        """One step, 36 ms, and 3 ms of the loop's own."""
        self.optimizer.zero_grad()
        self.loss(rows).backward()
        self.optimizer.step()
        self.clock.advance(AFTER)


def loader_loop(parts: Parts) -> None:
    """Two epochs of two batches."""
    for _ in range(2):
        for rows in DataLoader(Rows(parts.clock), batch_size=4):
            parts.step(rows)


def plain_loop(parts: Parts) -> None:
    """Two steps without a loader."""
    for _ in range(2):
        parts.step(torch.ones(4, 3))


def zero_last(parts: Parts) -> None:
    """Two steps after which `zero_grad` opens the next one, so that what follows it is the next one's."""
    for _ in range(2):
        parts.loss(torch.ones(4, 3)).backward()
        parts.optimizer.step()
        parts.optimizer.zero_grad()
        parts.clock.advance(AFTER)


def accumulation(parts: Parts) -> None:
    """Two micro-batches a step."""
    for number, rows in enumerate(DataLoader(Rows(parts.clock), batch_size=4), 1):
        (parts.loss(rows) / 2).backward()
        if number % 2 == 0:
            parts.optimizer.step()
            parts.optimizer.zero_grad()
            parts.clock.advance(AFTER)


def closure(parts: Parts) -> None:
    """The forward and backward inside the optimizer's step."""

    def again() -> torch.Tensor:
        loss = parts.loss(torch.ones(4, 3))
        loss.backward()
        return loss

    parts.optimizer.step(again)
    parts.clock.advance(AFTER)


def two_optimizers(parts: Parts) -> None:
    """Two steps of a round of two optimizers each."""
    other = Model(parts.clock)
    second = Timed(parts.clock, other.parameters(), lr=0.1)
    pair = Parts(parts.clock, other, second)
    for _ in range(2):
        parts.step(torch.ones(4, 3))
        pair.step(torch.ones(4, 3))


def evaluation(parts: Parts) -> None:
    """A step, an evaluation of two batches, a step, the same again."""
    for _ in range(2):
        parts.step(torch.ones(4, 3))
        with torch.no_grad():
            for _ in range(2):
                parts.model(torch.ones(4, 3))
                parts.clock.advance(LOSS)


def checkpoint(parts: Parts) -> None:
    """A checkpoint in the second of three steps."""
    for number, rows in enumerate([torch.ones(4, 3)] * 3):
        parts.step(rows)
        if number == 1:
            torch.save(Heavy(parts.clock), io.BytesIO())


def skipped(parts: Parts) -> None:
    """A gradient scaler whose first step overflows."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for factor in (float("inf"), 1.0):
        parts.optimizer.zero_grad()
        scaler.scale(parts.loss(torch.ones(4, 3)) * factor).backward()
        scaler.step(parts.optimizer)
        scaler.update()
        parts.clock.advance(AFTER)


def ms(**phases: float) -> dict[str, float]:
    """Phases in milliseconds as a step record has them, in seconds."""
    return {name: round(spent / 1000, 9) for name, spent in phases.items()}


LOADER = ms(data_wait=4, forward=11, backward=20, optimizer=5, residual=3)
PLAIN = ms(forward=11, backward=20, optimizer=5, residual=3)
LAST = PLAIN | {"residual": 0.0}  # nothing tells that the last step went on
TABLES: list[tuple[Callable[[Parts], None], list[dict[str, float]]]] = [
    (loader_loop, [LOADER] * 4),
    (plain_loop, [PLAIN, LAST]),
    (zero_last, [LAST, PLAIN]),
    (accumulation, [ms(data_wait=8, forward=22, backward=40, optimizer=5, residual=3)]),
    (closure, [ms(forward=11, backward=20, optimizer=5, residual=0)]),
    (
        two_optimizers,
        [ms(forward=22, backward=40, optimizer=10, residual=6), ms(forward=22, backward=40, optimizer=10, residual=3)],
    ),
    (evaluation, [PLAIN] * 2),
    (checkpoint, [PLAIN, PLAIN | ms(checkpoint=7), LAST]),
    (skipped, [ms(forward=11, backward=20, optimizer=0, residual=3), LAST]),
]


def run(program: Callable[[Parts], None]) -> Captured:
    """Run a program by its own clock."""
    clock = FakeClock()
    with capture(clock=clock) as seen:
        model = Model(clock)
        program(Parts(clock, model, Timed(clock, model.parameters(), lr=0.1)))
    return seen


def phases(seen: Captured) -> list[dict[str, float]]:
    """Each step's phases in seconds."""
    prefix = f"{names.STEP_PHASE}."
    return [{k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)} for row in seen.steps()]


@pytest.mark.parametrize(("program", "table"), TABLES, ids=[program.__name__ for program, _ in TABLES])
def test_time_tables_are_exact(program: Callable[[Parts], None], table: list[dict[str, float]]) -> None:
    """What each part of a step took is what the program spent in it, and together they are the step."""
    seen = run(program)
    assert phases(seen) == table
    durations = [round(row[names.STEP_DURATION_S], 9) for row in seen.steps()]
    assert durations == [round(sum(row.values()), 9) for row in table]
    assert seen.totals is not None
    assert math.isclose(sum(seen.totals.time.values()), seen.totals.duration_s)


def test_an_evaluation_and_a_skip_are_time_of_their_own() -> None:
    """An evaluation is from its first forward to its last one's end; a skipped step is no productive time."""
    evaluated, skipping = run(evaluation).totals, run(skipped).totals
    assert evaluated is not None
    assert skipping is not None
    assert (evaluated.evaluations, round(evaluated.time["evaluation"], 9)) == (2, 0.042)
    assert (skipping.steps_skipped, round(skipping.time["skipped"], 9)) == (1, 0.034)


def test_inference_is_told_by_the_call() -> None:
    """A program that never trains has its calls' times and sizes, by model."""
    clock = FakeClock()
    with capture(clock=clock) as seen, torch.no_grad():
        model = Model(clock)
        for rows in (4, 2):
            model(torch.ones(rows, 3))
    ok = ((names.MODEL_NAME, "Model"), (names.OUTCOME, "ok"))
    assert seen.points(names.INFERENCE_DURATION) == {ok: (2, 0.02)}
    assert seen.points(names.INFERENCE_REQUESTS) == {ok: 2}
    assert seen.points(names.INFERENCE_BATCH_SIZE) == {ok[:1]: (2, 6.0)}
    assert seen.steps() == []


def test_a_forward_that_raises_is_a_failed_request() -> None:
    """An exception that leaves a serving model's call passes through, the same object, and the call has failed."""
    clock = FakeClock()
    wrong = ValueError("no such character")

    class Refusing(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[0] == 3:
                clock.advance(0.005)
                raise wrong
            return super().forward(x)

    with capture(clock=clock) as seen, torch.no_grad():
        model = Refusing(clock)
        for rows in (4, 3, 2):
            if rows == 3:
                with pytest.raises(ValueError, match="no such character") as raised:
                    model(torch.ones(rows, 3))
                assert raised.value is wrong
            else:
                model(torch.ones(rows, 3))
    ok = ((names.MODEL_NAME, "Refusing"), (names.OUTCOME, "ok"))
    failed = ((names.MODEL_NAME, "Refusing"), (names.OUTCOME, "failed"))
    assert seen.points(names.INFERENCE_DURATION) == {ok: (2, 0.02), failed: (1, 0.005)}
    assert seen.points(names.INFERENCE_REQUESTS) == {ok: 2, failed: 1}
    assert seen.points(names.INFERENCE_BATCH_SIZE) == {ok[:1]: (2, 6.0)}
    assert [(span["status"], span["attributes"].get(names.OUTCOME)) for span in seen.named(names.SPAN_INFERENCE)] == [
        ("unset", None), ("error", "failed"), ("unset", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "state"), [(None, "finished"), (KeyboardInterrupt, "finished"), (ValueError, "failed")]
)
def test_the_runs_status_says_how_it_ended(error: type[BaseException] | None, state: str) -> None:
    """A run that an exception ended has failed; one that Ctrl-C ended was meant to end."""
    blocks = []

    def program() -> None:
        with capture() as seen:
            blocks.append(seen)
            model = nn.Linear(3, 1)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            model(torch.ones(2, 3)).mean().backward()
            optimizer.step()
            if error is not None:
                raise error

    with nullcontext() if error is None else pytest.raises(error):
        program()
    ended = blocks[0].points(names.RUN_STATUS)
    assert {dict(key)[names.RUN_STATE]: value for key, value in ended.items()} == {
        known: int(known == state) for known in ("running", "finished", "failed")
    }


def test_a_span_says_in_words_what_is_no_number() -> None:
    """A loss that is NaN is a number in the record of its step, and text in its span, which JSON has to carry."""
    with capture() as seen:
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        (model(torch.ones(2, 3)).mean() * math.nan).backward()
        optimizer.step()
    assert [span["attributes"][names.LOSS.name] for span in seen.named(names.SPAN_STEP)] == ["nan"]
    assert [math.isnan(step[names.LOSS.name]) for step in seen.steps()] == [True]


def test_values_are_the_programs() -> None:
    """Loss, learning rate, gradient norm, samples and tokens are what the program had in hand."""
    ids = torch.arange(32).reshape(8, 4) % 11
    printed = []
    with capture() as seen:
        model = nn.Sequential(nn.Embedding(11, 5), nn.Linear(5, 11))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        for inputs, targets in DataLoader(TensorDataset(ids, ids), batch_size=2):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs).reshape(-1, 11), targets.reshape(-1))
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            printed.append((loss.item(), norm.item(), optimizer.param_groups[0]["lr"], 2, 8, 1))
            optimizer.step()
            schedule.step()
    keys = (
        names.LOSS.name, names.GRAD_NORM.name, names.LEARNING_RATE.name, names.STEP_SAMPLES, names.STEP_TOKENS,
        names.STEP_MICRO_BATCHES,
    )  # fmt: skip
    assert [tuple(row[key] for key in keys) for row in seen.steps()] == printed


class Marked(torch.Tensor):
    """A tensor of a class of its own, with functions as all have them."""


KINDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "single": lambda mean: mean,
    "double": torch.Tensor.double,
    "half": torch.Tensor.bfloat16,
    "negated": lambda mean: torch.complex(mean, mean).conj().imag,  # a view whose bytes have the other sign
    "shared": torch._lazy_clone,
    "one in a row": lambda mean: mean.reshape(1),
    "of a class": lambda mean: mean.as_subclass(Marked),
    "a parameter": lambda mean: nn.Parameter(mean.detach()),
    "inside": lambda mean: torch.stack([mean * 0, mean])[1],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_is_what_it_says(kind: str) -> None:
    """Whatever a loss is made of and wherever it lies, its value is the one that `item()` tells."""
    printed = []
    with capture() as seen:
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            loss = KINDS[kind](model(torch.ones(2, 3)).mean())
            loss.backward()
            printed.append(loss.item())
            optimizer.step()
    assert [step[names.LOSS.name] for step in seen.steps()] == printed


def test_no_value_is_read_where_there_is_none() -> None:
    """Within `torch.func` a tensor has no value of its own: what runs there runs as it does without us."""

    def of(x: torch.Tensor) -> torch.Tensor:
        with suppress(RuntimeError):
            torch.autograd.backward(x * 2)
        return x * 2

    with capture():
        assert torch.vmap(of)(torch.ones(2)).tolist() == [2, 2]
        assert torch.func.grad(of)(torch.ones(())).item() == 2
        assert torch.func.functionalize(of)(torch.ones(())).item() == 2


def test_a_value_that_only_its_class_can_tell_is_not_read() -> None:
    """A tensor whose class has operators of its own is asked for nothing, as a loss or as a rate."""
    asked = []

    class Own(torch.Tensor):
        """Has operators of its own."""

        @classmethod
        def __torch_dispatch__(cls, func: Any, *_: Any, **__: Any) -> Any:  # type: ignore[override]
            asked.append(func)
            raise NotImplementedError

    assert scalar(torch.Tensor._make_subclass(Own, torch.tensor(1.0))) is None
    assert asked == []


def test_tokens_are_counted_where_they_are_whole_numbers() -> None:
    """A row of whole numbers is tokens, a row of floats is not, though one root is called with both by turns."""

    class Either(nn.Linear):
        """Takes numbers of any kind."""

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return super().forward(rows.float())

    inputs = [torch.ones(2, 3, dtype=d) for d in (torch.long, torch.float, torch.int, torch.double, torch.long)]
    with capture() as seen:
        model = Either(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for rows in inputs:
            model(rows).mean().backward()
            optimizer.step()
    assert [step.get(names.STEP_TOKENS) for step in seen.steps()] == [6, None, 6, None, 6]


@pytest.mark.parametrize("program", [loader_loop, plain_loop, zero_last], ids=lambda program: str(program.__name__))
def test_the_step_that_code_is_in_is_known_while_it_runs(program: Callable[[Parts], None]) -> None:
    """Inside a step its number is known before anything was told, also where an optimizer calls its base's step."""
    numbers = []

    class Asked(Parts):
        """Asks in the middle of each step."""

        def loss(self, rows: torch.Tensor) -> torch.Tensor:
            """Note the live step's number."""
            found = super().loss(rows)
            numbers.append(recorders.mine().number)
            return found

    seen = run(lambda parts: program(Asked(parts.clock, parts.model, parts.optimizer)))
    assert numbers == [row[names.STEP_NUMBER] for row in seen.steps()]


def test_nothing_is_put_on_what_is_the_programs() -> None:
    """A model and an optimizer hold what they would without us, copies and pickles work, and are no checkpoints."""

    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(12):
            model(torch.ones(4, 3)).mean().backward()
            optimizer.step()
        return model, optimizer

    plain = made()
    with capture(clock=FakeClock()) as seen:
        ours = made()
        copied = [deepcopy(ours[0]), pickle.loads(pickle.dumps(ours[0]))]  # noqa: S301 - just pickled
        assert [sorted(vars(thing)) for thing in ours] == [sorted(vars(thing)) for thing in plain]
        outputs = [model(torch.ones(4, 3)) for model in (ours[0], *copied, plain[0])]
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    assert [type(model) for model in copied] == [nn.Sequential] * 2
    assert seen.totals is not None
    assert (seen.totals.steps, seen.totals.checkpoints_saved, seen.totals.checkpoints_loaded) == (12, 0, 0)


def test_everything_is_put_back() -> None:
    """After the block every class and module that we hook holds the very objects that it held before."""
    import torch.utils.data.dataloader as loaders

    class Mine(nn.Linear):
        pass

    mine = Mine(3, 1)
    torch.optim.SGD(mine.parameters())  # torch wraps `step` itself when the first of a class is built
    owners: list[Any] = [
        torch, torch.autograd, nn.Module, nn.Linear, Mine, torch.optim.Optimizer, torch.optim.SGD, torch.amp.GradScaler,
        nn.utils.clip_grad, nn.utils, loaders._BaseDataLoaderIter,
    ]  # fmt: skip
    before = [dict(vars(owner)) for owner in owners]
    with capture(clock=FakeClock()):
        optimizer = torch.optim.SGD(mine.parameters(), lr=0.1)
        for _ in range(12):
            mine(torch.ones(4, 3)).mean().backward()
            optimizer.step()
        assert [dict(vars(owner)) for owner in owners] != before
    for owner, was in zip(owners, before, strict=True):
        now = dict(vars(owner))
        changed = [name for name in now.keys() | was.keys() if now.get(name) is not was.get(name)]
        assert (owner, changed) == (owner, [])


def test_the_programs_exceptions_pass_through() -> None:
    """An exception in a forward or a step is the same object where the program catches it."""
    mine = ValueError("enough")

    class Broken(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
            raise mine

    class Stuck(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            raise mine

    def caught(attempt: Callable[[], Any]) -> ValueError | None:
        try:
            attempt()
        except ValueError as error:
            return error
        return None

    with capture(clock=FakeClock()) as seen:
        model = Broken(3, 1)
        optimizer = Stuck(model.parameters(), lr=0.1)
        found = [caught(lambda: model(torch.ones(4, 3))), caught(optimizer.step)]
    assert [error is mine for error in found] == [True, True]
    assert seen.steps() == []


class Stopped(torch.optim.SGD):
    """Its groups are asked for while somebody presses Ctrl-C."""

    stops: type[BaseException] | None = None

    @property
    def param_groups(self) -> Any:
        """Two, so that the learning rates are read at leisure."""
        if self.stops is not None and sys._getframe(1).f_code.co_filename.endswith("optimizer.py"):
            raise self.stops
        return self.__dict__["groups"]

    @param_groups.setter
    def param_groups(self, groups: Any) -> None:
        self.__dict__["groups"] = groups

    def step(self, closure: Any = None) -> Any:
        """Do nothing."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_a_signal_raises_in_a_hook_is_not_lost(error: type[BaseException]) -> None:
    """A Ctrl-C, or a handler's exit, that comes while a hook of ours runs ends the program as ever."""
    model = nn.Linear(3, 1)
    with capture(clock=FakeClock()):
        groups = [{"params": [p], "lr": 0.1} for p in model.parameters()]
        optimizer = Stopped(groups, lr=0.1)
        optimizer.step()
        optimizer.stops = error
        with pytest.raises(error):
            optimizer.step()
        optimizer.stops = None
        optimizer.step()


def test_a_step_of_the_programs_own_that_failed_stands_alone() -> None:
    """A marked step that failed before any optimizer's turn is not joined with the inferred step that follows."""
    numbers = []
    with capture(clock=FakeClock()):
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def train() -> None:
            optimizer.zero_grad()
            model(torch.ones(2, 3)).sum().backward()
            optimizer.step()
            numbers.append(recorders.mine().number)

        train()
        train()
        with suppress(ValueError), otel_ml.step():
            raise ValueError
        for _ in range(3):
            train()
    assert numbers == [0, 1, 3, 4, 5]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
def test_a_nested_tensor_is_as_many_samples_as_it_holds() -> None:
    """A root that is given a strided nested tensor, which has no shape, is given one sample for each tensor in it."""
    with capture() as seen:
        model = nn.Linear(3, 1)
        for _ in range(3):
            with torch.no_grad():
                model(torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)]))
    assert seen.totals is not None
    assert seen.totals.inference.count == 3
    assert seen.totals.inference_samples == 6


def test_one_optimizers_loss_is_one_curve() -> None:
    """An optimizer's loss is one curve under its name, also where a second optimizer is met later."""
    with capture() as seen:
        model = nn.Linear(3, 1)
        both = [torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2)]
        for n in range(8):
            for optimizer in both[: 2 if n % 4 == 3 else 1]:
                optimizer.zero_grad()
                model(torch.ones(2, 3)).square().sum().backward()
                optimizer.step()
    assert seen.totals is not None
    first, second = seen.totals.losses.items()
    losses = [[row[key] for row in seen.steps() if key in row] for key in (
        names.LOSS.name, f"{names.STEP_LOSS}.{first[0]}", f"{names.STEP_LOSS}.{second[0]}",
    )]  # fmt: skip
    assert (second[0], [len(each) for each in losses]) == (f"{first[0].split('#')[0]}#2", [3, 5, 2])
    assert (first[1].first, first[1].last, second[1].first) == (losses[0][0], losses[1][-1], losses[2][0])
    assert [row[names.STEP_LOSS_BEFORE] for row in seen.steps() if names.STEP_LOSS_BEFORE in row] == [first[0]]
