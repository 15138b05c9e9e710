"""What the tracker finds in a thread's events: steps, evaluations, calls and what else there is to tell of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from array import array

__all__ = ["Call", "Calls", "Epoch", "Evaluation", "Item", "Output", "Passed", "Point", "Rare", "Step"]


class Item(NamedTuple):
    """One top-level event of a step, with what was inside it."""

    code: int
    start: int
    end: int
    a: Any
    b: Any
    inside: tuple[Item, ...] = ()


class Rare(NamedTuple):
    """A compile or a checkpoint, wherever it happened: passed on with the step it was in, if any."""

    code: int
    start: int
    end: int
    payload: dict[str, Any]
    step: int | None


@dataclass
class Step:
    """One training step; instants are `now()` nanoseconds, `phases` nanoseconds by phase."""

    number: int
    start: int
    end: int
    outcome: str = "ok"
    skip_reason: str | None = None
    phases: dict[str, int] = field(default_factory=dict)
    intervals: list[tuple[str, int, int]] = field(default_factory=list)
    losses: dict[int, float] = field(default_factory=dict)
    learning_rates: dict[int, Any] = field(default_factory=dict)
    grad_norm: float | None = None
    samples: int | None = None
    tokens: int | None = None
    scalars: dict[str, float] = field(default_factory=dict)
    micro_batches: int = 0
    compiled: bool = False
    checkpointed: bool = False
    framework: str = "torch"
    epoch: int | None = None

    @property
    def duration(self) -> int:
        """Nanoseconds from edge to edge."""
        return self.end - self.start


@dataclass
class Evaluation:
    """Root forwards without grad between training steps."""

    start: int
    end: int
    calls: int
    next_step: int
    functions: set[int] = field(default_factory=set)  # compiled ones that were called
    compiling: int = 0  # nanoseconds of it that went into compilations
    split: str | None = None


class Epoch(NamedTuple):
    """One epoch, as the program said."""

    number: int
    start: int
    end: int
    failed: bool


class Point(NamedTuple):
    """A value that was recorded in no step, with the step that it is of: the last one, or the one that was given."""

    at: int
    step: int | None
    column: str
    value: float


class Call(NamedTuple):
    """One root forward without grad of a thread that has never trained."""

    start: int
    end: int
    root: int
    samples: int | None
    compiling: int = 0  # nanoseconds of it that went into compilations
    failed: bool = False  # an exception left it


class Calls(NamedTuple):
    """Consecutive calls of one model as columns, one entry a call; none failed, none compiled."""

    root: int
    starts: array[int]
    ends: array[int]
    durations: array[int]
    samples: list[int]  # 0 where it is not known


class Passed(NamedTuple):
    """The first forward pass of a thread whose process differentiates on its own: of no step, and no request."""

    start: int
    end: int


Output = Step | Evaluation | Call | Calls | Passed | Rare | Epoch | Point
