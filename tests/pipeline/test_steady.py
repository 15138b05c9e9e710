"""Blocks of a steady loop say exactly what the tracker says of the same events, one by one."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Any

import pytest

from otel_ml.core import recorder as r
from otel_ml.core.context import scalars
from otel_ml.core.deferred import Values
from otel_ml.core.recorder import WIDTH
from otel_ml.pipeline.findings import Step
from otel_ml.pipeline.steady import Block, Steady
from otel_ml.pipeline.steps import Tracker

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPS: dict[str, list[tuple[int, Any]]] = {
    "plain": [(r.ZERO_GRAD, 0), (r.FORWARD, 0), (r.BACKWARD, 0), (r.STEP, 0)],
    "loader": [(r.FETCH, 0), (r.ZERO_GRAD, 0), (r.FORWARD, 0), (r.BACKWARD, 0), (r.CLIP, 0), (r.STEP, 0)],
    "zero last": [(r.FORWARD, 0), (r.BACKWARD, 0), (r.STEP, 0), (r.ZERO_GRAD, 0)],
    "accumulation": [
        (r.FETCH, 0), (r.FORWARD, 0), (r.BACKWARD, 0), (r.FETCH, 0), (r.FORWARD, 0), (r.BACKWARD, 0), (r.STEP, 0),
    ],
    "gan": [
        (r.ZERO_GRAD, 0), (r.FORWARD, 0), (r.FORWARD, 1), (r.BACKWARD, 0), (r.STEP, 0),
        (r.ZERO_GRAD, 1), (r.FORWARD, 1), (r.BACKWARD, 0), (r.STEP, 1),
    ],
    "zero between": [
        (r.FETCH, 0), (r.FORWARD, 0), (r.ZERO_GRAD, 0), (r.BACKWARD, 0), (r.OPTIMIZER_WORK, 0), (r.STEP, 0),
    ],
    "sam": [
        (r.FETCH, 0), (r.FORWARD, 0), (r.BACKWARD, 0), (r.ZERO_GRAD, 1), (r.FORWARD, 0), (r.BACKWARD, 0), (r.STEP, 0),
        (r.ZERO_GRAD, 1),
    ],
    "sam without a loader": [
        (r.FORWARD, 0), (r.BACKWARD, 0), (r.ZERO_GRAD, 1), (r.FORWARD, 0), (r.BACKWARD, 0), (r.STEP, 0),
        (r.FORWARD, 0), (r.BACKWARD, 0), (r.STEP, 2),
    ],
    "thrown away": [
        (r.FETCH, 0), (r.FORWARD, 0), (r.BACKWARD, 0), (r.BACKWARD, 0), (r.ZERO_GRAD, 0), (r.ZERO_GRAD, -1),
        (r.BACKWARD, 0), (r.BACKWARD, 0), (r.STEP, 0), (r.BACKWARD, 0), (r.ZERO_GRAD, 0), (r.BACKWARD, 0), (r.STEP, 1),
    ],
    "compiled": [(r.DEVICE_TRAIN, 0)],
    "compiled loader": [(r.FETCH, 0), (r.DEVICE_TRAIN, 0), (r.DEVICE_WAIT, None)],
    "compiled gan": [(r.DEVICE_TRAIN, 0), (r.DEVICE_WAIT, None), (r.DEVICE_TRAIN, 1)],
    "values": [
        (r.FETCH, 0), (r.SCALAR, 0), (r.FORWARD, 0), (r.BACKWARD, 0), (r.SCALAR, 1), (r.STEP, 0), (r.SCALAR, 0),
    ],
    "values at the edge": [
        (r.SCALAR, 1), (r.FORWARD, 0), (r.BACKWARD, 0), (r.STEP, 0), (r.SCALAR, 0), (r.ZERO_GRAD, 0), (r.SCALAR, 2),
    ],
    "compiled values": [(r.DEVICE_TRAIN, 0), (r.SCALAR, 0), (r.DEVICE_WAIT, None)],
    "forward after": [(r.FETCH, 0), (r.FORWARD, 0), (r.BACKWARD, 0), (r.STEP, 0), (r.FORWARD, 0)],
}  # fmt: skip


def events(loop: list[tuple[int, Any]], rounds: int, seed: int) -> list[Any]:
    """A loop's flat events with random times and values, and now and then something unusual."""
    chance = random.Random(seed)
    flat: list[Any] = [r.BUILD, 0, 0, 0, None, r.BUILD, 0, 0, 1, None]
    clock = 1
    for turn in range(rounds):
        for code, which in loop:
            start = clock + chance.randint(0 if turn % 50 == 0 else 1, 5)
            clock = start + chance.randint(0, 50)
            a: Any = which
            b: Any = None
            if code in (r.BACKWARD, r.CLIP):
                a = chance.random()
            elif code == r.FETCH:
                a, b = chance.randint(1, 9), chance.choice((-1, 5)) if seed % 3 == 0 else -1
            elif code == r.FORWARD:
                b = 4 | (8 << 32)
            elif code == r.DEVICE_TRAIN:
                b = 8 if chance.random() < 0.5 else Values(8, {"loss": chance.random(), "accuracy": 0.5})
            elif code == r.STEP:
                b = 0.1 / (turn + 1)
            elif code == r.SCALAR:
                start = clock
                b = Values(-1, {"": chance.random()} if chance.random() < 0.9 else {}) if a else chance.random()
            flat.extend((code, start, clock, a, b))
        if chance.random() < 0.01:
            kind = chance.randint(0, 2)
            if kind == 0:
                flat.extend((r.FORWARD_NOGRAD, clock + 1, clock + 2, 0, 4))
            elif kind == 1:
                flat.extend((r.CHECKPOINT, clock + 1, clock + 2, {"operation": "save", "error": None}, None))
            else:
                flat.extend((r.FETCH_END, clock + 1, clock + 2, None, None))
            clock += 3
    return flat


def one_by_one(flat: list[Any]) -> list[Any]:
    """What the tracker says."""
    tracker = Tracker()
    for at in range(0, len(flat), WIDTH):
        tracker.feed(*flat[at : at + WIDTH])
    tracker.finish()
    return tracker.out


def in_blocks(flat: list[Any], chunks: list[int], *, again: bool = False) -> tuple[list[Any], int, int]:
    """What comes of it by blocks where they can be made, how many steps those held, and how often a chunk went on.

    With `again`, what is too little for a block at a chunk's end is left for the next one.
    """
    tracker, steady = Tracker(), Steady()
    found: list[Any] = []
    fast = went_on = 0
    rest: list[Any] = []

    def blocks(chunk: list[Any], at: int) -> int:
        nonlocal fast
        while True:
            block = steady.advance(tracker, chunk, at)
            if block is None:
                return at
            found.extend(block.step(n) for n in range(len(block)))
            check_columns(block)
            fast += len(block)
            at += len(block) * steady.taken()

    edges = sorted({0, len(flat), *(c * WIDTH for c in chunks if c * WIDTH < len(flat))})
    for begin, end in itertools.pairwise(edges):
        chunk, rest = rest + flat[begin:end], []
        at = 0
        if steady.goes_on(tracker):
            went_on += 1
            at = blocks(chunk, 0)
        while at < len(chunk):
            tracker.feed(*chunk[at : at + WIDTH])
            steady.fed()
            at += WIDTH
            out, tracker.out = tracker.out, []
            found.extend(out)
            if any(isinstance(o, Step) for o in out) and steady.came_round(tracker, alone=len(out) == 1):
                since, at = at, blocks(chunk, at)
                if again and at > since and end < len(flat) and steady.pause(chunk, at):
                    chunk, rest = chunk[:at], chunk[at:]
    tracker.finish()
    return found + tracker.out, fast, went_on


def check_columns(block: Block) -> None:
    """A block's columns are what its steps say."""
    for n in range(len(block)):
        step = block.step(n)
        assert {k: v[n] for k, v in block.phases.items()} == step.phases
        assert {k: v[n] for k, v in block.losses.items() if v[n] is not None} == step.losses
        assert {k: v[n] for k, v in block.scalars.items() if v[n] is not None} == step.scalars
        assert block.framework == step.framework
        assert {k: v[n] for k, v in block.learning_rates.items()} == step.learning_rates
        assert (block.durations[n], block.micro_batches) == (step.duration, step.micro_batches)
        assert (block.grad_norms[n] if block.grad_norms else None) == step.grad_norm
        assert (block.samples[n] if block.samples else None) == step.samples
        assert (block.tokens[n] if block.tokens else None) == step.tokens


@pytest.fixture(autouse=True)
def named() -> Iterator[None]:
    """Three names of values."""
    scalars.restart()
    assert [scalars.number(name, None) for name in "abc"] == [0, 1, 2]
    yield
    scalars.restart()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("loop", LOOPS)
def test_blocks_equal_events(loop: str, seed: int) -> None:
    """Whatever the loop and wherever its events are cut, blocks and single events give the same steps."""
    flat = events(LOOPS[loop], 500, seed)
    chance = random.Random(seed)
    chunks = [chance.randint(0, len(flat) // WIDTH) for _ in range(seed)]

    expected = one_by_one(flat)
    found, fast, _ = in_blocks(flat, chunks)

    assert found == expected
    unknown_tokens = seed % 3 == 0 and any(code == r.FETCH for code, _ in LOOPS[loop])
    assert fast > 50 or unknown_tokens


@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_goes_on_in_the_next_chunk(loop: str, seed: int) -> None:
    """Steps that wait for those of the next chunk are the same as if they had been told at once."""
    flat = events(LOOPS[loop], 500, seed)
    chance = random.Random(seed)
    chunks = [chance.randint(0, len(flat) // WIDTH) for _ in range(4 * seed)]

    found, _, went_on = in_blocks(flat, chunks, again=True)

    assert found == one_by_one(flat)
    unknown_tokens = seed % 3 == 0 and any(code == r.FETCH for code, _ in LOOPS[loop])
    assert went_on > 0 or unknown_tokens
