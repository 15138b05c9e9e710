"""Fast loops, a block of steps at a time.

A training loop repeats the same events in the same order, once a step. Where a thread's
tracker has come round to the very state it was in a step ago, and the coming events are
that cycle again, one after the other, what it would say of each is known: the same items
at other times. `advance()` then computes whole columns instead of feeding events, about
fifty times cheaper. Anything else (a nested event, another order, another optimizer, an
unknown value) goes through the tracker. `tests/pipeline/test_steady.py` shows that both
ways say the same.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import compress, cycle
from operator import add
from typing import TYPE_CHECKING, Any

from otel_ml.core import recorder as r
from otel_ml.core.context import scalars
from otel_ml.core.deferred import Values
from otel_ml.core.recorder import WIDTH, instants
from otel_ml.pipeline.columns import AT_ONCE, combined, floats, follow
from otel_ml.pipeline.findings import Item
from otel_ml.pipeline.layout import (
    BACKWARD,
    FORWARD,
    GRAD_NORM,
    LOSS,
    PHASE,
    RESIDUAL,
    build,
    counting,
    framework_of,
    left_out,
    number_of,
    packed_of,
    unpack,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from otel_ml.pipeline.columns import Terms
    from otel_ml.pipeline.findings import Step
    from otel_ml.pipeline.steps import Tracker

__all__ = ["Block", "Steady"]

_LEAST = 4
_INSTANTS = (1, 2)  # slots
_DEVICE = frozenset({r.DEVICE_TRAIN, r.DEVICE_CALL})
_SIMPLE = _DEVICE | {
    r.FETCH, r.FORWARD, r.BACKWARD, r.ZERO_GRAD, r.STEP, r.CLIP, r.OPTIMIZER_WORK, r.DEVICE_WAIT, r.SCALAR,
}  # fmt: skip
_BY_NUMBER = _DEVICE | {r.FORWARD, r.ZERO_GRAD, r.STEP, r.SCALAR}  # events whose `a` says which object


@dataclass
class Block:
    """Consecutive steps as columns; instants and durations in nanoseconds, one entry a step."""

    first: int
    starts: array[int]  # one more than there are steps: the last is where the last one ends
    durations: array[int]
    phases: dict[str, array[int]]
    losses: dict[int, Sequence[float | None]]
    learning_rates: dict[int, Sequence[Any]]
    grad_norms: Sequence[float | None] | None
    samples: list[int] | None
    tokens: list[int] | None
    scalars: dict[str, Sequence[float | None]]
    micro_batches: int
    framework: str
    _events: tuple[Sequence[Any], ...]  # codes, starts, ends, a and b of every event
    _cycle: int
    _turners: frozenset[int]
    epoch: int | None = None

    def __len__(self) -> int:
        return len(self.durations)

    def step(self, index: int) -> Step:
        """One of the steps, whole."""
        mine = slice(index * self._cycle, (index + 1) * self._cycle)
        items = list(map(Item, *(column[mine] for column in self._events)))
        step = build(self.first + index, items, self.starts[index + 1], "ok", self._turners)
        step.scalars.update((name, v) for name, of in self.scalars.items() if (v := of[index]) is not None)
        step.epoch = self.epoch
        return step


class Steady:
    """Watches one tracker for a loop that has become steady."""

    def __init__(self) -> None:
        self._signature: tuple[Any, ...] | None = None
        self._cycle = 0
        self._since = 0
        self._before: tuple[list[int], list[Any]] | None = None  # codes and `a` of the cycle before a chunk's first
        self._paused = False

    def fed(self) -> None:
        """The tracker was fed one event."""
        self._since += 1

    def taken(self) -> int:
        """Slots of the chunk that each step of the block just made took."""
        return self._cycle * WIDTH

    def came_round(self, tracker: Tracker, *, alone: bool) -> bool:
        """A step was emitted (`alone`: and nothing else); whether the tracker is where it was a step ago."""
        signature = tracker.signature() if alone else None
        same = signature is not None and signature == self._signature and self._since in (0, self._cycle)
        self._signature, self._cycle, self._since = signature, self._since or self._cycle, 0
        return same

    def pause(self, chunk: list[Any], at: int) -> bool:
        """Whether the events from `at` on are too few to take, but may not be with those that come.

        If so they are to be seen again, at the begin of the next chunk: there `goes_on()`.
        """
        past = at - self._cycle * WIDTH
        self._paused = past >= 0 and self._is_short(chunk, at)
        if self._paused:
            self._before = chunk[past:at:WIDTH], chunk[past + 3 : at : WIDTH]
        return self._paused

    def goes_on(self, tracker: Tracker) -> bool:
        """Whether the next chunk begins where a loop paused, and the tracker still is where it was."""
        paused, self._paused = self._paused, False
        if not paused or tracker.signature() != self._signature:
            self._before = None
        return self._before is not None

    def _is_short(self, chunk: list[Any], at: int) -> bool:
        return (len(chunk) - at) // WIDTH < (_LEAST + 1) * self._cycle

    def advance(self, tracker: Tracker, chunk: list[Any], at: int) -> Block | None:
        """Take as many coming cycles as are like the last one, at most `AT_ONCE`; None if there are too few.

        `at` is where the next event begins in `chunk`; the events of the block taken are
        `len(block) * cycle`.
        """
        cycle = self._cycle
        past = at - cycle * WIDTH
        before, self._before = self._before, None
        if past >= 0:
            before = chunk[past:at:WIDTH], chunk[past + 3 : at : WIDTH]
        if before is None or self._is_short(chunk, at):
            return None
        pattern, which = before
        if not _SIMPLE.issuperset(pattern):
            return None
        count = min(AT_ONCE + 1, (len(chunk) - at) // WIDTH // cycle)
        stop = at + count * cycle * WIDTH
        codes = chunk[at:stop:WIDTH]
        if codes != pattern * count:
            count = next(n for n in range(count) if codes[n * cycle : (n + 1) * cycle] != pattern)
        a = chunk[at + 3 : stop : WIDTH]
        for j, code in enumerate(pattern):
            if code in _BY_NUMBER:
                column = a[j : count * cycle : cycle]
                while count and column.count(which[j]) != count:
                    count -= 1
                    column.pop()
        count -= 1  # the last cycle goes through the tracker, whatever follows it
        if count < _LEAST:
            return None
        return self._take(tracker, chunk, at, at + count * cycle * WIDTH)

    def _take(self, tracker: Tracker, chunk: list[Any], at: int, stop: int) -> Block | None:
        pattern = chunk[at : at + self._cycle * WIDTH : WIDTH]
        carried = tracker.items
        columns: list[Any] = [
            instants(chunk, at + slot, stop) if slot in _INSTANTS else chunk[at + slot : stop : WIDTH]
            for slot in range(WIDTH)
        ]
        said = columns
        if r.SCALAR in pattern:
            if not carried:
                return None
            keep = [code != r.SCALAR for code in pattern]
            columns = [_like(column, compress(column, cycle(keep))) for column in columns]
        events: Any = (_like(column, (i[slot] for i in carried)) + column for slot, column in enumerate(columns))
        codes, starts, ends, a, b = events
        if not follow(ends, starts, 1):
            return None  # something nests
        whole_cycle = self._cycle - pattern.count(r.SCALAR)
        count = (stop - at) // WIDTH // self._cycle
        whole = count * whole_cycle
        edges = starts[0 : whole + 1 : whole_cycle]
        if len(edges) != count + 1:
            return None
        block = Block(
            first=tracker.number,
            starts=edges,
            durations=combined(edges, edges, 1, count, ((1, False, False), (0, False, True))),
            phases={},
            losses={},
            learning_rates={},
            grad_norms=None,
            samples=None,
            tokens=None,
            scalars={},
            micro_batches=codes[:whole_cycle].count(r.BACKWARD) + codes[:whole_cycle].count(r.DEVICE_TRAIN),
            framework=framework_of(codes[:whole_cycle]),
            epoch=tracker.epoch,
            _events=(codes, starts, ends, a, b),
            _cycle=whole_cycle,
            _turners=frozenset(tracker.turners),
        )
        layout = _Columns(codes[:whole_cycle], starts, ends, a, b, whole, whole_cycle)
        if not layout.values(block):
            return None
        layout.phases(block)
        _recorded(block, tracker, pattern, said, len(carried))
        open_now = map(Item, codes[whole:], starts[whole:], ends[whole:], a[whole:], b[whole:])
        tracker.skip(list(open_now), count, ends[-1])
        return block


def _like(column: Sequence[Any], values: Iterable[Any]) -> Sequence[Any]:
    return array("q", values) if isinstance(column, array) else list(values)


@lru_cache(maxsize=64)
def _plan(codes: tuple[int, ...]) -> dict[str, Terms]:
    """Each phase of a step with these events as a sum of instants, from the codes alone: what `combined()` takes."""
    # By place in the cycle, and whether it is the event's end: how often the instant is added.
    times: dict[str, Counter[tuple[int, bool]]] = {}
    rest = Counter({(len(codes), False): 1, (0, False): -1})

    def spend(phase: str, since: tuple[int, bool], until: tuple[int, bool], less: int = 1) -> None:
        for counts, sign in ((times.setdefault(phase, Counter()), less), (rest, -less)):
            counts[until] += sign
            counts[since] -= sign

    forward: int | None = None
    for j, code in enumerate(codes):
        if code == r.FORWARD:
            if forward is not None:
                continue
            if _backward_after(codes[j:]):
                forward = j
                continue
        elif code == r.BACKWARD and forward is not None:
            spend(FORWARD, (forward, False), (j, False))
            for inner in range(forward + 1, j):
                if codes[inner] != r.FORWARD:
                    spend(FORWARD, (inner, False), (inner, True), -1)
            forward = None
        phase = {r.FORWARD: FORWARD, r.BACKWARD: BACKWARD}.get(code) or PHASE[code]
        spend(phase, (j, False), (j, True))
    times[RESIDUAL] = rest
    return {
        phase: tuple((*instant, count < 0) for instant, count in counts.items() for _ in range(abs(count)))
        for phase, counts in times.items()
    }


def _backward_after(codes: tuple[int, ...]) -> bool:
    """Whether a forward that these begin with runs into a backward before a turn or the next batch."""
    for code in codes:
        if code == r.BACKWARD:
            return True
        if code in (r.STEP, r.FETCH):
            return False
    return False


def _recorded(block: Block, tracker: Tracker, pattern: list[int], said: list[Sequence[Any]], carried: int) -> None:
    """Put what the program recorded into the steps in whose time it did; the last may be of the step open now."""
    count, length = len(block), len(pattern)
    mine: list[tuple[int, Item]] = [(0, item) for item in tracker.values]
    other = 0
    for j, code in enumerate(pattern):
        if code != r.SCALAR:
            other += 1
            continue
        later = (carried + other - 1) // block._cycle  # noqa: SLF001 - its own kind
        items = map(Item, *(column[j::length] for column in said))
        mine += ((n + later, item) for n, item in enumerate(items))
    tracker.values = [item for n, item in mine if n >= count]
    columns: dict[str, list[float | None]] = {}
    for n, item in mine:
        value = number_of(item.b)
        if n < count and value is not None:
            columns.setdefault(scalars.columns[item.a], [None] * count)[n] = value
    block.scalars.update(columns)


class _Columns:
    """The events of a block by their place in the cycle."""

    def __init__(
        self, codes: list[int], starts: array[int], ends: array[int], a: list[Any], b: list[Any], whole: int, cycle: int
    ) -> None:
        self.codes = codes
        self._starts, self._ends, self._a, self._b = starts, ends, a, b
        self._whole, self._cycle = whole, cycle

    def a(self, j: int) -> list[Any]:
        return self._a[j : self._whole : self._cycle]

    def b(self, j: int) -> list[Any]:
        return self._b[j : self._whole : self._cycle]

    def phases(self, block: Block) -> None:
        """The same layout as `layout.build` makes."""
        for phase, terms in _plan(tuple(self.codes)).items():
            block.phases[phase] = combined(self._starts, self._ends, self._cycle, len(block), terms)

    def values(self, block: Block) -> bool:
        """Fill in losses, rates, norms and counts; False where one is not known throughout."""
        given: list[tuple[int, Any]] = []  # since the last turn: losses as columns, or an optimizer's number
        out: set[int] = set()
        before = turns = 0
        samples: list[int] | None = None
        tokens: list[int] | None = None
        forwards: list[int] = []
        for j, code in enumerate(self.codes):
            if code == r.BACKWARD:
                losses = _whole(self.a(j))
                if losses is None:
                    return False
                given.append((code, losses))
            elif code == r.ZERO_GRAD:
                given.append((code, self.a(j)[0]))
            elif code == r.STEP:
                turns += 1
                which = self.a(j)[0]
                kept = counting(given, which, block._turners, len(given))  # noqa: SLF001 - its own kind
                out |= left_out(given, kept, before)
                before += sum(1 for code, _ in given if code == r.BACKWARD)
                losses = _summed(given, kept)
                if losses:
                    known = block.losses.get(which)
                    block.losses[which] = losses if known is None else _sums(known, losses)
                given = []
                rates = _whole(self.b(j))
                if rates is None:
                    return False
                if rates:
                    block.learning_rates[which] = rates
            elif code == r.CLIP:
                norms = _whole(self.a(j))
                if not norms:
                    return False
                block.grad_norms = norms
            elif code == r.FETCH:
                rows, words = self.a(j), self.b(j)
                if max(rows) < 0:
                    continue
                if min(rows) < 0 or (min(words) < 0) != (max(words) < 0):
                    return False
                samples = rows if samples is None else list(map(add, samples, rows))
                if words[0] >= 0:
                    tokens = words if tokens is None else list(map(add, tokens, words))
            elif code == r.FORWARD:
                forwards.append(j)
            elif code == r.DEVICE_TRAIN:
                turns += 1
                self._scalars(block, j)
                if not self._sizes(block, j):
                    return False
        if samples is None and block.samples is not None:
            samples, tokens = block.samples, block.tokens
        if not turns:
            kept = counting(given, None, block._turners, len(given))  # noqa: SLF001
            out |= left_out(given, kept, before)
            if losses := _summed(given, kept):
                block.losses[-1] = losses
        block.samples, block.tokens = samples, tokens
        if samples is None:
            return self._from_forwards(block, forwards, out)
        return True

    def _scalars(self, block: Block, j: int) -> None:
        """What a compiled function gave back in each step, as far as it was looked at."""
        given = self.b(j)
        looked_at = [(n, b.scalars) for n, b in enumerate(given) if type(b) is Values]
        for name in dict.fromkeys(name for _, values in looked_at for name in values):
            column: list[float | None] = [None] * len(given)
            for n, values in looked_at:
                column[n] = values.get(name)
            if name == LOSS:
                block.losses[self.a(j)[0]] = column
            elif name == GRAD_NORM:
                block.grad_norms = _over(block.grad_norms, column)
            else:
                block.scalars[name] = _over(block.scalars.get(name), column)

    def _sizes(self, block: Block, j: int) -> bool:
        """Samples and tokens of a compiled function's calls; False where some tell and others do not."""
        rows, words = _unpacked([b if type(b) is int else packed_of(b) for b in self.b(j)])
        if (min(rows) > 0) != (max(rows) > 0) or (min(words) > 0) != (max(words) > 0):
            return False
        for name, column in (("samples", rows), ("tokens", words)):
            known = getattr(block, name)
            if column[0]:
                setattr(block, name, column if known is None else list(map(add, known, column)))
        return True

    def _from_forwards(self, block: Block, forwards: list[int], out: set[int]) -> bool:
        if len({self.a(j)[0] for j in forwards}) != 1 or len(forwards) != block.micro_batches:
            return True
        for n, j in enumerate(forwards):
            rows, words = _unpacked(self.b(j))
            if min(rows) <= 0 or (min(words) == 0) != (max(words) == 0):
                return max(rows) <= 0 and len(forwards) == 1
            if n in out:
                continue
            block.samples = rows if block.samples is None else list(map(add, block.samples, rows))
            if words[0]:
                block.tokens = words if block.tokens is None else list(map(add, block.tokens, words))
        return True


def _whole(column: list[Any]) -> Sequence[Any] | None:
    """A column in which no value is missing, empty where all are; None where some are."""
    known = floats(column)
    if known is not None:
        return known
    missing = column.count(None)
    if not missing:
        return column
    return () if missing == len(column) else None


def _summed(given: list[tuple[int, Any]], places: list[int]) -> Sequence[Any]:
    return reduce(_sums, [given[at][1] for at in places if given[at][1]], ())


def _sums(one: Sequence[Any], other: Sequence[Any]) -> Sequence[Any]:
    if not one:
        return other
    both = list(map(add, one, other))
    return floats(both) or both


def _unpacked(packed: list[int]) -> tuple[list[int], list[int]]:
    """Samples and tokens, a column each."""
    if packed.count(packed[0]) == len(packed):
        rows, words = unpack(packed[0])
        return [rows] * len(packed), [words] * len(packed)
    both = list(map(unpack, packed))
    return [rows for rows, _ in both], [words for _, words in both]


def _over(known: Sequence[float | None] | None, later: Sequence[float | None]) -> Sequence[float | None]:
    """What came later in each step, else what came before."""
    if known is None:
        return later
    return [old if new is None else new for old, new in zip(known, later, strict=True)]
