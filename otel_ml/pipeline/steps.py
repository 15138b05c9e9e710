"""What a training step is: a pure state machine over one thread's recorded events.

The drain feeds a `Tracker` the events of one recorder, in the order of their ends, and
gets back finished `Step`s, `Evaluation`s and `Call`s. No clock, no OpenTelemetry, no
framework: `tests/pipeline/test_steps.py` holds a table for every rule.

- A *turn* is an optimizer's step, or a scaler's that skipped one. It must have happened
  before anything can close the step.
- An *edge* closes it: after a turn, a batch fetch, the iterator's end, the construction of an optimizer, at once; a
  root forward without grad, once the next event shows that it was not inside one. A root forward with grad,
  zero_grad or backward is a *candidate*: confirmed when an optimizer of this round takes
  its turn again, discarded when a new one does (a GAN: one step holds one round).
- Where a compiled function trains (JAX), its call is the turn, and what the program waits for after it belongs to
  its step. One that only yields gradients is a backward, the one that takes them in is the turn; where it was called
  more often than before each of the last two turns, the first of those calls were an evaluation. Others, called
  between steps, are one too; but one that is called before every step is a part of the step.
- Events nest by containment: what a later event's interval covers was inside it.
- What the program says itself comes first: a step or an evaluation that it began holds all until it ends it, with
  the batch that was fetched just before. Its phases take their time from what was inferred there. A value belongs to
  the step in whose time it was recorded, else to the last one before that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_ml.core import recorder as r
from otel_ml.core.context import scalars
from otel_ml.pipeline.aside import CALLS, Aside
from otel_ml.pipeline.findings import Call, Epoch, Evaluation, Item, Passed, Point, Rare
from otel_ml.pipeline.layout import TURNS, build, compiling, number_of, unpack

if TYPE_CHECKING:
    from otel_ml.pipeline.findings import Output

__all__ = ["Tracker"]

_BACKWARDS = frozenset({r.BACKWARD, r.DEVICE_GRAD})
_OPENERS = frozenset({r.FETCH, r.FORWARD, r.ZERO_GRAD}) | _BACKWARDS | TURNS
_CANDIDATES = frozenset({r.FORWARD, r.ZERO_GRAD}) | _BACKWARDS
_SAID = frozenset({
    r.STEP_BEGIN, r.STEP_END, r.EVALUATION_BEGIN, r.EVALUATION_END, r.EPOCH_BEGIN, r.EPOCH_END, r.MARK, r.SCALAR,
})  # fmt: skip
# Events whose `a` says which object.
_WHICH = frozenset({r.FORWARD, r.ZERO_GRAD, r.DEVICE_GRAD, r.DEVICE_CALL}) | TURNS
_NEVER = 1 << 62
_UNTRAINED = 16  # forwards with grad that wait for a first backward
_PENDING = 256  # events without a turn, at which evaluations among them are looked for
_MARKS = 4096  # phases and values that wait for their step to end


class Tracker:
    """Turns one thread's events into steps, evaluations and calls.

    `trains` says whether the process trains (an optimizer exists or backward has run):
    until it does, root forwards without grad are calls, unless it `differentiates`. Then
    they are evaluations, and those with grad are of steps that nobody sees.
    """

    def __init__(self) -> None:
        self.number = 0
        self.trains = False
        self.differentiates = False  # autograd.grad has run: what it trains, if it does, is not seen
        self.by_hand = True  # no optimizer was ever constructed: weights are updated by hand
        self.items: list[Item] = []
        self.round: set[int] = set()
        self.turners: set[int] = set()  # optimizers that have ever taken a turn
        self.candidate: int | None = None  # index into items
        self.losses: dict[int, float] = {}
        self.out: list[Output] = []
        self.loose: list[Item] = []  # compiles, until it is known what they are inside of
        self.last_end = 0
        self._aside: Aside | None = None  # forwards that belong to no step, so far
        self._after: Aside | None = None  # the same after a turn: where they begin, the step ends
        self._held: Evaluation | None = None  # the last one, until it is sure that it does not come with every step
        self._early: list[Call] = []  # of compiled functions, before it is known whether the process trains
        self._called: dict[int, int] = {}  # the step before which a compiled function was last called
        self._of_steps: set[int] = set()  # compiled functions that are called before every step
        self._differentiated: dict[int, tuple[int, ...]] = {}  # how often a function was, before its last two turns
        self._within: Item | None = None  # what the program itself began
        self._calls_within = self._compiling_within = 0
        self._passed = False
        self.epoch: int | None = None
        self.marks: list[Item] = []  # the program's phases, until their step ends
        self.values: list[Item] = []  # and its values

    # --- input -----------------------------------------------------------------------

    def feed(self, code: int, start: int, end: int, a: Any, b: Any) -> None:
        """Take one event; what it completes is appended to `out`."""
        if code in _SAID:
            self._said(Item(code, start, end, a, b))
            return
        if self._within is not None:
            self._inside(code, start, end, a, b)
            return
        inside = self._absorb(code, start)
        self._take_back(start)
        if self._after is not None and code not in (r.FORWARD_NOGRAD, r.COMPILE):
            self._leave_step()
        if self.loose and code not in (r.COMPILE, r.CHECKPOINT):
            inside += self._settle(start, opens=code in _OPENERS)
        item = Item(code, start, end, a, b, inside)
        if inside:
            # What was taken for an edge inside this event was none: the event began before it.
            self._forget(inside)
        if code in (r.COMPILE, r.CHECKPOINT):
            if code == r.CHECKPOINT or (self.items and not self._turned()):
                self.out.append(Rare(code, start, end, a, self.number if self.items else None))
                if self.items:
                    self.items.append(item)
            else:
                self.loose.append(item)
            return
        if code == r.NUMBERED:
            if self._turned():
                self._close_at(start, len(self.items))
            self.number = max(self.number, a)
            return
        if code == r.BUILD:
            self._no_batch()
            self.built()
            if self._turned():
                self._close_at(start, len(self.items))
            return
        if code in TURNS:
            self._turn(item)
        elif code == r.FETCH_END:
            if self._turned():
                self._close_at(start, len(self.items))
            elif self.items:
                self._insert(item)
                self._no_batch()
        elif code == r.FORWARD_NOGRAD:
            self._forward_nograd(item)
        elif code == r.DEVICE_CALL:
            self._device_call(item)
        elif code == r.DEVICE_WAIT and not self.items:
            if self._aside is not None:
                self._aside.found.end = end
            elif self._early:  # what the last request was for
                self._early[-1] = self._early[-1]._replace(end=end)
        else:
            self._event(item)
        self.last_end = max(self.last_end, end)

    def built(self) -> None:
        """An optimizer exists in the process: it trains, and not by hand."""
        self.trains = True
        self.by_hand = False
        self._early.clear()  # they set the training up

    def finish(self, *, failed: bool = False) -> None:
        """The thread's or the program's end: close what is open at its last event."""
        if self._within is not None:
            self._ended(
                Item(
                    self._within.code + 1, self._within.start, self.last_end, None, r.FAILED if failed else r.ABANDONED
                )
            )
            failed = False
        self._leave_step()
        self._settle(_NEVER, opens=False)
        if self._turned():
            # What has taken its turn is done; what follows is the next step, or was none.
            at = self.candidate if self.candidate is not None else len(self.items)
            said = [item.start for item in self.values[-1:] if self.candidate is None]
            self._close_at(max(self.items[at - 1].end, *said, 0), at)
            if failed:
                self._fail()
            else:
                self._leave_open()
        elif self.by_hand and self._backwards() and not failed:
            self._close_manual(self.last_end)
        elif failed and self.items:
            self._fail()
        else:
            self._leave_open()
        self.out += self._early
        self._early = []
        self._flush_evaluation(last=True)
        self.items = []
        self._let_go(_NEVER)

    # --- what the program says itself --------------------------------------------------

    def _said(self, item: Item) -> None:
        code = item.code
        if code != r.MARK:
            self._leave_step()
        if code == r.MARK:
            if len(self.marks) >= _MARKS:
                del self.marks[0]
            self.marks.append(item)
        elif code == r.SCALAR:
            self.values.append(item)
            if not self.items and self._within is None:
                self._let_go(_NEVER)
            elif len(self.values) > _MARKS:
                self._let_go(self.values[1].start)
        elif code in (r.EPOCH_BEGIN, r.EPOCH_END):
            self._between(item.start if code == r.EPOCH_BEGIN else item.end)
            self.epoch = item.a if code == r.EPOCH_BEGIN else None
            if code == r.EPOCH_END:
                self.out.append(Epoch(item.a, item.start, item.end, item.b == r.FAILED))
        elif self._within is not None:
            if item.code == self._within.code + 1:
                self._ended(item)
        elif code in (r.STEP_BEGIN, r.EVALUATION_BEGIN):
            self._began(item)

    def _between(self, at: int) -> None:
        """What is never inside a step: it closes the one that is complete."""
        if self._within is not None:
            return
        self._settle(at, opens=False)
        if self._turned():
            self._close_at(at, len(self.items))
        elif self.by_hand and self._backwards():
            self._close_manual(at)

    def _began(self, item: Item) -> None:
        self._between(item.start)
        fetched = len(self.items)
        while fetched and self.items[fetched - 1].code in (r.FETCH, r.FETCH_END):
            fetched -= 1
        batch = self.items[fetched:] if item.code == r.STEP_BEGIN else []
        del self.items[fetched:]
        self._leave_open()
        self._flush_evaluation()
        self._within, self.items = item, batch
        self._calls_within = self._compiling_within = 0
        if item.code == r.STEP_BEGIN:
            self.built()
            self.number = max(self.number, item.a)

    def _inside(self, code: int, start: int, end: int, a: Any, b: Any) -> None:
        """An event of what the program itself began: nothing opens or closes by it."""
        within: Any = self._within
        of_step = within.code == r.STEP_BEGIN
        if code in (r.COMPILE, r.CHECKPOINT):
            self.out.append(Rare(code, start, end, a, self.number if of_step else None))
            self._compiling_within += end - start if code == r.COMPILE else 0
        self._calls_within += code in CALLS
        if code == r.BUILD:
            self.built()
        elif of_step and code != r.NUMBERED:
            if code in TURNS:
                self.turners.add(a)
            self.items.append(Item(code, start, end, a, b, self._absorb(code, start)))
        self.last_end = max(self.last_end, end)

    def _ended(self, item: Item) -> None:
        began: Any = self._within
        self._within = None
        items, self.items = self.items, []
        self.last_end = max(self.last_end, item.end)
        if began.code == r.EVALUATION_BEGIN:
            self.out.append(
                Evaluation(began.start, item.end, self._calls_within, self.number,
                           compiling=self._compiling_within, split=item.a)
            )  # fmt: skip
            self._let_go(_NEVER)
        elif item.b != r.ABANDONED:
            start = min(items[0].start, began.start) if items else began.start
            self._tell(items, item.end, "failed" if item.b == r.FAILED else "ok", start)

    def _let_go(self, before: int) -> None:
        """What was recorded before then, and in no step, is of the last step there was."""
        while self.values and self.values[0].start < before:
            item = self.values.pop(0)
            value = number_of(item.b)
            if value is not None:
                self.out.append(
                    Point(item.start, self.number - 1 if self.number else None, scalars.columns[item.a], value)
                )

    def _tell(self, items: list[Item], end: int, outcome: str, start: int) -> None:
        """A step is complete."""
        self._let_go(start)
        step = build(self.number, items, end, outcome, self.turners, self.marks, start)
        self.marks = [mark for mark in self.marks if mark.start >= step.end]
        later = next((n for n, item in enumerate(self.values) if item.start > step.end), len(self.values))
        for item in self.values[:later]:
            value = number_of(item.b)
            if value is not None:
                step.scalars[scalars.columns[item.a]] = value
        del self.values[:later]
        step.epoch = self.epoch
        self.out.append(step)
        self.number += 1

    # --- the rules -------------------------------------------------------------------

    def _event(self, item: Item) -> None:
        """A fetch, root forward with grad, backward, zero_grad or other optimizer work."""
        code = item.code
        if code in _BACKWARDS:
            self.trains = True
            self._early.clear()
        if self._turned():
            if code == r.FETCH:
                self._close_at(item.start, len(self.items))
            elif code in _CANDIDATES and self.candidate is None:
                self.candidate = len(self.items)
        elif self.by_hand and code in (r.FETCH, r.FORWARD, r.DEVICE_GRAD) and self._backwards():
            self._close_manual(item.start)
        if not self.items and code not in _OPENERS:
            return
        if code == r.FORWARD and not self.trains:  # those before it may be held
            self._flush_evaluation()
        self._insert(item)
        self._bound()

    def _bound(self) -> None:
        """Hold no more of what has not become a step than a step could be made of.

        A process that only ever calls a model, with grad on, serves: its calls leave when
        there are many. The batches of an evaluation are put aside.
        """
        items = self.items
        if not self.trains:
            while len(items) > _UNTRAINED and items[0].code in (r.FORWARD, r.FETCH):
                self._serve(items.pop(0))
        elif len(items) > _PENDING and not self.round and len(items) % _PENDING == 0:
            self._split_evaluation()

    def _serve(self, item: Item) -> None:
        if item.code != r.FORWARD:
            return
        if not self.differentiates:
            self.out.append(_call(item))
        elif not self._passed:
            self._passed = True
            self.out.append(Passed(item.start, item.end))

    def _forward_nograd(self, item: Item) -> None:
        if not self.trains:
            if self.differentiates:
                self._put_aside([item])
            else:
                self.out.append(_call(item))
                self._no_batch(but=1)  # the last may be a first step's, whose teacher this is
            return
        if self._turned():
            self._after = Aside.put(self._after, [item], self.number)
        elif self.items:
            self._insert(item)
            self._bound()
        else:
            self._put_aside([item])

    def _no_batch(self, *, but: int = 0) -> None:
        """Before anything trains: the batches fetched so far, `but` the last ones, were not for a step."""
        if not self.trains and all(i.code in (r.FETCH, r.FETCH_END) for i in self.items):
            del self.items[: len(self.items) - but]

    def _leave_step(self) -> None:
        """The forwards after the turn were inside of nothing: the step ended where they began."""
        after, self._after = self._after, None
        if after is not None:
            self._close_at(after.found.start, len(self.items))
            after.found.next_step = self.number
            self._aside = after

    def _take_back(self, start: int) -> None:
        """What was put aside since `start` was inside the event that ends now."""
        if self._after is not None and self._after.cut(start):
            self._after = None
        if self._aside is not None and self._aside.cut(start):
            self._aside = None

    def _device_call(self, item: Item) -> None:
        """A call of a compiled function that does not train."""
        if not self.trains:
            self._early.append(_call(item))
            if len(self._early) > _UNTRAINED:
                self.out.append(self._early.pop(0))
            return
        if self._turned():
            self._close_at(item.start, len(self.items))
        elif self.by_hand and self._backwards():
            self._close_manual(item.start)
        before = self._called.get(item.a)
        self._called[item.a] = self.number
        if before == self.number - 1:
            self._of_steps.add(item.a)
        if self._held is not None and self._held.functions <= self._of_steps:
            self._held = None  # it was the first of those
        if self.items or item.a in self._of_steps:
            self._insert(item)
            self._bound()
        else:
            self._put_aside([item])

    def _turn(self, item: Item) -> None:
        self.built()
        optimizer = item.a
        if optimizer in self.round:
            at = self.candidate if self.candidate is not None else len(self.items)
            edge = self.items[at].start if at < len(self.items) else item.start
            self._close_at(edge, at)
        self.candidate = None
        if item.code == r.DEVICE_UPDATE:
            self._split_gradients()
        if not self.items:
            self._open()
        self._insert(item)
        self.round.add(optimizer)
        self.turners.add(optimizer)

    def _split_gradients(self) -> None:
        """Put aside the gradients before this turn that are more than there were before each of the last two."""
        items = self.items
        begin = next((n for n in range(len(items), 0, -1) if items[n - 1].code in TURNS), 0)
        which = next((i.a for i in reversed(items[begin:]) if i.code == r.DEVICE_GRAD), None)
        if which is None:
            return
        calls = [n for n in range(begin, len(items)) if items[n].code == r.DEVICE_GRAD and items[n].a == which]
        before = self._differentiated.get(which, ())
        self._differentiated[which] = (*before, len(calls))[-2:]
        if len(before) < 2 or len(calls) <= max(before):
            return
        cut = calls[-max(before)]
        while (last := items[cut - 1]).code == r.FETCH or (last.code == r.DEVICE_CALL and last.a in self._of_steps):
            cut -= 1  # what the first that stays was given
        self._put_aside(items[begin:cut])
        del items[begin:cut]
        self._flush_evaluation()

    def _turned(self) -> bool:
        return bool(self.round)

    def _backwards(self) -> int:
        return sum(1 for i in self.items if i.code in _BACKWARDS)

    # --- bookkeeping -----------------------------------------------------------------

    def _absorb(self, code: int, start: int) -> tuple[Item, ...]:
        """Take off the tail what began at or after `start`: it was inside the event that ends now.

        What began and ended at `start` was before it, but for a scaler's step: a clock may be coarse, or stand still.
        """
        items = self.items
        at = len(items)
        while at and (last := items[at - 1]).start >= start:
            if last.end == start and not (code == r.SCALER and last.code == r.STEP):
                break
            at -= 1
        inside = tuple(items[at:])
        del items[at:]
        return inside

    def _settle(self, start: int, *, opens: bool) -> tuple[Item, ...]:
        """Tell of the loose ones; what began at `start` or later is inside the event that ends now."""
        loose, self.loose = self.loose, []
        for item in loose:
            within = item.start >= start
            of_step = opens if within else bool(self.items) and self._after is None
            self.out.append(Rare(item.code, item.start, item.end, item.a, self.number if of_step else None))
            if of_step and not within:
                self.items.append(item)
            elif not within and (aside := self._after or self._aside) is not None:
                aside.found.compiling += item.end - item.start
        return tuple(i for i in loose if i.start >= start)

    def _forget(self, inside: tuple[Item, ...]) -> None:
        """Undo what the absorbed events had decided."""
        for item in inside:
            if item.code in TURNS and not any(i.code in TURNS and i.a == item.a for i in self.items):
                self.round.discard(item.a)
        if self.candidate is not None and self.candidate >= len(self.items):
            self.candidate = None

    def _insert(self, item: Item) -> None:
        if not self.items:
            self._open()
        self.items.append(item)

    def _open(self) -> None:
        self._flush_evaluation()

    def _put_aside(self, items: list[Item]) -> None:
        """Add these forwards, and the fetches among them, to the evaluation that is going on."""
        self._aside = Aside.put(self._aside, items, self.number)

    def _flush_evaluation(self, *, last: bool = False) -> None:
        aside = self._aside.found if self._aside is not None else None
        self._aside = None
        if self._held is not None and (last or aside is not None or self._held.next_step < self.number):
            self.out.append(self._held)
            self._held = None
        if aside is not None and aside.calls:
            if aside.functions and not last:
                self._held = aside
            else:
                self.out.append(aside)

    def _leave_open(self) -> None:
        """The open items never became a step; forwards without a backward were an evaluation, or calls."""
        if not self.trains:
            for item in self.items:
                self._serve(item)
        elif self._exhausted() or any(
            i.code in (r.FORWARD_NOGRAD, r.DEVICE_CALL)
            or (i.code == r.DEVICE_GRAD and self._differentiated.get(i.a) == (1, 1))
            for i in self.items
        ):
            self._put_aside(self.items)
        self.items = []
        self.round = set()
        self.candidate = None

    def _exhausted(self) -> bool:
        """Whether an iterator ended after forwards with grad, and no backward came: no step broke off there."""
        ended = bool(self.items) and self.items[-1].code == r.FETCH_END
        return ended and not self._backwards() and any(i.code == r.FORWARD for i in self.items)

    def _split_evaluation(self) -> None:
        """Put aside the batches before the step's own in which a forward ran but no backward did."""
        items = self.items
        limit = next((n for n, i in enumerate(items) if i.code in _BACKWARDS or i.code in TURNS), len(items))
        fetches = [n for n in range(limit) if items[n].code == r.FETCH]
        cut = 0
        if fetches:
            last = fetches[-1]
            forwards = [n for n in range(last) if items[n].code in CALLS and items[n].a not in self._of_steps]
            if forwards:
                cut = forwards[-1] + 1
                while cut < len(items) and items[cut].code == r.FETCH_END:
                    cut += 1
        else:
            quiet = [n for n in range(limit) if items[n].code == r.FORWARD_NOGRAD]
            if quiet and not any(items[n].code in (r.FORWARD, r.ZERO_GRAD) for n in range(quiet[-1])):
                cut = quiet[-1] + 1
        if cut:
            self._put_aside(items[:cut])
            del items[:cut]

    def _close_manual(self, end: int) -> None:
        self._emit(end, self.items, "ok")
        self.items = []

    def _fail(self) -> None:
        if self.items:
            self._emit(max(self.last_end, self.items[-1].end), self.items, "failed")

    def _close_at(self, end: int, at: int, outcome: str = "ok") -> None:
        """Close the step at `end`; items from index `at` on belong to the next."""
        if at == len(self.items) and self.candidate is not None and self.items[self.candidate].code == r.DEVICE_GRAD:
            at = self.candidate  # its update is still to come, if one is
            end = self.items[at].start
        rest = self.items[at:]
        mine = self.items[:at]
        self.items = mine
        self._emit(end, mine, outcome)
        self.round = set()
        self.candidate = None
        self.items = rest

    def _emit(self, end: int, items: list[Item], outcome: str) -> None:
        self.items = items
        self._split_evaluation()
        self._flush_evaluation()
        items = self.items
        if not items:
            return
        self._tell(items, end, outcome, items[0].start)

    def serves(self, start: int) -> bool:
        """Whether a root forward without grad that began at `start` is a call and changes nothing here."""
        if self.trains or self.differentiates or self.loose or self._within is not None:
            return False
        return not self.items or self.items[-1].end <= start

    # --- steady loops ----------------------------------------------------------------

    def signature(self) -> tuple[Any, ...] | None:
        """The state without its times; None where more than the open step is on its way."""
        if self._aside or self._after or self._held or self.loose or self.marks or any(i.inside for i in self.items):
            return None
        which = tuple((i.code, i.a if i.code in _WHICH else None) for i in self.items)
        return which, self.candidate, frozenset(self.round), self.by_hand

    def skip(self, items: list[Item], count: int, last_end: int) -> None:
        """`count` steps were told of otherwise: `items` are open now, of the same signature as before."""
        self.items = items
        self.number += count
        self.last_end = max(self.last_end, last_end)


def _call(item: Item) -> Call:
    """A root forward or compiled function's call that serves."""
    samples = unpack(item.b)[0] or None
    return Call(item.start, item.end, item.a, samples, compiling(item), item.b == r.FAILED)
