"""What hooks write is bounded, loses nothing silently, and stays in order whoever writes and reads meanwhile."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from otel_ml.core import native
from otel_ml.core import recorder as r
from otel_ml.core.context import Registry, recorders
from otel_ml.core.native import load
from otel_ml.core.recorder import WIDTH, Recorder, Recorders, instants
from otel_ml.testing import FakeClock, capture
from tests.loops import train

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType


def events(flat: list[Any]) -> list[tuple[Any, ...]]:
    """What `take()` gave, an event each."""
    return [tuple(flat[at : at + WIDTH]) for at in range(0, len(flat), WIDTH)]


@given(limit=st.integers(1, 8), work=st.lists(st.integers(0, 12), max_size=20))
def test_a_full_recorder_counts_what_it_loses(limit: int, work: list[int]) -> None:
    """Between two takes the first `limit` events are kept, in order and whole, and the others are counted."""
    recorder = Recorder(limit)
    moment = 0
    kept: list[tuple[Any, ...]] = []
    taken: list[tuple[Any, ...]] = []
    lost = 0
    for burst in work:
        for n in range(burst):
            event = (r.FETCH, moment, moment + 1, n, None)
            recorder.record(*event)
            moment += 1
            if n < limit:
                kept.append(event)
            else:
                lost += 1
        assert len(recorder.buffer) <= limit * WIDTH
        taken += events(recorder.take())
    assert (taken, recorder.taken, recorder.dropped) == (kept, len(kept), lost)


NUMBER = st.integers(-(1 << 63), (1 << 63) - 1)
BOUND = st.one_of(st.none(), st.integers(-30, 30))


@given(
    flat=st.lists(st.tuples(st.integers(0, 40), NUMBER, NUMBER, st.none(), st.floats(allow_nan=False))),
    bounds=st.tuples(BOUND, BOUND, BOUND.filter(lambda step: step != 0)),
)
def test_a_buffer_looks_like_a_flat_list(flat: list[tuple[Any, ...]], bounds: tuple[int | None, ...]) -> None:
    """Whatever keeps the events, they are read as a list of five slots each, and so is what was taken."""
    recorder = Recorder(len(flat) + 1)
    for event in flat:
        recorder.record(*event)
    slots = [slot for event in flat for slot in event]
    place = slice(*bounds)
    assert (len(recorder.buffer), recorder.buffer[:], recorder.buffer[place]) == (len(slots), slots, slots[place])
    recorder.extend((r.STEP, 1, 2, None, 3))
    chunk = recorder.take()
    assert chunk[:] == [*slots, r.STEP, 1, 2, None, 3]
    assert (chunk[0], chunk[-5], chunk[-1]) == ((slots or [r.STEP])[0], r.STEP, 3)
    assert instants(chunk, 1, len(chunk)).tolist() == [*slots[1::WIDTH], 1]
    assert instants(chunk, 2, len(chunk)).tolist() == [*slots[2::WIDTH], 2]
    assert (len(recorder.buffer), len(recorder.take())) == (0, 0)
    for beyond in (len(chunk), -len(chunk) - 1):
        with pytest.raises(IndexError):
            chunk[beyond]


@given(
    before=st.lists(st.floats(allow_nan=False), max_size=9),
    since=st.lists(st.floats(allow_nan=False), max_size=9),
    later=st.lists(st.floats(allow_nan=False), max_size=9),
    place=st.integers(0, 9),
)
def test_what_is_taken_again(before: list[float], since: list[float], later: list[float], place: int) -> None:
    """What of a chunk is put back comes first in the next one, counts once, and leaves the chunk."""
    recorder = Recorder(5)  # which bounds what is recorded, not what is put back
    recorder.limit = 100 * WIDTH
    told = [(r.STEP, n, n + 1, value, None) for n, value in enumerate(before + since + later)]
    first, second = len(before), len(before) + len(since)
    for event in told[:first]:
        recorder.record(*event)
    chunk, kept = recorder.take(), min(place, first)
    for event in told[first:second]:
        recorder.record(*event)
    recorder.take_again(chunk, kept * WIDTH)
    assert (events(chunk[:]), recorder.taken) == (told[:kept], kept)
    for event in told[second:]:
        recorder.record(*event)
    assert events(recorder.take()[:]) == told[kept:]
    assert (recorder.taken, len(recorder.buffer)) == (len(told), 0)


@pytest.mark.skipif(load("otel_ml.core._recorder") is None, reason="nothing is compiled here")
def test_what_cannot_be_taken_again() -> None:
    """No place but an event's begin, and nothing but a chunk, is put back; nothing is lost by asking."""
    recorder = Recorder(10)
    recorder.record(r.STEP, 1, 2)
    chunk = recorder.take()
    for given_chunk, at in ((chunk, 3), (chunk, -5), (chunk, 10), (recorder.buffer, 0)):
        with pytest.raises(IndexError):
            recorder.put_back(given_chunk, at)
    with pytest.raises(TypeError):
        recorder.put_back([], 0)
    assert (chunk[:], recorder.buffer[:]) == ([r.STEP, 1, 2, None, None], [])


def test_what_was_taken_is_let_go() -> None:
    """A value lives as long as its event is kept: in the buffer, then in what was taken."""

    class Value:
        """Something that can be seen to go."""

    def alive() -> list[bool]:
        return [reference() is not None for reference in references]

    recorder, values = Recorder(10), [Value(), Value(), Value()]
    references = [weakref.ref(value) for value in values]
    recorder.record(r.STEP, 1, 2, values[0], values[1])
    recorder.extend((r.STEP, 1, 2, None, values[2]))
    values.clear()
    assert alive() == [True] * 3
    chunk = recorder.take()
    assert alive() == [True] * 3
    del chunk
    assert alive() == [False] * 3
    recorder.record(r.STEP, 1, 2, Value())
    references = [weakref.ref(recorder.buffer[3])]
    recorder.restart(10)
    assert alive() == [False]


@pytest.mark.skipif(load("otel_ml.core._recorder") is None, reason="nothing is compiled here")
@pytest.mark.parametrize("event", [("x", 1, 2), (1, None, 2), (1, 2, 1.5), (1, 1 << 63, 2)], ids=str)
def test_what_is_no_event(event: tuple[Any, ...]) -> None:
    """A code and instants that are no whole numbers of 64 bits are refused where they do not fit, and lose nothing."""
    recorder = Recorder(10)
    recorder.record(r.STEP, 1, 2)
    for refused in (recorder.record, lambda *slots: recorder.extend((*slots, None, None))):
        with pytest.raises((TypeError, OverflowError)):
            refused(*event)
    with pytest.raises(TypeError):
        recorder.extend((1, 2, 3))
    assert (recorder.take()[:], recorder.dropped) == ([r.STEP, 1, 2, None, None], 0)


def in_python() -> ModuleType:
    """The module of recorders as it is where nothing of ours was compiled."""
    spec = importlib.util.find_spec("otel_ml.core.recorder")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "load", lambda _: None)
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def eager() -> Iterator[None]:
    """Threads take turns as often as they can, in the middle of whatever is not one step under the lock."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("module", [r, in_python()], ids=["as it is", "in Python"])
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limit=st.sampled_from([200, 5_000, 1 << 20]), threads=st.integers(1, 4), burst=st.integers(200, 5_000))
@example(limit=1 << 20, threads=1, burst=20_000)
@example(limit=1 << 20, threads=4, burst=500)
def test_threads_write_while_one_reads(module: ModuleType, limit: int, threads: int, burst: int) -> None:
    """Each thread's events are taken in its order, and each is taken or counted as lost, none twice."""
    several = module.Recorders(limit=limit)
    went: list[Recorder] = []
    begun, wrote = threading.Barrier(threads + 1), threading.Barrier(threads + 1)

    def write(which: int) -> None:
        recorder = several.mine()
        went.append(recorder)
        begun.wait()
        for n in range(EVENTS):
            recorder.record(r.STEP, n, n, which)
            if n % burst == 0:
                time.sleep(0)  # it is another's turn
        wrote.wait()

    workers = [threading.Thread(target=write, args=(which,)) for which in range(threads)]
    for worker in workers:
        worker.start()
    chunks: list[Any] = []
    begun.wait()
    while wrote.n_waiting < threads:
        chunks += [recorder.take() for recorder in several.all]
    chunks += [recorder.take() for recorder in several.all]
    wrote.wait()
    for worker in workers:
        worker.join()
    found: dict[int, list[int]] = {which: [] for which in range(threads)}
    for chunk in filter(len, chunks):
        found[chunk[3]] += chunk[1::WIDTH]
        assert set(chunk[3::WIDTH]) == {chunk[3]}
    assert all(numbers == sorted(set(numbers)) for numbers in found.values())
    assert sorted(recorder.ordinal for recorder in went) == list(range(threads))
    assert several.counts() == (sum(map(len, found.values())), sum(recorder.dropped for recorder in went))
    assert sum(several.counts()) == EVENTS * threads


EVENTS = 20_000  # of each thread


def test_an_ended_threads_recorder_is_let_go_of() -> None:
    """A recorder goes once its thread has ended and all of it is taken; what it had counted stays counted."""
    several = Recorders(limit=2)

    def write() -> None:
        for n in range(3):
            several.mine().record(r.FETCH, n, n)

    worker = threading.Thread(target=write)
    worker.start()
    worker.join()
    recorder = weakref.ref(several.all[0])
    assert list(several.retired()) == []
    events(several.all[0].take())
    assert [gone is recorder() for gone in several.retired()] == [True]
    assert (several.all, several.counts()) == ([], (2, 1))
    assert recorder() is None


def test_the_live_step_is_ones_own_or_the_trainings() -> None:
    """A thread that trains is in its own step, any other in that of the thread that trains."""
    several = Recorders(limit=10)
    assert several.live() is None
    helper: list[Recorder | None] = []

    def help_out() -> None:
        several.mine().record(r.OPTIMIZER_WORK, 0, 1)
        helper.append(several.live())

    several.main = several.mine()
    worker = threading.Thread(target=help_out)
    worker.start()
    worker.join()
    own = several.mine()
    own.candidate()
    assert (helper, several.live()) == ([several.main], own)


def test_another_run_begins_with_nothing() -> None:
    """A restart empties every living thread's recorder and forgets ended threads; hooks keep the one they have."""
    several = Recorders(limit=1)
    mine = several.mine()
    for n in range(2):
        mine.record(r.FETCH, n, n)
    mine.turn(0)
    mine.candidate()
    worker = threading.Thread(target=several.mine)
    worker.start()
    worker.join()
    several.restart(3)
    assert (several.all, several.mine(), several.counts()) == ([mine], mine, (0, 0))
    assert (mine.number, mine.state, mine.limit, mine.ordinal) == (0, r.CLOSED, 3 * WIDTH, 0)


def test_a_forked_child_records_into_the_void() -> None:
    """A child has none of its parent's events, keeps none of its own, and the parent's run does not notice."""
    clock = FakeClock()
    with capture(clock=clock) as seen:
        train(clock, [1.0, 2.0])
        child = os.fork()
        if child == 0:
            inherited = len(recorders.all)
            train(clock, [3.0])
            kept = sum(len(recorder.buffer) for recorder in recorders.all)
            os._exit(inherited * 10 + kept)
        assert os.waitpid(child, 0)[1] == 0
        train(clock, [3.0])
    assert seen.totals is not None
    assert seen.totals.steps == 3


def test_a_registry_numbers_by_identity() -> None:
    """An object keeps its number while it lives; one that has its address afterwards is a new one."""

    class Model:
        pass

    registry = Registry()
    first, second = Model(), Model()
    assert [registry.number(first), registry.number(second), registry.number(first)] == [0, 1, 0]
    del first
    assert list(registry.numbers.values()) == [1]
    assert registry.number(Model()) == 2
    assert registry.labels == ["Model", "Model#2", "Model#3"]
    registry.restart()
    assert [registry.number(second), registry.number(Model())] == [0, 1]
    assert registry.labels == ["Model", "Model#2"]
