"""Tables of event sequences: what is a step, where it ends, and what its time was spent on."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_ml.core import recorder as r
from otel_ml.core.context import scalars
from otel_ml.core.deferred import Values
from otel_ml.core.recorder import Recorder
from otel_ml.pipeline.findings import Call, Epoch, Evaluation, Passed, Point, Rare, Step
from otel_ml.pipeline.steps import Tracker

if TYPE_CHECKING:
    from collections.abc import Iterator

CODES = {
    "fetch": r.FETCH, "end": r.FETCH_END, "forward": r.FORWARD, "quiet": r.FORWARD_NOGRAD, "backward": r.BACKWARD,
    "zero": r.ZERO_GRAD, "step": r.STEP, "scaler": r.SCALER, "clip": r.CLIP, "work": r.OPTIMIZER_WORK, "build": r.BUILD,
    "compile": r.COMPILE, "checkpoint": r.CHECKPOINT, "train": r.DEVICE_TRAIN, "grad": r.DEVICE_GRAD,
    "update": r.DEVICE_UPDATE, "call": r.DEVICE_CALL, "wait": r.DEVICE_WAIT,
    "begin": r.STEP_BEGIN, "done": r.STEP_END, "evaluate": r.EVALUATION_BEGIN, "evaluated": r.EVALUATION_END,
    "epoch": r.EPOCH_BEGIN, "epoched": r.EPOCH_END, "phase": r.MARK, "value": r.SCALAR,
}  # fmt: skip
DEFAULTS: dict[str, tuple[Any, Any]] = {
    "fetch": (4, -1), "forward": (0, 4), "quiet": (0, 4), "backward": (1.0, None), "zero": (0, None), "step": (0, 0.1),
    "scaler": (0, 2.0), "clip": (0.5, None), "build": (0, None),
    "train": (0, Values(8, {"loss": 1.0, "accuracy": 0.5})), "grad": (0, Values(8, {"loss": 1.0})),
    "update": (1, None), "call": (0, 8), "begin": (-1, None), "done": (None, 0), "evaluated": ("test", None),
    "epoch": (3, None), "epoched": (3, 0), "phase": ("augment", None), "value": (0, 0.5),
}  # fmt: skip


@pytest.fixture(autouse=True)
def named() -> Iterator[None]:
    """Two names of values."""
    scalars.restart()
    assert (scalars.number("accuracy", None), scalars.number("accuracy", "test")) == (0, 1)
    yield
    scalars.restart()


def track(table: str, *, failed: bool = False) -> list[Any]:
    """Run a table through a tracker: one event a line, `name start end [a [b]]`."""
    tracker = Tracker()
    for line in table.strip().splitlines():
        name, start, end, *rest = line.split()
        a, b = DEFAULTS.get(name, (None, None))
        if rest:
            a = float(rest[0]) if name in ("backward", "clip") else int(rest[0])
        if len(rest) > 1:
            b = int(rest[1]) if name == "forward" else float(rest[1])
        if name in ("compile", "checkpoint"):
            a = {"operation": "save", "error": None} if name == "checkpoint" else {"function": "f", "reason": None}
        tracker.feed(CODES[name], int(start), int(end), a, b)
    tracker.finish(failed=failed)
    return [o for o in tracker.out if not isinstance(o, Rare)]


def shape(found: list[Any]) -> list[Any]:
    """What matters of each finding, in short."""
    short: list[Any] = []
    for one in found:
        if isinstance(one, Step):
            short.append((one.number, one.start, one.end, one.outcome))
        elif isinstance(one, Evaluation):
            short.append(("evaluation", one.start, one.end, one.calls))
        elif isinstance(one, Point):
            short.append((one.column, one.step, one.value))
        elif isinstance(one, Epoch):
            short.append(("epoch", one.number, one.start, one.end))
        else:
            short.append(("call", one.start, one.end))
    return short


def test_loader_loop() -> None:
    """A batch fetch after a turn closes the step; every nanosecond is in one phase or the residual."""
    found = track("""
        fetch 0 10
        zero 12 14
        forward 15 30
        backward 35 60
        clip 61 63 0.7
        step 64 70
        fetch 80 90
        zero 92 94
        forward 95 110
        backward 115 140
        step 144 150
        end 155 156
    """)

    assert shape(found) == [(0, 0, 80, "ok"), (1, 80, 155, "ok")]
    first = found[0]
    assert first.phases == {"data_wait": 10, "optimizer": 10, "forward": 20, "backward": 25, "residual": 15}
    assert (first.losses, first.learning_rates, first.grad_norm, first.samples) == ({0: 1.0}, {0: 0.1}, 0.7, 4)


def test_loop_without_loader() -> None:
    """Without a loader the step ends where the next begins, once the same optimizer's next turn confirms it."""
    found = track("""
        zero 0 1
        forward 2 10
        backward 11 20
        step 21 25
        zero 30 31
        forward 32 40
        backward 41 50
        step 51 55
    """)

    assert shape(found) == [(0, 0, 30, "ok"), (1, 30, 55, "ok")]


def test_gan() -> None:
    """One step holds a round of turns: a new optimizer's turn discards the candidate."""
    found = track("""
        zero 0 1 0
        forward 1 5
        backward 5 9 2.0
        step 9 10 0
        zero 11 12 1
        forward 12 15
        backward 15 19 3.0
        step 19 20 1
        zero 22 23 0
        forward 23 25
        backward 25 29 4.0
        step 29 30 0
        zero 31 32 1
        forward 32 35
        backward 35 39 5.0
        step 39 40 1
    """)

    assert shape(found) == [(0, 0, 22, "ok"), (1, 22, 40, "ok")]
    assert [s.losses for s in found] == [{0: 2.0, 1: 3.0}, {0: 4.0, 1: 5.0}]


def test_accumulation() -> None:
    """Several backwards before a turn are one step's micro-batches, and their losses add up."""
    found = track("""
        build 0 0
        fetch 0 1
        forward 1 2
        backward 2 3 0.25
        fetch 3 4
        forward 4 5
        backward 5 6 0.5
        step 6 7
        fetch 8 9
        forward 9 10
        backward 10 11 0.125
        fetch 11 12
        forward 12 13
        backward 13 14 0.125
        step 14 15
        end 16 17
    """)

    assert [(s.number, s.start, s.end, s.micro_batches, s.losses, s.samples) for s in found] == [
        (0, 0, 8, 2, {0: 0.75}, 8),
        (1, 8, 16, 2, {0: 0.25}, 8),
    ]


def test_closure() -> None:
    """What runs inside an optimizer's step is no edge, and is taken off the optimizer's time."""
    found = track("""
        build 0 0
        zero 11 12
        forward 13 20
        backward 20 30
        forward 33 40
        backward 40 50
        step 10 60
        zero 71 72
        forward 73 80
        backward 80 90
        step 70 100
    """)

    assert shape(found) == [(0, 10, 70, "ok"), (1, 70, 100, "ok")]
    assert found[0].phases == {"optimizer": 16, "forward": 14, "backward": 20, "residual": 10}


@pytest.mark.parametrize(
    "between",
    [
        pytest.param("end 9 9", id="its batches are all there were"),
        pytest.param("build 40 40", id="the optimizer is made after it"),
    ],
)
def test_evaluated_before_it_trains(between: str) -> None:
    """A model's evaluation before its first step gives that step neither time nor samples."""
    found = track(f"""
        fetch 0 2 16
        quiet 2 4
        fetch 4 6 16
        quiet 6 9
        {between}
        fetch 100 110 16
        forward 110 120
        backward 120 130
        step 130 140
        fetch 150 160 16
        forward 160 170
        backward 170 180
        step 180 190
    """)

    steps = [one for one in found if isinstance(one, Step)]
    assert [(s.start, s.end, s.samples) for s in steps] == [(100, 150, 16), (150, 190, 16)]


def test_first_step_with_a_teacher() -> None:
    """A forward without gradient between a batch and the first step's own leaves that step its batch."""
    found = track("""
        fetch 0 10 16
        quiet 10 20
        forward 20 30 1
        backward 30 40
        step 40 50
    """)

    assert [(s.start, s.end, s.samples) for s in found if isinstance(s, Step)] == [(0, 50, 16)]


def test_gradients_thrown_away() -> None:
    """What an optimizer's zero_grad threw away between a backward and its turn is not in its loss."""
    found = track("""
        build 0 0 0
        build 0 0 1
        fetch 0 1
        backward 1 2 1.0
        zero 2 3 0
        backward 3 4 2.0
        backward 4 5 4.0
        zero 5 6 1
        step 6 7 0
        zero 7 8 0
        backward 8 9 8.0
        zero 9 10 -1
        backward 10 11 16.0
        step 11 12 1
        fetch 13 14
        backward 14 15 1.0
        zero 15 16 0
        backward 16 17 2.0
        zero 17 18 1
        step 18 19 1
        backward 19 20 4.0
        zero 20 21 0
        step 21 22 0
        fetch 23 24
        zero 24 25 7
        backward 25 26 1.0
        zero 26 27 7
        backward 27 28 2.0
        step 28 29 0
    """)

    # An optimizer that has its own turn throws away what is its own; one that never has a turn wraps another.
    assert [s.losses for s in found] == [{0: 6.0, 1: 24.0}, {1: 3.0, 0: 4.0}, {0: 2.0}]
    assert [(s.micro_batches, s.samples) for s in found] == [(5, 4), (3, 4), (2, 4)]


def test_samples_of_gradients_thrown_away() -> None:
    """Without a loader, a forward whose gradients were thrown away is no more samples than those of the step."""
    (one,) = track("""
        build 0 0
        forward 1 2 0 64
        backward 2 3
        zero 3 4
        forward 4 5 0 32
        backward 5 6
        forward 6 7 0 16
        backward 7 8
        step 8 9
    """)

    assert (one.samples, one.micro_batches) == (48, 3)


def test_closure_called_again() -> None:
    """Of a closure that is called several times, the loss is that of the first call, which `step` gives back."""
    found = track("""
        build 0 0
        backward 1 2 8.0
        zero 11 12
        backward 13 14 1.0
        backward 15 16 0.5
        zero 17 18
        backward 19 20 4.0
        step 10 21
    """)

    assert [(s.losses, s.micro_batches) for s in found] == [({0: 1.5}, 4)]


TWICE = "grad 0 4\nupdate 5 9\ngrad 10 14\nupdate 15 19\n"


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (
            TWICE
            + "grad 20 21\nwait 22 23\ngrad 24 25\nwait 26 27\n"
            + "".join(f"grad {n} {n + 4}\nupdate {n + 5} {n + 9}\n" for n in (30, 40, 50))
            + "grad 60 61",
            [
                (0, 10, 1),
                (10, 20, 1),
                ("evaluation", 20, 27, 2),
                (30, 40, 1),
                (40, 50, 1),
                (50, 59, 1),
                ("evaluation", 60, 61, 1),
            ],
        ),
        (
            TWICE + "fetch 20 21\ngrad 22 23\nfetch 30 31\ngrad 32 34\nupdate 35 39",
            [(0, 10, 1), (10, 20, 1), ("evaluation", 20, 23, 1), (30, 39, 1)],
        ),
        (
            TWICE + "grad 20 21\nfetch 30 31\ngrad 32 34\nupdate 35 39",
            [(0, 10, 1), (10, 20, 1), ("evaluation", 20, 21, 1), (30, 39, 1)],
        ),
        (
            "grad 0 1\nupdate 2 3\n"
            + "".join(f"grad {n} {n + 1}\ngrad {n + 2} {n + 3}\nupdate {n + 4} {n + 5}\n" for n in (10, 20))
            + "grad 30 31\nupdate 32 33\ngrad 40 41\ngrad 42 43\nupdate 44 45\ngrad 50 51",
            [(0, 10, 1), (10, 20, 2), (20, 30, 2), (30, 40, 1), (40, 45, 2)],
        ),
        (
            "".join(f"grad {n} {n + 1} 0\nupdate {n + 2} {n + 3} 1\n" for n in (0, 10, 20))
            + "grad 24 25 2\nupdate 26 27 3\n"
            + "".join(f"grad {n} {n + 1} 0\nupdate {n + 2} {n + 3} 1\n" for n in (30, 40, 50))
            + "grad 54 55 2\nupdate 56 57 3\n",
            [(0, 10, 1), (10, 20, 1), (20, 30, 2), (30, 40, 1), (40, 50, 1), (50, 57, 2)],
        ),
    ],
    ids=["evaluation", "with its own batch", "before the batch", "accumulation", "gan"],
)
def test_gradients_of_an_evaluation(table: str, expected: list[Any]) -> None:
    """A gradient taken more often than before each of the last two updates was evaluated: no micro-batch, no loss."""
    build = "\n".join(f"build 0 0 {n}" for n in (1, 3))
    short = [
        ("evaluation", one.start, one.end, one.calls)
        if isinstance(one, Evaluation)
        else (one.start, one.end, one.micro_batches)
        for one in track(f"{build}\n{table}")
    ]

    assert short == expected


def test_skipped_turn() -> None:
    """A scaler's step without an optimizer's step inside is a skipped turn; the scale is taken off the loss."""
    found = track("""
        forward 0 5
        backward 5 9 6.0
        step 11 12
        scaler 10 13
        forward 20 25
        backward 25 29 8.0
        scaler 30 33
        forward 40 45
        backward 45 49 8.0
        step 51 52
        scaler 50 53
    """)

    assert [(s.number, s.outcome, s.skip_reason, s.losses) for s in found] == [
        (0, "ok", None, {0: 3.0}),
        (1, "skipped", "gradient_overflow", {0: 4.0}),
        (2, "ok", None, {0: 4.0}),
    ]


def test_evaluation_with_loader() -> None:
    """Batches whose forwards have no backward are an evaluation, and use up no step number."""
    found = track("""
        fetch 0 1
        forward 1 2
        backward 2 3
        step 3 4
        end 5 6
        fetch 10 11
        quiet 11 12
        fetch 13 14
        quiet 14 15
        end 15 16
        fetch 20 21
        forward 21 22
        backward 22 23
        step 23 24
        end 25 26
    """)

    assert shape(found) == [(0, 0, 5, "ok"), ("evaluation", 10, 16, 2), (1, 20, 25, "ok")]


def test_evaluation_with_grad() -> None:
    """Batches whose forwards have no backward are an evaluation with grad on, too, also the last of all."""
    epoch = """
        fetch {0}0 {0}1
        forward {0}1 {0}2
        backward {0}2 {0}3
        step {0}3 {0}4
        end {0}5 {0}5
        fetch {0}5 {0}6
        forward {0}6 {0}7
        fetch {0}7 {0}8
        forward {0}8 {0}9
        end {0}9 {0}9
    """
    both = "\n".join(("build 0 0", *(epoch.format(n).strip() for n in (1, 2))))

    assert shape(track(both)) == [
        (0, 10, 15, "ok"), ("evaluation", 15, 19, 2), (1, 20, 25, "ok"), ("evaluation", 25, 29, 2),
    ]  # fmt: skip
    broken_off = shape(
        track(f"{both}\nfetch 30 31\nforward 31 32\nbackward 32 33\nstep 33 34\nfetch 35 36\nforward 36 37")
    )
    assert broken_off[-1] == (2, 30, 35, "ok")


def test_evaluation_without_loader() -> None:
    """Forwards without grad between steps close the one before and belong to none."""
    found = track("""
        zero 0 1
        forward 1 2
        backward 2 3
        step 3 4
        quiet 10 12
        quiet 13 15
        zero 20 21
        forward 21 22
        backward 22 23
        step 23 24
    """)

    assert shape(found) == [(0, 0, 10, "ok"), ("evaluation", 10, 15, 2), (1, 20, 24, "ok")]


def test_model_in_the_data_set() -> None:
    """Forwards without grad inside of a fetch are no evaluation and no edge: what came before them stays as it was."""
    found = track("""
        build 0 0
        quiet 3 5
        quiet 6 8
        fetch 1 10
        forward 11 12
        backward 12 13
        step 13 14
        quiet 23 25
        quiet 26 28
        fetch 21 30
        forward 31 32
        backward 32 33
        step 33 34
        quiet 35 36
        quiet 37 38
        quiet 41 42
        fetch 40 43
        forward 44 45
        backward 45 46
        step 46 47
        quiet 52 53
        quiet 51 54
        quiet 56 57
    """)

    assert shape(found) == [
        (0, 1, 21, "ok"), (1, 21, 35, "ok"), ("evaluation", 35, 38, 2), (2, 40, 51, "ok"), ("evaluation", 51, 57, 2),
    ]  # fmt: skip
    assert [s.phases["data_wait"] for s in found if isinstance(s, Step)] == [9, 9, 3]


def test_a_large_batch_by_a_model_in_the_data_set() -> None:
    """However many forwards a fetch holds, none of them is left over, and few of them are held."""
    tracker = Tracker()
    tracker.built()
    at = 0
    for _ in range(2):
        since = at
        for _ in range(10_000):
            tracker.feed(r.FORWARD_NOGRAD, at + 1, at + 2, 0, 1)
            at += 2
        for code, a in ((r.FETCH, 4), (r.FORWARD, 0), (r.BACKWARD, 1.0), (r.STEP, 0)):
            tracker.feed(code, since if code == r.FETCH else at, at + 1, a, -1 if code == r.FETCH else None)
            at += 1
    tracker.finish()

    assert shape(tracker.out) == [(0, 0, 20_004, "ok"), (1, 20_004, 40_008, "ok")]


def test_teacher() -> None:
    """A forward without grad inside a batch that trains is part of the step."""
    found = track("""
        build 0 0
        fetch 0 1
        quiet 1 3
        forward 3 5
        backward 5 9
        step 9 10
        fetch 11 12
        quiet 12 14
        forward 14 16
        backward 16 20
        step 20 21
        end 22 23
    """)

    assert shape(found) == [(0, 0, 11, "ok"), (1, 11, 22, "ok")]


def test_by_hand() -> None:
    """With no optimizer a step is one round of backward, closed by the next forward."""
    found = track("""
        forward 0 5
        backward 5 9
        forward 20 25
        backward 25 29
    """)

    assert shape(found) == [(0, 0, 20, "ok"), (1, 20, 29, "ok")]
    assert [s.losses for s in found] == [{-1: 1.0}, {-1: 1.0}]


def test_optimizer_built_anew() -> None:
    """An optimizer constructed after a turn closes the step: a replaced model does not merge into the last one's."""
    found = track("""
        build 0 0 0
        zero 1 2 0
        forward 2 4
        backward 4 6
        step 6 8 0
        build 10 10 1
        zero 11 12 1
        forward 12 14
        backward 14 16
        step 16 18 1
    """)

    assert shape(found) == [(0, 1, 10, "ok"), (1, 11, 18, "ok")]


def test_models_one_after_another() -> None:
    """Without a loader a step's samples are its one root's batch, whatever other roots the thread has run."""
    found = track("""
        build 0 0 0
        forward 1 2 0 64
        backward 2 3
        step 3 4 0
        build 10 10 1
        forward 11 12 1 32
        backward 12 13
        step 13 14 1
        build 20 20 2
        forward 21 22 0 64
        forward 22 23 1 32
        backward 23 24
        step 24 25 2
    """)

    assert [s.samples for s in found] == [64, 32, None]


def test_inference() -> None:
    """In a thread that never trains, forwards without grad are calls."""
    assert shape(track("quiet 0 5\nquiet 6 9")) == [("call", 0, 5), ("call", 6, 9)]


def test_inference_waits() -> None:
    """A request lasts until the program has waited for it, however often it does; the next one begins anew."""
    assert shape(track("call 0 5\nwait 6 9\nwait 10 12\ncall 13 20\ncall 21 25\nwait 26 30")) == [
        ("call", 0, 12), ("call", 13, 20), ("call", 21, 30),
    ]  # fmt: skip


def test_inference_with_grad_on() -> None:
    """A process that never trains serves calls, also with grad on; few of them are ever held back."""
    tracker = Tracker()
    most = 0
    for n in range(1000):
        tracker.feed(r.FETCH, 20 * n, 20 * n + 5, 4, -1)
        tracker.feed(r.FORWARD, 20 * n + 5, 20 * n + 15, 0, 4)
        most = max(most, len(tracker.items))
    tracker.finish()

    assert tracker.out == [Call(20 * n + 5, 20 * n + 15, 0, 4) for n in range(1000)]
    assert most <= 32


def test_differentiated_without_backward() -> None:
    """What calls a model with grad on and differentiates on its own is no server; without grad it evaluates."""
    tracker = Tracker()
    tracker.differentiates = True
    most = 0
    for n in range(300):
        tracker.feed(r.FETCH, 100 * n, 100 * n + 5, 4, -1)
        tracker.feed(r.FORWARD, 100 * n + 5, 100 * n + 15, 0, 4)
        if n % 100 == 99:
            tracker.feed(r.FORWARD_NOGRAD, 100 * n + 20, 100 * n + 30, 0, 4)
            tracker.feed(r.FORWARD_NOGRAD, 100 * n + 40, 100 * n + 50, 0, 4)
        most = max(most, len(tracker.items))
    tracker.finish()

    assert tracker.out == [
        Passed(5, 15), *(Evaluation(100 * n + 20, 100 * n + 50, 2, 0) for n in (99, 199, 299)),
    ]  # fmt: skip
    assert most <= 32


def test_differentiated_before_backward() -> None:
    """Once backward has run, steps are what they are without: that the process differentiates changes nothing."""
    tracker = Tracker()
    tracker.differentiates = True
    for code, start, a in ((r.FORWARD, 0, 0), (r.BACKWARD, 5, 1.0), (r.FORWARD, 10, 0), (r.BACKWARD, 15, 1.0)):
        tracker.feed(code, start, start + 4, a, 4)
    tracker.finish()

    assert shape(tracker.out) == [(0, 0, 10, "ok"), (1, 10, 19, "ok")]


def test_long_evaluation() -> None:
    """An evaluation of any length, with or without grad, is one finding, and its batches are not all held."""
    tracker = Tracker()
    for code, start, end, a in ((r.FORWARD, 0, 1, 0), (r.BACKWARD, 1, 2, 1.0), (r.STEP, 2, 3, 0)):
        tracker.feed(code, start, end, a, None if code != r.FORWARD else 4)
    most = 0
    for n in range(1, 3000):
        tracker.feed(r.FETCH, 10 * n, 10 * n + 2, 4, -1)
        tracker.feed(r.FORWARD_NOGRAD if n < 1500 else r.FORWARD, 10 * n + 2, 10 * n + 8, 0, 4)
        most = max(most, len(tracker.items))
    tracker.feed(r.FETCH, 30_000, 30_002, 4, -1)
    for code, start, end, a in ((r.FORWARD, 2, 3, 0), (r.BACKWARD, 3, 4, 1.0), (r.STEP, 4, 5, 0)):
        tracker.feed(code, 30_000 + start, 30_000 + end, a, None if code != r.FORWARD else 4)
    tracker.finish()

    assert shape(tracker.out) == [(0, 0, 10, "ok"), ("evaluation", 10, 29_998, 2999), (1, 30_000, 30_005, "ok")]
    assert most <= 512


def test_nested_roots_and_recomputation() -> None:
    """A root inside a root, and forwards recomputed during backward, are counted once."""
    found = track("""
        forward 2 4
        forward 1 10
        forward 12 14
        backward 11 20
        step 21 22
    """)

    assert found[0].phases == {"forward": 10, "backward": 9, "optimizer": 1, "residual": 1}
    assert found[0].micro_batches == 1


def test_compile_inside_forward() -> None:
    """A compilation inside a phase is taken off it."""
    found = track("""
        zero 0 1
        compile 3 9
        forward 2 10
        backward 10 12
        step 12 13
    """)

    assert found[0].phases == {"optimizer": 2, "forward": 2, "compile": 6, "backward": 2, "residual": 1}
    assert found[0].compiled is True


def test_compile_in_whatever_contains_it() -> None:
    """A compilation is inside the event that ends next; one that nothing contains is of the step that is open."""
    tracker = Tracker()
    compiled = {"function": "f", "reason": None}
    for code, start, end, a in (
        (r.COMPILE, 2, 8, compiled), (r.DEVICE_TRAIN, 1, 10, 0), (r.COMPILE, 12, 20, compiled),
        (r.DEVICE_CALL, 11, 22, 3), (r.DEVICE_TRAIN, 23, 30, 0), (r.COMPILE, 31, 35, compiled),
    ):  # fmt: skip
        tracker.feed(code, start, end, a, None)
    tracker.finish()

    rare = [one.step for one in tracker.out if isinstance(one, Rare)]
    assert rare == [0, None, 1]
    steps = [one for one in tracker.out if isinstance(one, Step)]
    assert [s.phases for s in steps] == [
        {"host": 3, "compile": 6, "residual": 1}, {"host": 7, "compile": 4, "residual": 1},
    ]  # fmt: skip
    (evaluation,) = (one for one in tracker.out if isinstance(one, Evaluation))
    assert (evaluation.start, evaluation.end, evaluation.compiling) == (11, 22, 8)


def test_compiled_loop() -> None:
    """A compiled function's call is the turn; what is waited for after it is of its step; a batch fetched closes it."""
    found = track("""
        fetch 0 10
        train 11 20
        wait 22 30
        fetch 35 40
        train 41 50
        train 51 60
        wait 61 65
        train 66 70
    """)

    assert shape(found) == [(0, 0, 35, "ok"), (1, 35, 51, "ok"), (2, 51, 66, "ok"), (3, 66, 70, "ok")]
    first = found[0]
    assert first.phases == {"data_wait": 10, "host": 9, "wait": 8, "residual": 8}
    assert (first.losses, first.scalars, first.samples, first.framework) == ({0: 1.0}, {"accuracy": 0.5}, 4, "jax")
    assert found[2].samples == 8


def test_compiled_gradients() -> None:
    """Gradients that are compiled alone are micro-batches of the update that takes them in, once it is known."""
    found = track("""
        grad 0 10
        update 11 20
        grad 21 30
        grad 31 40
        update 41 50
        grad 51 60
        update 61 70
    """)

    assert [(s.number, s.start, s.end, s.micro_batches, s.losses) for s in found] == [
        (0, 0, 21, 1, {1: 1.0}), (1, 21, 51, 2, {1: 2.0}), (2, 51, 70, 1, {1: 1.0}),
    ]  # fmt: skip


def test_compiled_gradients_without_an_update() -> None:
    """Where the weights are updated in Python, a step is one call that yields gradients."""
    found = track("""
        grad 0 10
        wait 11 12
        grad 21 30
        grad 41 50
    """)

    assert shape(found) == [(0, 0, 21, "ok"), (1, 21, 41, "ok"), (2, 41, 50, "ok")]


def test_calls_between_compiled_steps() -> None:
    """What is called between steps now and then is an evaluation; what sets the training up is nothing."""
    found = track("""
        call 0 5
        train 6 10
        train 11 20
        call 21 30
        wait 31 35
        call 36 40
        train 41 50
        train 51 60
        call 61 70
        train 71 80
        train 81 90
    """)

    steps = [one for one in found if isinstance(one, Step)]
    assert [(s.start, s.end) for s in steps] == [(6, 11), (11, 21), (41, 51), (51, 61), (71, 81), (81, 90)]
    evaluations = [one for one in found if isinstance(one, Evaluation)]
    assert [(e.start, e.end, e.calls, e.next_step) for e in evaluations] == [(21, 40, 2, 2), (61, 70, 1, 4)]


def test_call_before_every_compiled_step() -> None:
    """What is called before every step is a part of the step."""
    found = track("""
        call 0 5
        train 6 10
        call 11 20
        train 21 30
        call 31 40
        train 41 50
        call 51 60
        train 61 70
    """)

    assert shape(found) == [(0, 6, 11, "ok"), (1, 21, 31, "ok"), (2, 31, 51, "ok"), (3, 51, 70, "ok")]


def test_failure() -> None:
    """A program that dies inside a step leaves it failed; one that had its turn is done."""
    table = """
        fetch 0 1
        forward 1 2
        backward 2 3
        step 3 4
        fetch 5 6
        forward 6 8
    """

    assert shape(track(table, failed=True)) == [(0, 0, 5, "ok"), (1, 5, 8, "failed")]
    assert shape(track(table)) == [(0, 0, 5, "ok")]


def test_fetches_alone() -> None:
    """A thread that only fetches shows no step."""
    assert track("fetch 0 1\nfetch 2 3\nend 4 5") == []


def test_said_steps() -> None:
    """A step that the program itself marked holds all that is in it, whatever it is, and the batch just before."""
    found = track("""
        fetch 0 5
        begin 6 6
        forward 7 10
        backward 11 15
        step 16 20
        quiet 21 22
        zero 23 24
        forward 25 28
        backward 29 33
        step 34 38
        done 6 40
        begin 50 50
        done 50 60
    """)

    assert shape(found) == [(0, 0, 40, "ok"), (1, 50, 60, "ok")]
    assert found[0].phases == {"data_wait": 5, "forward": 9, "backward": 8, "optimizer": 9, "residual": 9}
    assert (found[0].losses, found[0].micro_batches, found[0].samples) == ({0: 2.0}, 2, 4)
    assert (found[1].phases, found[1].framework) == ({"residual": 10}, "none")


def test_said_step_closes_what_was_inferred() -> None:
    """It begins where the program says; what was complete before ends there, what was not is no step."""
    found = track("""
        forward 0 2
        backward 2 4
        step 4 6
        zero 7 8
        begin 10 10
        done 10 12
        forward 13 14
        begin 15 15
        forward 16 17
        done 15 18 0 -2
    """)

    assert shape(found) == [(0, 0, 10, "ok"), (1, 10, 12, "ok"), (2, 15, 18, "failed")]


def test_said_numbers() -> None:
    """A number of the program's is taken when it is ahead, and counted on from; an abandoned step has none."""
    tracker = Tracker()
    for number, outcome in ((5, 0), (2, 0), (-1, r.ABANDONED), (7, 0)):
        tracker.feed(r.STEP_BEGIN, 1, 1, number, None)
        tracker.feed(r.STEP_END, 1, 2, None, outcome)
    assert [one.number for one in tracker.out if isinstance(one, Step)] == [5, 6, 7]


def test_said_evaluation() -> None:
    """What is inside an evaluation of the program's is no step, even if it trains."""
    found = track("""
        forward 0 2
        backward 2 4
        step 4 6
        evaluate 8 8
        fetch 9 10
        quiet 10 12
        forward 12 13
        backward 13 14
        step 14 15
        value 16 16 1
        evaluated 8 18
        forward 20 22
        backward 22 24
        step 24 26
    """)

    assert shape(found) == [(0, 0, 8, "ok"), ("evaluation", 8, 18, 2), ("test/accuracy", 0, 0.5), (1, 20, 26, "ok")]
    assert found[1].split == "test"


def test_phases() -> None:
    """A phase of the program's takes its time from what was inferred there; the inner of two has its own."""
    found = track("""
        begin 0 0
        phase 4 6
        forward 3 10
        backward 11 15
        step 16 20
        phase 12 14
        phase 11 18
        done 0 30
    """)

    assert found[0].phases == {"forward": 6, "augment": 9, "optimizer": 2, "residual": 13}
    assert [one for one in found[0].intervals if one[0] == "augment"] == [("augment", 4, 6), ("augment", 11, 18)]


def test_values() -> None:
    """A value belongs to the step in whose time it was recorded, the last of a name wins; else to the one before."""
    found = track("""
        value 0 0
        fetch 1 2
        forward 2 4
        backward 4 6
        value 6 6 0 0.25
        step 6 8
        value 9 9 0 0.75
        fetch 10 11
        forward 11 12
        backward 12 13
        step 13 14
        evaluate 15 15
        value 16 16 1 0.125
        evaluated 15 18
        value 19 19
    """)

    assert shape(found) == [
        ("accuracy", None, 0.5), (0, 1, 10, "ok"), (1, 10, 15, "ok"), ("evaluation", 15, 18, 0),
        ("test/accuracy", 1, 0.125), ("accuracy", 1, 0.5),
    ]  # fmt: skip
    assert (found[1].scalars, found[2].scalars) == ({"accuracy": 0.75}, {})


def test_epochs() -> None:
    """Steps are of the epoch in which they end; an epoch's ends close what is complete."""
    found = track("""
        epoch 0 0
        forward 1 2
        backward 2 3
        step 3 4
        epoched 0 6
        forward 8 9
        backward 9 10
        step 10 11
    """)

    assert shape(found) == [(0, 1, 6, "ok"), ("epoch", 3, 0, 6), (1, 8, 11, "ok")]
    assert [one.epoch for one in found if isinstance(one, Step)] == [3, None]


EVENTS = st.lists(
    st.tuples(st.sampled_from(sorted([*CODES, "numbered"])), st.integers(0, 9), st.integers(0, 30), st.integers(0, 2)),
    max_size=60,
)


@given(EVENTS, st.booleans())
def test_any_order(events: list[tuple[str, int, int, int]], failed: bool) -> None:
    """Whatever the order, no phase is negative or overlaps, and phases and residual sum to the step."""
    tracker = Tracker()
    clock = 0
    for name, before, length, which in events:
        start = max(0, clock - before)
        clock = max(clock, start + length)
        a, b = DEFAULTS.get(name, (None, None))
        if name in ("compile", "checkpoint"):
            a = {"operation": "save", "error": None} if name == "checkpoint" else {"function": "f", "reason": None}
        if name == "numbered":
            a = 10 * which
        tracker.feed(
            r.NUMBERED if name == "numbered" else CODES[name],
            start,
            clock,
            which if name in ("zero", "step", "scaler", "build") else a,
            b,
        )
    tracker.finish(failed=failed)

    steps = [o for o in tracker.out if isinstance(o, Step)]
    numbers = [s.number for s in steps]
    assert numbers == sorted(set(numbers))
    assert {b - a for a, b in pairwise([-1, *numbers])} <= (
        {1} if all(e[0] != "numbered" for e in events) else set(range(1, 22))
    )
    for step in steps:
        assert sum(step.phases.values()) == step.duration
        assert min(step.phases.values()) >= 0
        ends = [step.start]
        for _, start, end in step.intervals:
            assert ends[-1] <= start < end <= step.end
            ends.append(end)


ROUNDS = {
    "plain": ["zero 0", "forward", "backward", "step 0"],
    "zero last": ["forward", "backward", "step 0", "zero 0"],
    "gan": ["zero 0", "forward", "backward", "step 0", "zero 1", "forward", "backward", "step 1"],
    "loader": ["fetch", "zero 0", "forward", "backward", "step 0"],
    "loader gan": ["fetch", "zero 0", "forward", "backward", "step 0", "zero 1", "forward", "backward", "step 1"],
    "accumulation": ["fetch", "forward", "backward", "fetch", "forward", "backward", "step 0"],
    # Without a loader, where a compiled call began is not known: what comes between two is online the first one's.
    "compiled loader": ["fetch", "train 0"],
    "compiled apart": ["grad", "update 1"],
    "compiled loader gan": ["fetch", "train 0", "train 1"],
    "said": ["begin", "forward", "backward", "step 0", "forward", "backward", "step 0", "done", "quiet"],
    "three": ["forward", "backward", "step 0", "forward", "backward", "step 1", "forward", "backward", "step 2"],
}


@pytest.mark.parametrize("kind", ROUNDS)
def test_online_counter_agrees(kind: str) -> None:
    """From the third round on, the number that a hook sees is the number the tracker gives its step."""
    recorder = Recorder(1000)
    tracker = Tracker()
    clock = 0
    seen: list[tuple[int, int, int]] = []
    tracker.built()
    for turn in range(8):
        for event in ROUNDS[kind]:
            name, _, which = event.partition(" ")
            optimizer = int(which or 0)
            if name == "fetch":
                recorder.fetching()
            elif name == "begin":
                recorder.begin_step(-1)
            elif name == "done":
                recorder.end_step(0)
            elif name == "quiet":
                recorder.edge()
            elif name not in ("step", "train", "update"):
                recorder.candidate()
            if turn >= 2 and recorder.state:
                seen.append((clock, recorder.number, turn))
            if name in ("step", "train", "update"):
                recorder.turn(optimizer)
            a, b = DEFAULTS.get(name, (None, None))
            tracker.feed(CODES[name], clock, clock + 1, optimizer if which else a, b)
            clock += 2
    tracker.finish()

    steps = [o for o in tracker.out if isinstance(o, Step)]
    by_time = {at: s.number for s in steps for at in range(s.start, s.end)}
    assert [(at, number) for at, number, _ in seen if at in by_time] == [
        (at, by_time[at]) for at, _, _ in seen if at in by_time
    ]
    assert len(steps) == 8
