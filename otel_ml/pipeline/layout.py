"""What a step's events come to: where its time went, its losses, rates, sizes and values.

Its phases never overlap, and with the residual they are the step. A forward phase lasts from
a root's call to the backward that follows; what is inside an event and counts on its own (a
compilation, a checkpoint) is taken out of it.
"""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

from otel_ml.core import recorder as r
from otel_ml.core.deferred import Values
from otel_ml.pipeline.findings import Item, Step

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

__all__ = [
    "BACKWARD", "FORWARD", "GRAD_NORM", "LOSS", "PHASE", "RESIDUAL", "TURNS", "build", "compiling", "counting",
    "framework_of", "left_out", "number_of", "packed_of", "unpack",
]  # fmt: skip

DATA_WAIT, FORWARD, BACKWARD, OPTIMIZER, COMPILE, CHECKPOINT, HOST, WAIT = (
    "data_wait", "forward", "backward", "optimizer", "compile", "checkpoint", "host", "wait",
)  # fmt: skip
RESIDUAL = "residual"
LOSS, GRAD_NORM = "loss", "grad_norm"  # the scalars that have a place of their own

PHASE = {
    r.FETCH: DATA_WAIT,
    r.FETCH_END: DATA_WAIT,
    r.FORWARD: FORWARD,
    r.FORWARD_NOGRAD: FORWARD,
    r.BACKWARD: BACKWARD,
    r.ZERO_GRAD: OPTIMIZER,
    r.STEP: OPTIMIZER,
    r.SCALER: OPTIMIZER,
    r.CLIP: OPTIMIZER,
    r.OPTIMIZER_WORK: OPTIMIZER,
    r.COMPILE: COMPILE,
    r.CHECKPOINT: CHECKPOINT,
    r.DEVICE_TRAIN: HOST,
    r.DEVICE_GRAD: HOST,
    r.DEVICE_UPDATE: HOST,
    r.DEVICE_CALL: HOST,
    r.DEVICE_WAIT: WAIT,
}
_DEVICE_TURNS = frozenset({r.DEVICE_TRAIN, r.DEVICE_UPDATE})
_DEVICE_LEARNS = frozenset({r.DEVICE_TRAIN, r.DEVICE_GRAD})
TURNS = frozenset({r.STEP, r.SCALER}) | _DEVICE_TURNS
_NESTED = frozenset({r.COMPILE, r.CHECKPOINT, r.CLIP, r.DEVICE_WAIT})  # count on their own inside another event
_ANYBODYS = frozenset({r.FETCH, r.FETCH_END, r.CHECKPOINT})
_NEVER = 1 << 62
_TOKENS_SHIFT = 32
_MASK = (1 << _TOKENS_SHIFT) - 1


def build(
    number: int, items: list[Item], end: int, outcome: str, turners: Collection[int], marks: Iterable[Item] = (),
    start: int = _NEVER,
) -> Step:  # fmt: skip
    """The step that these top-level items make; `turners` are the optimizers that have taken a turn so far."""
    first, last = (items[0].start, items[-1].end) if items else (start, end)
    step = Step(number, min(first, start), max(end, last, min(first, start)), outcome)
    _phases(step, items, marks)
    _count(step, items, _values(step, items, turners))
    step.framework = framework_of(i.code for i in items)
    return step


def counting(given: Sequence[tuple[int, Any]], which: int | None, turners: Collection[int], closure: int) -> list[int]:
    """Of the backward passes among these codes, each with its `a`, those whose gradients a turn takes.

    `which` takes the turn, None where none came. A zero_grad of that optimizer, or of one that never takes a turn (it
    wraps the one that does), threw the gradients before it away, if a backward came after it. From `closure` on they
    are inside of the turn: of a closure that is called again and again, the first call counts, as it is what `step`
    gives back.
    """
    kept: list[int] = []
    thrown = False
    for at, (code, a) in enumerate(given):
        if code == r.BACKWARD:
            if thrown:
                kept, thrown = [], False
            kept.append(at)
        elif a >= 0 and (which is None or a == which or a not in turners):
            if kept and kept[-1] >= closure:
                break
            thrown = True
    return kept


def left_out(given: Sequence[tuple[int, Any]], kept: list[int], before: int) -> set[int]:
    """Those that `counting` left out, by their place among the step's backward passes; `before` came before these."""
    backwards = (at for at, (code, _) in enumerate(given) if code == r.BACKWARD)
    return {before + n for n, at in enumerate(backwards) if at not in kept}


def _values(step: Step, items: list[Item], turners: Collection[int]) -> set[int]:
    """Fill in losses, rates and norms; which of the step's backward passes count for no turn is returned."""
    out: set[int] = set()
    before = 0
    sums: dict[int, float] = {}
    given: list[tuple[int, Any]] = []  # since the last turn
    turns = skipped = 0
    for item in _flat(items):
        code = item.code
        if code == r.BACKWARD:
            step.micro_batches += 1
            given.append((code, item.a))
        elif code == r.ZERO_GRAD:
            given.append((code, item.a))
        elif code in _DEVICE_LEARNS:
            step.micro_batches += 1
            loss = _scalars(step, item)
            if code == r.DEVICE_TRAIN:
                turns += 1
                if loss is not None:
                    sums[item.a] = loss
            else:
                given.append((r.BACKWARD, loss))
        elif code in TURNS:
            turns += 1
            inner = next((i for i in item.inside if i.code == r.STEP), None)
            scale = item.b if code == r.SCALER else None
            if code == r.SCALER and inner is None:
                skipped += 1
            closure = len(given)
            given += [(i.code, i.a) for i in item.inside if i.code in (r.BACKWARD, r.ZERO_GRAD)]
            step.micro_batches += sum(1 for code, _ in given[closure:] if code == r.BACKWARD)
            kept = counting(given, item.a, turners, closure)
            out |= left_out(given, kept, before)
            before = step.micro_batches
            loss = _sum(given, kept)
            if loss is not None:
                loss = loss / scale if scale else loss
                sums[item.a] = sums[item.a] + loss if item.a in sums else loss
            given = []
            rates = inner.b if inner is not None else (item.b if code == r.STEP else None)
            if rates is not None:
                step.learning_rates[item.a] = rates
        elif code == r.CLIP and item.a is not None:
            step.grad_norm = item.a
    if not turns:
        kept = counting(given, None, turners, len(given))
        out |= left_out(given, kept, before)
        if (loss := _sum(given, kept)) is not None:
            sums[-1] = loss
    step.losses = sums
    if turns and skipped == turns and step.outcome == "ok":
        step.outcome, step.skip_reason = "skipped", "gradient_overflow"
    return out


def _sum(given: list[tuple[int, Any]], places: list[int]) -> float | None:
    known = [given[at][1] for at in places if given[at][1] is not None]
    return reduce(add, known) if known else None


def _scalars(step: Step, item: Item) -> float | None:
    """Note what a compiled function gave back; its loss is returned."""
    if not isinstance(item.b, Values):
        return None
    for name, value in item.b.scalars.items():
        if name == GRAD_NORM:
            step.grad_norm = value
        elif name != LOSS:
            step.scalars[name] = value
    return item.b.scalars.get(LOSS)


def number_of(b: Any) -> float | None:
    """A recorded value, if it could be read."""
    if isinstance(b, Values):
        return next(iter(b.scalars.values()), None)
    return b if isinstance(b, float) else None


def packed_of(b: Any) -> int:
    """The packed samples and tokens of a compiled function's event."""
    return b.packed if isinstance(b, Values) else b if isinstance(b, int) else -1


def _count(step: Step, items: list[Item], out: set[int]) -> None:
    fetches = [i for i in items if i.code == r.FETCH]
    known = [i.a for i in fetches if i.a >= 0]
    learning = [i for i in items if i.code in _DEVICE_LEARNS]
    if known:
        tokens = [i.b for i in fetches if i.b >= 0]
        step.samples = sum(known)
        step.tokens = sum(tokens) if tokens else None
        return
    if learning:
        sizes = [unpack(packed_of(i.b)) for i in learning]
        step.samples = sum(samples for samples, _ in sizes) or None
        step.tokens = sum(tokens for _, tokens in sizes) or None
        return
    forwards = [i for i in items if i.code == r.FORWARD]
    # Where no loader tells, the root's own batch is the step's only where one root runs in it, once a backward. Forward
    # passes to backward passes whose gradients were thrown away are not of the batch, but of a way to it.
    alone = len({i.a for i in forwards}) == 1 and len(forwards) == step.micro_batches
    if alone and all(i.b > 0 for i in forwards):
        sizes = [unpack(i.b) for n, i in enumerate(forwards) if n not in out]
        step.samples = sum(samples for samples, _ in sizes)
        step.tokens = sum(tokens for _, tokens in sizes) or None


def framework_of(codes: Iterable[int]) -> str:
    """Whose step it is; one that the program itself marked may be nobody's."""
    met = set(codes) - _ANYBODYS
    if not met:
        return "none"
    return "torch" if (_DEVICE_TURNS | _DEVICE_LEARNS).isdisjoint(met) else "jax"


def compiling(item: Item) -> int:
    """Nanoseconds of compilations inside an event."""
    return sum(i.end - i.start if i.code == r.COMPILE else compiling(i) for i in item.inside)


def unpack(packed: int) -> tuple[int, int]:
    """Samples and tokens of a root forward's input; 0 for what is not known."""
    return (packed & _MASK, packed >> _TOKENS_SHIFT) if packed > 0 else (0, 0)


def _flat(items: list[Item]) -> list[Item]:
    """The items, and before each the gradient norms that were inside of it."""
    flat: list[Item] = []
    for item in items:
        flat.extend(i for i in item.inside if i.code == r.CLIP)
        flat.append(item)
    return flat


def _phases(step: Step, items: list[Item], marks: Iterable[Item]) -> None:
    """Lay the step out: each phase's intervals, nothing overlapping, the rest as residual."""
    spans: list[tuple[str, int, int]] = []
    forward: int | None = None  # where the forward phase of the next backward began
    for item in items:
        if item.code == r.FORWARD and forward is None:
            forward = item.start
        elif item.code == r.BACKWARD and forward is not None:
            spans.append((FORWARD, forward, item.start))
            forward = None
        elif item.code in TURNS or (item.code == r.FETCH and forward is not None):
            forward = None
    own = [s for i in items for s in _own(i)]
    covered = _subtract(spans, own) + own
    marked = _marked(step, marks)
    if marked:
        covered = _subtract(covered, marked) + marked
    covered.sort(key=lambda s: (s[1], s[2]))
    start, end = step.start, step.end
    total = 0
    cursor = start  # events of one thread nest; should a clock ever say otherwise, the earlier one keeps its time
    for name, begin, stop in covered:
        first, last = max(begin, cursor), min(stop, end)
        step.phases[name] = step.phases.get(name, 0) + max(0, last - first)
        if last <= first:
            continue
        cursor = last
        total += last - first
        if step.intervals and step.intervals[-1][0] == name and step.intervals[-1][2] == first:
            step.intervals[-1] = (name, step.intervals[-1][1], last)
        else:
            step.intervals.append((name, first, last))
    step.phases[RESIDUAL] = end - start - total
    step.compiled = COMPILE in step.phases
    step.checkpointed = CHECKPOINT in step.phases


def _marked(step: Step, marks: Iterable[Item]) -> list[tuple[str, int, int]]:
    """The program's own phases in this step; of two that nest, the inner one's time is its own."""
    mine = [m for m in marks if step.start <= m.start < step.end]
    placed: list[tuple[str, int, int]] = []
    for mark in sorted(mine, key=lambda m: m.end - m.start):
        placed += _subtract([(mark.a, mark.start, mark.end)], placed)
    return placed


def _own(item: Item) -> list[tuple[str, int, int]]:
    """An item's own intervals: its time less what was inside it and counts on its own."""
    name = PHASE[item.code]
    inner: list[tuple[str, int, int]] = []
    closure = item.code in TURNS
    forward: int | None = None
    for child in item.inside:
        if child.code in _NESTED:
            if child.code != r.CLIP:
                inner.extend(_own(child))
        elif closure and child.code == r.FORWARD:
            forward = child.start if forward is None else forward
        elif closure and child.code == r.BACKWARD:
            if forward is not None:
                inner.append((FORWARD, forward, child.start))
                forward = None
            inner.extend(_own(child))
        else:
            inner.extend(s for s in _own(child) if s[0] in (COMPILE, CHECKPOINT))
    return _subtract([(name, item.start, item.end)], inner) + inner


def _subtract(spans: list[tuple[str, int, int]], holes: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """`spans` with every hole cut out."""
    for _, begin, stop in holes:
        cut: list[tuple[str, int, int]] = []
        for name, first, last in spans:
            if stop <= first or begin >= last:
                cut.append((name, first, last))
                continue
            if first < begin:
                cut.append((name, first, begin))
            if stop < last:
                cut.append((name, stop, last))
        spans = cut
    return spans
