"""What hooks write to: one bounded, flat list a thread, read by the drain.

An event is five slots in a row: `code, start, end, a, b`. Flat numbers, not objects:
surviving objects would bring full garbage collections over the program's heap. `extend`
of a tuple and the drain's slice are each one step under the GIL, so neither side locks.

The recorder also keeps the *online step counter*: which step this thread is in right
now, for the spans and logs that user code makes before the drain has seen anything. The
drain's tracker is the truth; `tests/core/test_recorder.py` shows that they agree from
the third round on.
"""

from __future__ import annotations

import threading
import weakref
from array import array
from typing import TYPE_CHECKING, Any

from otel_ml.core.native import load
from otel_ml.errors import swallow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "ABANDONED",
    "APART",
    "BACKWARD",
    "BUILD",
    "CHECKPOINT",
    "CLIP",
    "CLOSED",
    "COMPILE",
    "DEVICE_CALL",
    "DEVICE_GRAD",
    "DEVICE_TRAIN",
    "DEVICE_UPDATE",
    "DEVICE_WAIT",
    "DONE",
    "EPOCH_BEGIN",
    "EPOCH_END",
    "EVALUATION_BEGIN",
    "EVALUATION_END",
    "FAILED",
    "FETCH",
    "FETCHED",
    "FETCH_END",
    "FORWARD",
    "FORWARD_NOGRAD",
    "LAST_STEP",
    "MARK",
    "NUMBERED",
    "OPEN",
    "OPTIMIZER_WORK",
    "POINT",
    "RUN_PART",
    "SCALAR",
    "SCALER",
    "STEP",
    "STEP_BEGIN",
    "STEP_END",
    "STEP_SHIFT",
    "TIMED",
    "TURNED",
    "WIDTH",
    "ZERO_GRAD",
    "Recorder",
    "Recorders",
    "Within",
    "bit",
    "changed",
    "hook_threads",
    "keep_time_by",
]

WIDTH = 5

# code            a                          b
FETCH = 1  #      samples or -1              tokens or -1
FETCH_END = 2  #  -                          -
FORWARD = 3  #    root's index               samples | tokens << 32, or -1; FAILED where it raised
FORWARD_NOGRAD = 4  #  as FORWARD
BACKWARD = 5  #   loss as float, or None     -
ZERO_GRAD = 6  #  optimizer's index          -
STEP = 7  #       optimizer's index          learning rates: float, tuple or None
SCALER = 8  #     optimizer's index          scale as float, or None
CLIP = 9  #       norm as float, or None     -
OPTIMIZER_WORK = 10  #  time of the optimizer phase that means nothing more
BUILD = 11  #     an optimizer was constructed: its index
COMPILE = 12  #   payload dict               -
CHECKPOINT = 13  #  payload dict             -
# What is computed elsewhere once it is dispatched, so that the end here is that of the dispatch. A warm call has no
# start of its own: it is then where this thread's last event ended, and the whole stretch is the host's.
DEVICE_TRAIN = 14  #  function's index       samples | tokens << 32, or -1; a Deferred that knows them and more
DEVICE_GRAD = 15  #   as DEVICE_TRAIN: gradients alone come out of it, the weights are updated elsewhere
DEVICE_UPDATE = 16  # function's index       -
DEVICE_CALL = 17  #   root's index           samples | tokens << 32, or -1; FAILED where it raised
DEVICE_WAIT = 18  #   -                      -
NUMBERED = 19  #  the number that the program gives its next step
# What the program says of itself; these override what is inferred.
STEP_BEGIN = 20  #  its number, or -1          -
STEP_END = 21  #    FAILED, ABANDONED or 0     -
EVALUATION_BEGIN = 22  # -                     -
EVALUATION_END = 23  # the split, or None      -
EPOCH_BEGIN = 24  # its number                 -
EPOCH_END = 25  #   its number                 FAILED or 0
MARK = 26  #        the phase's name           -
SCALAR = 27  #      the value's index          float, or a Deferred
# No tracker hears of these.
POINT = 28  #       value's index | step << STEP_SHIFT    float, or a Deferred
TIMED = 29  #       the function's name        -
RUN_PART = 30  #    payload dict               -
APART = frozenset({POINT, TIMED, RUN_PART})
STEP_SHIFT = 16
LAST_STEP = 1 << 46  # beyond what a program may say its number is

FAILED = -2  # an exception left it; for a forward, instead of its samples
ABANDONED = -3  # it was left by what is no error: a Ctrl-C, an exit

# Where the online counter stands.
CLOSED = 0  # no step
FETCHED = 1  # a batch came after a step or at first: a step, unless a forward without grad says otherwise
OPEN = 2  # a step, no turn yet
TURNED = 3  # a turn was taken, the round is not complete
DONE = 4  # the round is complete: the next event closes the step


def bit(optimizer: int) -> int:
    """An optimizer, or -1 for one that nobody knows, as a set of one."""
    return 1 << optimizer + 1


class _Fields:
    """What hooks touch at each step; `_recorder.c` has the same."""

    __slots__ = ("buffer", "dropped", "expected", "limit", "merged_from", "number", "seen", "state", "stepping")

    def __init__(self) -> None:
        self.buffer: list[Any] = []
        self.dropped = 0
        self.number = 0
        self.state = CLOSED
        # Sets of optimizers, a bit each (see `bit`): whose turn it was in this round, whose makes a round whole, and
        # the round that a candidate closed, until a turn says whether it was right to.
        self.seen = 0
        self.expected = 0
        self.merged_from: int | None = None
        self.limit = 0
        self.stepping = False  # inside an optimizer's step

    def record(self, code: int, start: int, end: int, a: object = None, b: object = None) -> None:
        """Append one event, or count it as dropped when the recorder or the memory is full."""
        try:
            if len(self.buffer) < self.limit:
                self.buffer.extend((code, start, end, a, b))
            else:
                self.dropped += 1
        except MemoryError:  # the program's to meet, where it asks for memory
            self.dropped += 1

    def emptied(self) -> list[Any]:
        """Everything recorded so far, flat; the buffer is the same object, and empty."""
        count = len(self.buffer)
        chunk = self.buffer[:count]
        del self.buffer[:count]
        return chunk

    def put_back(self, chunk: list[Any], at: int) -> None:
        """Have what is in a chunk from `at` on again, before what was recorded since; it leaves the chunk."""
        self.buffer[:0] = chunk[at:]
        del chunk[at:]

    def candidate(self) -> None:
        """A root forward with grad, zero_grad or backward begins: closes a complete round, opens a step."""
        if self.state == DONE:
            self.number += 1
            self.expected = self.merged_from = self.seen
            self.seen = 0
            self.state = OPEN
        elif self.state < OPEN:
            self.state = OPEN


def instants(chunk: list[Any], at: int, stop: int) -> array[int]:
    """The starts of a chunk's events, or their ends: each `WIDTH` slots from `at` on."""
    return array("q", chunk[at:stop:WIDTH] if isinstance(chunk, list) else chunk.instants(at, stop))


_native = load("otel_ml.core._recorder")

if TYPE_CHECKING:
    _Base = _Fields
else:
    _Base = _Fields if _native is None else _native.Fields


class Recorder(_Base):
    """One thread's events and its online step counter."""

    __slots__ = (
        "__weakref__",
        "alive",
        "apart",
        "cpu",
        "defers",
        "extend",
        "held",
        "ident",
        "kept",
        "last",
        "name",
        "ordinal",
        "steady",
        "taken",
        "tracker",
    )

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.extend: Callable[[tuple[Any, ...]], None] = self.buffer.extend
        self.ident = threading.get_ident()
        self.name = threading.current_thread().name
        self.alive = True
        self.ordinal = 0
        self.restart(limit)

    def restart(self, limit: int) -> None:
        """Hold nothing and be in no step, as new."""
        self.buffer.clear()
        self.limit = limit * WIDTH
        self.dropped = 0
        self.taken = 0
        self.last = 0
        self.tracker: Any = None  # the drain's
        self.held: list[Any] = []  # the drain's
        self.defers = False  # a Deferred was recorded
        self.cpu = 0  # what the thread had computed at its last request, in nanoseconds
        self.kept: Any = None  # the last one of a compiled function's call, while the program has not read it
        self.apart = False  # something of APART was recorded
        self.steady: Any = None  # the drain's
        self.number = 0
        self.state = CLOSED
        self.stepping = False
        self.__class__ = Recorder
        self.seen = self.expected = 0
        self.merged_from = None

    def take(self) -> list[Any]:
        """Everything recorded since the last call, flat; called by the drain only."""
        chunk = self.emptied()
        if chunk:
            self.last = chunk[-3]
        self.taken += len(chunk) // WIDTH
        return chunk

    def take_again(self, chunk: list[Any], at: int) -> None:
        """What is in a chunk from `at` on comes with the next one; called by the drain only."""
        again = (len(chunk) - at) // WIDTH
        self.put_back(chunk, at)
        self.taken -= again

    def is_over(self) -> bool:
        """Whether its thread has ended and the drain has nothing more to take or to tell of it."""
        return not self.alive and not self.buffer and not self.held and self.tracker is None

    # --- the online step counter -----------------------------------------------------

    def trains(self) -> bool:
        """Whether this thread has done more for a step than to fetch its batch."""
        return self.number > 0 or self.state > FETCHED

    def fetching(self) -> int:
        """A batch fetch begins: closes a step that had a turn, opens the next. Returns the state before."""
        before = self.state
        if before >= TURNED:
            self._close()
        elif self.merged_from is not None:  # what the candidate began ends here: it was of the step before
            self.merged_from = None
            before = TURNED
        if before != OPEN:
            self.state = FETCHED
        return before

    def exhausted(self, before: int) -> None:
        """The fetch found the iterator's end: it opened nothing."""
        if before != OPEN:
            self.state = FETCHED if before == FETCHED else CLOSED

    def edge(self) -> None:
        """Something that is never in a step begins: closes a step that had a turn, opens none.

        After a fetch alone it is an evaluation's: that fetch opened nothing. Inside a step it is a teacher's.
        """
        if self.state >= TURNED:
            self._close()
            self.state = CLOSED
        elif self.state == FETCHED or self.merged_from is not None:
            self.merged_from = None
            self.state = CLOSED

    def numbered(self, number: int) -> None:
        """The program says that its next step begins, and its number; one that it had before stays as it is counted."""
        if self.state >= TURNED:
            self._close()
            self.state = CLOSED
        self.merged_from = None
        self.number = max(self.number, number)

    def turn(self, optimizer: int) -> None:
        """An optimizer has taken its turn."""
        one = bit(optimizer)
        seen = self.seen
        if not seen:
            if self.merged_from and not self.merged_from & one:
                self.number -= 1
                seen = self.merged_from
        elif seen & one:
            self._close()
            seen = 0
        self.merged_from = None
        self.seen = seen = seen | one
        self.state = DONE if seen & self.expected == self.expected else TURNED

    def took_turn(self, optimizer: int) -> bool:
        """Whether it has, in this round."""
        return self.seen & bit(optimizer) != 0

    # --- what the program says itself ------------------------------------------------

    def begin_step(self, number: int) -> bool:
        """The program's own step begins; False inside another one, or an evaluation of its own: that one holds."""
        self._finish_round()
        self.number = max(self.number, number)
        self.state = OPEN
        self.__class__ = Within
        return True

    def end_step(self, outcome: int) -> None:
        """It ends; one that failed stays the step that this thread is in until something else begins."""
        self.__class__ = Recorder
        self.state = DONE
        if outcome == FAILED:
            return
        if outcome != ABANDONED:
            self._close()
        self.state = CLOSED

    def begin_evaluation(self) -> bool:
        """The program's own evaluation begins; False inside another one, or a step of its own."""
        self._finish_round()
        self.state = CLOSED
        self.__class__ = Within
        return True

    def end_evaluation(self) -> None:
        """It ends."""
        self.__class__ = Recorder

    def between(self) -> None:
        """What is never inside a step begins or ends: an epoch."""
        if self.state >= TURNED:
            self._finish_round()
            self.state = CLOSED

    def _finish_round(self) -> None:
        if self.state >= TURNED:
            self._close()
        self.merged_from = None

    def _close(self) -> None:
        self.number += 1
        self.expected = self.seen
        self.merged_from = None
        self.seen = 0


class Within(Recorder):
    """A recorder whose thread is inside a step or an evaluation that the program itself began: nothing is inferred.

    A class rather than a flag, so that the hooks of everyone else do not ask for it.
    """

    __slots__ = ()

    def fetching(self) -> int:
        """A batch of this step."""
        return OPEN

    def exhausted(self, before: int) -> None:
        """Nothing."""

    def edge(self) -> None:
        """Nothing."""

    def candidate(self) -> None:
        """Nothing."""

    def numbered(self, number: int) -> None:
        """Nothing: it has a number."""

    def turn(self, optimizer: int) -> None:
        """A turn like any other, which completes nothing."""
        self.seen |= bit(optimizer)

    def begin_step(self, number: int) -> bool:  # noqa: ARG002 - as there
        """It is inside one."""
        return False

    def begin_evaluation(self) -> bool:
        """It is inside one."""
        return False

    def between(self) -> None:
        """Nothing."""


_VOID = Recorder(0)
"""Takes what a thread records that could not have a recorder of its own, and keeps nothing."""


class Recorders:
    """Every thread's recorder; `local.recorder` is this thread's."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.local = threading.local()
        self.all: list[Recorder] = []
        self._lock = threading.Lock()
        self.made = 0
        self.main: Recorder | None = None
        self.gone = (0, 0)  # what the recorders of ended threads had counted

    def mine(self) -> Recorder:
        """The calling thread's recorder, made at its first event."""
        try:
            return self.local.recorder  # type: ignore[no-any-return]
        except AttributeError:
            try:
                return self._make()
            except Exception:  # noqa: BLE001 - the law: never break the program; no memory, for one
                swallow("making a recorder")
                return _VOID

    def _make(self) -> Recorder:
        recorder = Recorder(self.limit)
        token = _Token()
        weakref.finalize(token, _retire, recorder).atexit = False
        self.local.token = token  # first: C remembers only a recorder that somebody takes back
        self.local.recorder = recorder
        with self._lock:
            recorder.ordinal = self.made
            self.made += 1
            self.all.append(recorder)
        return recorder

    def live(self) -> Recorder | None:
        """The recorder whose step the calling thread is in: its own if it trains, else the first that does.

        A thread that only fetches does not train; `main` is known once the drain has seen a step.
        """
        mine: Recorder | None = getattr(self.local, "recorder", None)
        if mine is not None and mine.trains():
            return mine
        return self.main or next((r for r in self.all if r.trains()), mine)

    def retired(self) -> Iterator[Recorder]:
        """Recorders whose thread has ended and of which all is told; they are let go of."""
        with self._lock:
            gone = [r for r in self.all if r.is_over()]
            self.all = [r for r in self.all if r not in gone]
            self.gone = (
                self.gone[0] + sum(r.taken for r in gone),
                self.gone[1] + sum(r.dropped for r in gone),
            )
        yield from gone

    def clear(self) -> None:
        """Forget everything: what a forked child does first."""
        self._lock = threading.Lock()
        self.local.__dict__.clear()
        changed()
        self.all = []
        self.made = 0
        self.main = None
        self.gone = (0, 0)

    def restart(self, limit: int) -> None:
        """Forget everything, also of threads that live on: what another run in this process begins with."""
        with self._lock:
            self.limit = limit
            self.all = [r for r in self.all if r.alive]
            for ordinal, recorder in enumerate(self.all):
                recorder.restart(limit)
                recorder.ordinal = ordinal
            self.made = len(self.all)
            self.main = None
            self.gone = (0, 0)

    def counts(self) -> tuple[int, int]:
        """Events taken, and events lost because a recorder was full, so far."""
        return (
            self.gone[0] + sum(r.taken for r in self.all),
            self.gone[1] + sum(r.dropped for r in self.all),
        )


def changed() -> None:
    """A thread's recorder, or an object's number, is no longer its own: what C remembers of that is forgotten."""
    if _native is not None:
        _native.changed()


def hook_threads(recorders: Recorders) -> None:
    """Have the hooks that are written in C record with these."""
    if _native is not None:
        _native.use(Recorder, recorders.local, recorders.mine, _swallow)


def _swallow(place: str, error: Exception) -> None:
    try:
        raise error  # noqa: TRY301 - `swallow()` is for who handles one
    except Exception:  # noqa: BLE001 - what C met goes the way of all our errors
        swallow(place)


def keep_time_by(clock: Callable[[], int] | None) -> None:
    """Have the hooks that are written in C ask this clock; None: their own."""
    if _native is not None:
        _native.set_clock(clock)


class _Token:
    """Dies with its thread."""

    __slots__ = ("__weakref__",)


def _retire(recorder: Recorder) -> None:
    recorder.alive = False
    changed()
