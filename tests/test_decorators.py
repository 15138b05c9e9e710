"""Spans and timings of the program's own: what they say, and that the program is the same with them."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import inspect
import logging
import os
import pickle
import re
import subprocess
import sys
import threading
import types
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import pytest
import torch
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from torch._dynamo.utils import counters

import otel_ml
from otel_ml import errors, names
from otel_ml.core import runtime
from otel_ml.core.context import inside, limits, request_id
from otel_ml.core.context import split as current_split
from otel_ml.decorators import _TOO_MANY
from otel_ml.testing import Captured, FakeClock, capture
from tests import decorated
from tests.loops import train

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator

ROOT = Path(__file__).resolve().parent.parent
HERE = __name__
SECRET = "hunter2tr0ub4dor"  # noqa: S105 - the point of it
PARTS: dict[str, Callable[[], Any]] = {
    "span": lambda: otel_ml.span("part"),
    "timed": lambda: otel_ml.timed("part"),
    "run": lambda: otel_ml.run("part"),
    "epoch": lambda: otel_ml.epoch(0),
    "step": otel_ml.step,
    "phase": lambda: otel_ml.phase("part"),
    "evaluation": otel_ml.evaluation,
    "checkpoint": lambda: otel_ml.checkpoint("part.pt"),
    "request": otel_ml.request,
}
DECORATORS: dict[str, Callable[[], Any]] = {
    "traced": lambda: otel_ml.traced,
    "traced()": otel_ml.traced,
    "traced(…)": lambda: otel_ml.traced(name="part", arguments=True, attributes={"a": 1}),
    "timed, bare": lambda: otel_ml.timed,
    "timed()": otel_ml.timed,
    **PARTS,
}


def own(seen: Captured) -> list[dict[str, Any]]:
    """The spans that the program made, in the order of their starts."""
    made = [
        s
        for s in seen.spans
        if s["name"] == names.SPAN_REQUEST or not (s["name"].startswith("ml.") or s["name"] in names.PHASES)
    ]
    return sorted(made, key=lambda s: s["start_unix_ns"])


def nested(seen: Captured) -> list[tuple[str, str | None, int | None]]:
    """Each such span: its name, its parent's, and the step it was begun in."""
    by_id = {s["span_id"]: s["name"] for s in seen.spans}
    return [
        (s["name"], by_id.get(s["parent_span_id"], s["parent_span_id"]), s["attributes"].get(names.STEP_NUMBER))
        for s in own(seen)
    ]


def told(seen: Captured) -> list[tuple[str, str, str | None, list[str]]]:
    """Each such span: its name, status, error, and the exceptions that it recorded."""
    return [
        (
            s["name"],
            s["status"],
            s["attributes"].get(names.ERROR_TYPE),
            [e["attributes"][names.EXCEPTION_MESSAGE] for e in s["events"]],
        )
        for s in own(seen)
    ]


def current() -> Any:
    """The span that is current, or None."""
    span = trace.get_current_span()
    return span if span.get_span_context().is_valid else None


def name_of(span: Any) -> str | None:
    """An SDK span's name."""
    return getattr(span, "name", None)


def fail(error: BaseException) -> None:
    """Raise it."""
    raise error


# --- what is told ---------------------------------------------------------------------------


@otel_ml.traced
def inner() -> str:
    """Be inside."""
    return "done"


@otel_ml.traced
def outer() -> str:
    """Call another."""
    return inner()


def test_a_call_is_a_span_in_its_step() -> None:
    """A traced call is a span of the function's name in its step's trace, with the function in full."""
    clock = FakeClock()
    with capture(clock=clock) as seen:
        outer()
        train(clock, [2.0, 1.0], outer)
    assert nested(seen) == [
        ("outer", None, None), ("inner", "outer", None),
        ("outer", names.SPAN_STEP, 0), ("inner", "outer", 0),
        ("outer", names.SPAN_STEP, 1), ("inner", "outer", 1),
    ]  # fmt: skip
    steps = seen.named(names.SPAN_STEP)
    assert [(s["trace_id"], s["attributes"]) for s in seen.named("inner")[1:]] == [
        (steps[n]["trace_id"], {names.FUNCTION_NAME: f"{HERE}.inner", names.STEP_NUMBER: n}) for n in range(2)
    ]
    assert {(s["status"], s["kind"], len(s["links"]), len(s["events"])) for s in own(seen)} == {
        ("unset", "internal", 0, 0)
    }


class Thing:
    """Has methods of every kind, and can be called."""

    def __call__(self, x: int) -> int:
        return x

    @otel_ml.traced
    def method(self, x: int) -> int:
        """Give it back."""
        return x

    @otel_ml.traced
    @classmethod
    def above(cls, x: int) -> int:
        """Give it back."""
        return x

    @classmethod
    @otel_ml.traced
    def below(cls, x: int) -> int:
        """Give it back."""
        return x

    @otel_ml.traced()
    @staticmethod
    def still(x: int) -> int:
        """Give it back."""
        return x

    @property
    @otel_ml.traced
    def shown(self) -> int:
        """Give one."""
        return 7

    def plain(self, x: int) -> int:
        """Give it back."""
        return x


class Later:
    """Can be awaited once it is called."""

    async def __call__(self, x: int) -> int:
        return x if runtime.recording is None or name_of(current()) == "Later" else 0


def plain(x: int) -> int:
    """Give it back."""
    return x


thing = Thing()
seven = lambda: 7  # noqa: E731 - the point of it


@pytest.mark.parametrize(
    ("call", "name", "function"),
    [
        (lambda: thing.method(7), "Thing.method", f"{HERE}.Thing.method"),
        (lambda: Thing.above(7), "Thing.above", f"{HERE}.Thing.above"),
        (lambda: thing.below(7), "Thing.below", f"{HERE}.Thing.below"),
        (lambda: Thing.still(7), "Thing.still", f"{HERE}.Thing.still"),
        (lambda: thing.shown, "Thing.shown", f"{HERE}.Thing.shown"),
        (functools.partial(otel_ml.traced(thing.plain), 7), "Thing.plain", f"{HERE}.Thing.plain"),
        (functools.partial(otel_ml.traced(thing), 7), "Thing", f"{HERE}.Thing"),
        (lambda: asyncio.run(otel_ml.traced(Later())(7)), "Later", f"{HERE}.Later"),
        (otel_ml.traced(functools.partial(plain, 7)), "plain", f"{HERE}.plain"),
        (otel_ml.traced(functools.partial(functools.partial(plain), x=7)), "plain", f"{HERE}.plain"),
        (otel_ml.traced(seven), "<lambda>", f"{HERE}.<lambda>"),
        (lambda: otel_ml.traced(len)(range(7)), "len", "builtins.len"),
        (lambda: len(otel_ml.traced(str.upper)("a" * 7)), "str.upper", "builtins.str.upper"),
        (lambda: otel_ml.traced(name="told")(plain)(7), "told", f"{HERE}.plain"),
        (lambda: asyncio.run(decorated.later(7)), "later", "tests.decorated.later"),
        (lambda: max(decorated.counted(8)), "counted", "tests.decorated.counted"),
    ],
)
def test_whatever_can_be_called(call: Callable[[], int], name: str, function: str) -> None:
    """Methods, partials, objects, builtins and coroutines give what they gave, and are named in full."""
    assert call() == 7
    with capture() as seen:
        assert call() == 7
    assert [(s["name"], s["attributes"][names.FUNCTION_NAME]) for s in own(seen)] == [(name, function)]


def test_blocks() -> None:
    """`span()` is a block, also an asynchronous one, and gives OpenTelemetry's span; or it decorates."""

    async def work() -> str | None:
        async with otel_ml.span("later") as span:
            span.set_attribute("late", value=True)
            await decorated.later(1)
            return name_of(trace.get_current_span())

    with otel_ml.span("nobody", size=1) as nothing:
        nothing.set_attribute("any", 1)
    with capture() as seen:
        with otel_ml.span("load", files=3, codec=None) as span:
            assert trace.get_current_span() is span
            span.set_attribute("found", 2)
            decorated.named(1)
        assert asyncio.run(work()) == "later"
    assert (nothing.is_recording(), current()) == (False, None)
    assert nested(seen) == [
        ("load", None, None), ("named", "load", None), ("later", None, None), ("later", "later", None),
    ]  # fmt: skip
    assert [s["attributes"] for s in own(seen)] == [
        {"files": 3, "found": 2}, {}, {"late": True}, {names.FUNCTION_NAME: "tests.decorated.later"},
    ]  # fmt: skip


def test_spans_have_the_programs_scope() -> None:
    """A span's instrumentation scope is the module that made it, so that a View or a sampler can tell them apart."""
    scopes = []
    with capture() as seen:
        for part in (decorated.double, decorated.named):
            part(1)
        with otel_ml.span("here"):
            pass
        with otel_ml.request():
            pass
        seen.turn()
        scopes = [(s.name, getattr(s.instrumentation_scope, "name", None)) for s in seen._spans.get_finished_spans()]
    assert [s for s in scopes if s[0] != names.SPAN_RUN] == [
        ("double", "tests.decorated"), ("named", "tests.decorated"), ("here", HERE), (names.SPAN_REQUEST, names.SCOPE),
    ]  # fmt: skip


# --- the function stays the function ----------------------------------------------------------


def a_function(x: int, *more: str, key: float = 0.5, **rest: Any) -> str:
    """Say it."""
    return f"{x}{more}{key}{rest}"


async def a_coroutine(x: int, *more: str, key: float = 0.5, **rest: Any) -> str:
    """Say it."""
    return f"{x}{more}{key}{rest}"


def a_generator(x: int, *more: str, key: float = 0.5, **rest: Any) -> Iterator[str]:
    """Say it."""
    yield f"{x}{more}{key}{rest}"


async def an_async_generator(x: int, *more: str, key: float = 0.5, **rest: Any) -> AsyncIterator[str]:
    """Say it."""
    yield f"{x}{more}{key}{rest}"


@types.coroutine
def an_awaitable_generator(x: int, *more: str, key: float = 0.5, **rest: Any) -> Generator[Any, Any, str]:
    """Say it."""
    yield from asyncio.sleep(0).__await__()
    return f"{x}{more}{key}{rest}"


def known(function: Any) -> dict[str, Any]:
    """What can be asked of a function."""
    tests = ("iscoroutinefunction", "isgeneratorfunction", "isasyncgenfunction", "isfunction", "isroutine")
    return {
        **{test: getattr(inspect, test)(function) for test in tests},
        "awaitable": bool(function.__code__.co_flags & inspect.CO_ITERABLE_COROUTINE),
        "signature": inspect.signature(function),
        "doc": inspect.getdoc(function),
        "names": (function.__name__, function.__qualname__, function.__module__),
        "annotations": function.__annotations__,
        "source": inspect.getsource(function),
        "mark": function.mark,
    }


def run_it(function: Any) -> str:
    """What a function of any kind says."""

    async def wait(thing: Any) -> Any:
        return await anext(thing) if inspect.isasyncgen(thing) else await thing

    result = function(1, "a", key=2.0, other=None)
    if isinstance(result, str):
        return result
    if inspect.isawaitable(result) or inspect.isasyncgen(result):
        said: str = asyncio.run(wait(result))
        return said
    return str(next(iter(result)))


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("decorator", DECORATORS)
@pytest.mark.parametrize("function", [a_function, a_coroutine, a_generator, an_async_generator, an_awaitable_generator])
def test_a_function_is_what_it_was(function: Any, decorator: str, recorded: bool) -> None:
    """Kind, signature, docs, annotations, attributes and results stay, whatever decorates, recorded or not."""
    function.mark = object()
    wrapped = DECORATORS[decorator]()(function)
    with capture() if recorded else ExitStack():
        assert (known(wrapped), run_it(wrapped)) == (known(function), "1('a',)2.0{'other': None}")
    assert (inspect.unwrap(wrapped), wrapped.__wrapped__) == (function, function)


@pytest.mark.parametrize("decorator", DECORATORS)
@pytest.mark.parametrize("thing", [3, None, "text", property(plain), functools.cached_property(plain), Thing, [plain]])
def test_what_is_no_function(thing: Any, decorator: str) -> None:
    """What cannot be decorated is refused where it is decorated, in words that say what to do."""
    if decorator in ("traced", "timed, bare") and (thing is None or isinstance(thing, str)):
        thing = 3  # there it is an argument
    with pytest.raises(TypeError, match=r"put it right above a `def`|decorate its methods"):
        DECORATORS[decorator]()(thing)


def test_a_name_is_no_function() -> None:
    """`@traced("name")` is refused."""
    with pytest.raises(TypeError, match="needs a function, not str"):
        otel_ml.traced("load")  # type: ignore[call-overload]


@pytest.mark.parametrize("name", decorated.__all__)
def test_decorated_functions_pickle(name: str) -> None:
    """A decorated function of a module is pickled by its name, as ever."""
    function = getattr(decorated, name)
    assert pickle.loads(pickle.dumps(function)) is function  # noqa: S301 - our own
    assert pickle.loads(pickle.dumps(Thing().method)).__func__ is Thing.method  # noqa: S301 - our own


_POOL = """
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import otel_ml
from otel_ml.core import runtime
from otel_ml.testing import capture
from tests import decorated

def work(x):
    with otel_ml.span("child"), otel_ml.timed("child"), otel_ml.step():
        return decorated.double(x), runtime.recording is not None

if __name__ == "__main__":
    with capture() as seen, otel_ml.span("parent"):
        with ProcessPoolExecutor(2, multiprocessing.get_context(sys.argv[1])) as pool:
            print(list(pool.map(decorated.double, range(3))), list(pool.map(decorated.slow, range(3))))
            print(list(pool.map(work, range(2))))
        decorated.double(1)
    print(sorted(s["name"] for s in seen.spans))
"""


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_process_pools(start: str, tmp_path: Path) -> None:
    """Pools take decorated functions; a child that is not recorded itself tells nothing."""
    program = tmp_path / "pool.py"
    program.write_text(_POOL, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, program, start], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    said = ["[0, 2, 4] [0, 1, 2]", "[(0, False), (2, False)]", "['double', 'ml.run', 'parent']"]
    assert (done.stdout.splitlines(), done.stderr) == (said, "")


def test_a_forked_child_ends_nothing() -> None:
    """A child that is forked inside of a span leaves it, and it stays its parent's to tell."""
    with capture() as seen:
        read, write = os.pipe()
        with otel_ml.span("parent"), otel_ml.step(), otel_ml.timed("parent"):
            child = os.fork()
        if child == 0:
            with suppress(BaseException):
                seen.tracer_provider.force_flush()
                os.write(write, f"{[s.name for s in seen._spans.get_finished_spans()]} {current()}".encode())
            os._exit(0)
        os.waitpid(child, 0)
        said = os.read(read, 1000).decode()
        os.close(read)
        os.close(write)
    assert (said, [s["name"] for s in own(seen)]) == ("[] None", ["parent"])


# --- generators -------------------------------------------------------------------------------


def conversation(log: list[Any]) -> Generator[Any, Any, str]:
    """Answer, survive what is thrown, tidy up."""
    given: Any = "begun"
    try:
        while given != "return":
            try:
                given = yield ("said", given)
            except LookupError as error:  # noqa: PERF203 - the point of it
                given = f"caught {error!r}"
            except GeneratorExit:
                log.append("exit")
                raise
    finally:
        log.append("tidied")
    return "returned"


def stubborn(log: list[Any]) -> Generator[Any, Any, str]:
    """Refuse to be closed, once."""
    try:
        yield 1
    except GeneratorExit:
        yield 2
    return "gave in"


def obedient(log: list[Any]) -> Generator[Any, Any, str]:
    """Return when it is closed."""
    try:
        yield 1
    except GeneratorExit:
        log.append("exit")
    return "closed"


def failing(log: list[Any]) -> Generator[Any, Any, str]:
    """Fail."""
    yield 1
    raise ValueError(2)


def stopping(log: list[Any]) -> Generator[Any, Any, str]:
    """Raise what ends iterations."""
    yield 1
    raise StopIteration(2)  # noqa: PLR1708 - the point of it


SCRIPTS: list[list[Any]] = [
    ["next", "next", "next"],
    ["next", ("send", 3), ("send", "return"), "next"],
    ["next", ("throw", KeyError(1)), ("throw", OSError(2)), "next"],
    ["next", "close", "close", "next"],
    ["close", "next"],
    [("throw", KeyError(1)), "next"],
    [("send", 1)],
    ["next", ("throw", GeneratorExit()), "next"],
    ["next", ("throw", StopIteration(9)), "next"],
    ["next", ("throw", KeyboardInterrupt()), "next"],
    ["next", "drop"],
]


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """Collections look at what these tests make, not at all of torch."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def called(value: object) -> str:
    """A case's part in the test's name."""
    return value.__name__ if inspect.isfunction(value) else str(value)


def cases(*bodies: Any) -> Iterator[tuple[Any, list[Any], bool]]:
    """Each way to drive each, recorded and not."""
    for body in bodies:
        for script in SCRIPTS:
            if not (body is stubborn and "drop" in script):  # Python itself complains of that
                yield body, script, True
                # Without a run it is `yield from`, which closes its body itself where a GeneratorExit arrives.
                if body not in (stubborn, obedient) or not {"close", "GeneratorExit"} & set(
                    re.findall(r"\w+", str(script))
                ):
                    yield body, script, False


def drive(body: Any, script: list[Any]) -> list[Any]:
    """Each thing that happened while a generator was driven so."""
    log: list[Any] = []
    generator = body(log)
    for entry in script:
        action, *given = (entry,) if isinstance(entry, str) else entry
        try:
            if action == "next":
                log.append(next(generator))
            elif action == "drop":
                del generator
                gc.collect()
            else:
                log.append(getattr(generator, action)(*given))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is compared
            log.append((type(error), str(error), getattr(error, "value", None), error in given))
    return log


@pytest.mark.parametrize(
    ("body", "script", "recorded"), [*cases(conversation, stubborn, obedient, failing, stopping)], ids=called
)
def test_a_generator_does_what_it_did(body: Any, script: list[Any], recorded: bool) -> None:
    """`send`, `throw`, `close`, what is returned and what is raised pass through a decorated generator unchanged."""
    with capture() if recorded else ExitStack():
        assert drive(otel_ml.traced(body), script) == drive(body, script)
        assert current() is None


def asynchronous(body: Any) -> Any:
    """The same as an asynchronous generator."""

    async def call(log: list[Any]) -> AsyncIterator[Any]:
        inner, turn, given = body(log), "send", None
        while True:
            await asyncio.sleep(0)
            try:
                item = getattr(inner, turn)(given)
            except StopIteration:
                return
            try:
                turn, given = "send", (yield item)
            except BaseException as error:  # noqa: BLE001 - the inner one's to handle
                turn, given = "throw", error

    return call


def drive_later(body: Any, script: list[Any]) -> list[Any]:
    """The same for an asynchronous generator."""
    log: list[Any] = []

    async def drop() -> None:
        gc.collect()
        for _ in range(9):
            await asyncio.sleep(0)

    async def work() -> None:
        generator = body(log)
        for entry in script:
            action, *given = (entry,) if isinstance(entry, str) else entry
            try:
                if action == "next":
                    log.append(await anext(generator))
                elif action == "drop":
                    del generator
                    await drop()
                else:
                    log.append(await getattr(generator, f"a{action}")(*given))
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is compared
                log.append((type(error), str(error), error in given))
        generator = None
        await drop()

    asyncio.run(work())
    return log


@pytest.mark.parametrize(
    ("body", "script", "recorded"), [*cases(conversation, stubborn, obedient, failing)], ids=called
)
def test_an_async_generator_does_what_it_did(body: Any, script: list[Any], recorded: bool) -> None:
    """`asend`, `athrow`, `aclose` and what is raised pass through a decorated asynchronous generator unchanged."""
    body = asynchronous(body)
    with capture() if recorded else ExitStack():
        assert drive_later(otel_ml.traced(body), script) == drive_later(body, script)
        assert current() is None


def test_a_generators_span_is_its_bodys_alone() -> None:
    """A generator's span lasts as long as the iteration and is current in its body alone, as that left it."""
    seen_inside: list[str | None] = []

    @otel_ml.traced
    def body() -> Iterator[int]:
        seen_inside.append(name_of(current()))
        yield 0
        with otel_ml.span("part of it"):
            otel_context.attach(baggage.set_baggage("user", "ada"))
            yield 1
            seen_inside.append(name_of(current()))
            inner()
        yield 2
        seen_inside.append(name_of(current()))

    with capture() as seen:
        with otel_ml.span("consumer"):
            for _ in body():
                seen_inside.append(name_of(current()))
                assert baggage.get_baggage("user") is None
                with otel_ml.span("work"):
                    pass
            assert name_of(current()) == "consumer"
        assert current() is None
    it = f"{test_a_generators_span_is_its_bodys_alone.__name__}.<locals>.body"
    assert seen_inside == [it, "consumer", "consumer", "part of it", "consumer", it]
    assert nested(seen) == [
        ("consumer", None, None), (it, "consumer", None), ("work", "consumer", None), ("part of it", it, None),
        ("work", "consumer", None), ("inner", "part of it", None), ("work", "consumer", None),
    ]  # fmt: skip


def test_a_generator_that_steps_are_made_from() -> None:
    """What a generator begins in each step is in that step, linked to the generator's span, which began before."""
    clock = FakeClock()

    @otel_ml.traced(name="loader")
    def loader() -> Iterator[int]:
        for n in range(2):
            inner()
            yield n

    with capture(clock=clock) as seen:
        items = loader()
        next(items)
        train(clock, [1.0, 2.0], lambda: [*items])
        train(clock, [3.0], inner)
    assert nested(seen) == [
        ("loader", None, None), ("inner", "loader", None), ("inner", names.SPAN_STEP, 0), ("inner", names.SPAN_STEP, 2),
    ]  # fmt: skip
    span = seen.named("loader")[0]
    assert [[link["span_id"] for link in s["links"]] for s in seen.named("inner")] == [[], [span["span_id"]], []]


@pytest.mark.parametrize("how", ["closed", "collected", "in another thread", "thrown at"])
def test_a_generator_left_half_way(how: str) -> None:
    """A span of a generator that is given up in a later step ends there, without an error, and nothing of it stays."""
    clock = FakeClock()
    held: list[Any] = []

    @otel_ml.traced(name="loader")
    def loader() -> Iterator[int]:
        with otel_ml.span("half"):
            try:
                yield 1
            finally:
                inner()

    def begin() -> None:
        held.append(loader())
        next(held[0])

    def leave() -> None:
        with otel_ml.span("meanwhile"):
            if how == "closed":
                held.pop().close()
            elif how == "collected":
                held.clear()
                gc.collect()
            elif how == "in another thread":
                thread = threading.Thread(target=held.pop().close)
                thread.start()
                thread.join()
            else:
                with pytest.raises(KeyboardInterrupt):
                    held.pop().throw(KeyboardInterrupt())
            decorated.double(1)
            assert name_of(current()) == "meanwhile"

    with capture(clock=clock) as seen:
        train(clock, [1.0], begin)
        train(clock, [1.0], leave)
        train(clock, [1.0], inner)
    error = "KeyboardInterrupt" if how == "thrown at" else None
    assert nested(seen) == [
        ("loader", names.SPAN_STEP, 0), ("half", "loader", 0), ("meanwhile", names.SPAN_STEP, 1),
        ("inner", names.SPAN_STEP, 1), ("double", "meanwhile", 1), ("inner", names.SPAN_STEP, 2),
    ]  # fmt: skip
    assert told(seen)[:2] == [("loader", "unset", error, []), ("half", "unset", error, [])]


def test_async_generators_in_tasks() -> None:
    """Tasks that iterate, finish, or give up half-way do not see each other's spans, nor does what comes after."""

    @otel_ml.traced(name="stream")
    async def stream(label: str) -> AsyncIterator[str]:
        for n in range(3):
            with otel_ml.span(f"{label}{n}"):
                await asyncio.sleep(0)
                yield label

    async def use(label: str, most: int) -> str | None:
        with otel_ml.span(label):
            items = stream(label)
            async for _ in items:
                assert name_of(current()) == label
                await asyncio.sleep(0)
                most -= 1
                if not most:
                    break
            if label == "b":
                await items.aclose()  # type: ignore[attr-defined]
            return name_of(current())

    async def work() -> list[str | None]:
        done = await asyncio.gather(use("a", 9), use("b", 1), use("c", 2))
        gc.collect()
        await asyncio.sleep(0)
        return [*done, name_of(current())]

    with capture() as seen:
        assert asyncio.run(work()) == ["a", "b", "c", None]
        assert current() is None
    assert sorted(nested(seen), key=str) == sorted(
        [(label, None, None) for label in "abc"]
        + [("stream", label, None) for label in "abc"]
        + [(label, "stream", None) for label in ("a0", "a1", "a2", "b0", "c0", "c1")],
        key=str,
    )
    assert [line[1:] for line in told(seen)] == [("unset", None, [])] * 12


@pytest.mark.parametrize("recorded", [False, True])
def test_a_loop_that_ends_first(recorded: bool, caplog: pytest.LogCaptureFixture) -> None:
    """An asynchronous generator that is open when its event loop ends is closed once, and tidies up in peace."""
    log: list[str] = []

    @otel_ml.traced(name="stream")
    async def stream() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            log.append("tidied")

    kept = stream()

    async def work() -> int:
        return await anext(kept)

    with capture() if recorded else ExitStack() as seen:
        assert asyncio.run(work()) == 1
    assert (log, [r.message for r in caplog.records]) == (["tidied"], [])
    if isinstance(seen, Captured):
        assert told(seen) == [("stream", "unset", None, [])]


class Item:
    """Can be watched."""


def watched(made: Any) -> weakref.ref[Any]:
    """A look at what is held by nobody here."""
    return weakref.ref(made)


@pytest.mark.parametrize("recorded", [False, True])
def test_nothing_is_held(recorded: bool) -> None:
    """Neither an item that the consumer has let go of, nor an argument, nor an exception is held by us."""

    @otel_ml.traced
    def items(first: Item) -> Generator[Item, None, None]:
        del first
        while True:
            yield Item()

    @otel_ml.traced
    async def later() -> AsyncIterator[Item]:
        while True:
            yield Item()

    async def first_of_later() -> bool:
        stream = later()
        gone = watched(await anext(stream))
        dead = gone() is None
        await stream.aclose()  # type: ignore[attr-defined]
        return dead

    class Watched(Exception):  # noqa: N818 - it can be watched
        pass

    @otel_ml.traced
    def broken(kind: Any) -> None:
        raise kind

    def thrown(call: Callable[[Any], Any]) -> weakref.ref[Any]:
        try:
            call(Watched)
        except Watched as error:
            return watched(error)
        raise AssertionError

    def first(call: Callable[[], Any]) -> weakref.ref[Any]:
        return watched(call())

    gc.disable()
    try:
        with capture() if recorded else ExitStack():
            given = [Item()]
            stream = items(given[0])
            argument = watched(given.pop())
            dead = [first(lambda: next(stream))() is None, argument() is None]
            fetched = iter(otel_ml.data(Item() for _ in range(2)))
            dead += [first(lambda: next(fetched))() is None, asyncio.run(first_of_later())]
            dead += [thrown(call)() is None for call in (broken, stream.throw)]
    finally:
        gc.enable()
    assert dead == [True] * 6


# --- exceptions -------------------------------------------------------------------------------


def test_an_exception_passes_and_is_told_once() -> None:
    """An exception is the same object outside, with its frames; the innermost span records it, all around it failed."""
    mine = ValueError("enough")

    @otel_ml.traced(name="decorated")
    def broken() -> None:
        raise mine

    def program() -> None:
        with otel_ml.span("top"):
            try:
                with otel_ml.span("middle"):
                    broken()
            except ValueError as error:
                raise error from KeyError("why")

    with capture() as seen:
        with pytest.raises(ValueError, match="enough") as caught:
            program()
        outer()
    assert caught.value is mine
    frames = [entry.name for entry in caught.traceback]
    assert [n for n in frames if n != "call"][-3:] == ["program", "program", "broken"]
    assert told(seen) == [
        ("top", "error", "ValueError", []), ("middle", "error", "ValueError", []),
        ("decorated", "error", "ValueError", ["enough"]), ("outer", "unset", None, []), ("inner", "unset", None, []),
    ]  # fmt: skip
    span = seen.named("decorated")[0]
    (event,) = span["events"]
    stack = event["attributes"].pop(names.EXCEPTION_STACKTRACE)
    assert (span["status_message"], event["name"]) == ("ValueError: enough", "exception")
    assert event["attributes"] == {names.EXCEPTION_TYPE: "ValueError", names.EXCEPTION_MESSAGE: "enough"}
    assert "in broken" in stack
    assert stack.endswith("ValueError: enough\n")


def test_another_exception_is_another() -> None:
    """One that is raised from another is told by the span that it leaves first; so is each try that fails alike."""

    @otel_ml.traced(name="try")
    def attempt(number: int) -> None:
        raise ValueError(number)

    def again() -> None:
        with otel_ml.span("round"):
            for number in range(3):
                with suppress(ValueError):
                    attempt(number)
            for number in range(2):
                try:
                    attempt(7)
                except ValueError as error:  # noqa: PERF203 - the point of it
                    if number:
                        raise RuntimeError(8) from error

    with capture() as seen, pytest.raises(RuntimeError):
        again()
    assert told(seen) == [
        ("round", "error", "RuntimeError", ["8"]),
        *[("try", "error", "ValueError", [str(n)]) for n in (0, 1, 2, 7, 7)],
    ]


def test_exceptions_from_threads_and_tasks() -> None:
    """One that comes out of a pool's thread or of a gathered task was told there, and is not told again."""

    @otel_ml.traced(name="task")
    async def task(number: int) -> None:
        await asyncio.sleep(0)
        raise ValueError(number)

    @otel_ml.traced(name="gather")
    async def gather() -> None:
        await asyncio.gather(task(1), task(2))

    @otel_ml.traced(name="pool")
    def pool() -> None:
        with ThreadPoolExecutor(1) as threads:
            threads.submit(
                otel_ml.traced(
                    fail,
                ),
                ValueError(3),
            ).result()

    with capture() as seen:
        with pytest.raises(ValueError, match="1"):
            asyncio.run(gather())
        with pytest.raises(ValueError, match="3"):
            pool()
    assert told(seen) == [
        ("gather", "error", "ValueError", []), ("task", "error", "ValueError", ["1"]),
        ("task", "error", "ValueError", ["2"]), ("pool", "error", "ValueError", []),
        ("fail", "error", "ValueError", ["3"]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (SystemExit(3), "SystemExit"),
        (asyncio.CancelledError(), "CancelledError"),
        (GeneratorExit(), None),
        (StopIteration(1), None),
        (StopAsyncIteration(), None),
    ],
)
def test_what_is_no_failure(error: BaseException, kind: str | None) -> None:
    """A Ctrl-C, an exit, a cancellation and the end of an iteration pass as they are and leave no error status."""
    with capture() as seen:
        with pytest.raises(type(error)) as caught:
            otel_ml.traced(fail)(error)
        assert caught.value is error
        with suppress(BaseException), otel_ml.run("part"):
            fail(error)
    assert told(seen) == [("fail", "unset", kind, [])]
    part = seen.named(names.SPAN_RUN)[-1]
    assert (part["status"], part["attributes"].get(names.RUN_NAME)) == ("unset", "part")


class Mute(Exception):  # noqa: N818 - it says nothing
    """Cannot be told as text."""

    def __str__(self) -> str:
        raise ZeroDivisionError


def test_odd_exceptions() -> None:
    """One without text, one with too much of it, and one that holds a secret are told as far as may be."""
    odd = [
        Mute(),
        ValueError("x" * 10_000_000),
        ValueError(f"login: password={SECRET}"),
        ValueError(),
        ValueError("\ud800"),
    ]
    with capture() as seen:
        for error in odd:
            with pytest.raises(type(error)) as caught:
                otel_ml.traced(fail)(error)
            assert caught.value is error
    assert [(kind, message) for _, _, kind, message in told(seen)] == [
        ("Mute", ["<it has no text>"]), ("ValueError", ["x" * 4096]), ("ValueError", ["login: password=****"]),
        ("ValueError", [""]), ("ValueError", ["\ud800"]),
    ]  # fmt: skip
    assert SECRET not in str(seen.spans)
    assert max(len(s["events"][0]["attributes"][names.EXCEPTION_STACKTRACE]) for s in own(seen)) < 40_000


def test_recursion() -> None:
    """A function that calls itself has a span a call, each inside the one before; an exception is told by the last."""

    @otel_ml.traced(name="down")
    def down(left: int) -> int:
        if not left:
            raise ValueError("enough")  # noqa: EM101 - short
        return down(left - 1)

    with capture() as seen, pytest.raises(ValueError, match="enough"):
        down(3)
    assert nested(seen) == [("down", None, None), *[("down", "down", None)] * 3]
    assert [len(line[3]) for line in told(seen)] == [0, 0, 0, 1]


# --- entered twice, left elsewhere --------------------------------------------------------------


def test_one_object_for_many_blocks() -> None:
    """A span object that is entered again while it is open, or by several threads at once, is a span each time."""
    barrier = threading.Barrier(4)

    def work(span: Any) -> None:
        with span as mine:
            barrier.wait()
            assert trace.get_current_span() is mine
            barrier.wait()
        assert not trace.get_current_span().is_recording()

    async def task(span: Any, first: asyncio.Event, second: asyncio.Event) -> None:
        async with span as mine:
            first.set()
            await second.wait()
            assert trace.get_current_span() is mine

    async def tasks(span: Any) -> None:
        one, two = asyncio.Event(), asyncio.Event()
        await asyncio.gather(task(span, one, two), task(span, two, one))

    with capture() as seen:
        same = otel_ml.span("same", a=1)
        for _ in range(2):
            with same as first, same as second, same as third:
                assert len({first, second, third}) == 3
                assert trace.get_current_span() is third
        threads = [threading.Thread(target=work, args=(same,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        asyncio.run(tasks(same))
        assert current() is None
    assert nested(seen)[:6] == [("same", None, None), ("same", "same", None), ("same", "same", None)] * 2
    assert [(s["attributes"], s["parent_span_id"]) for s in own(seen)[6:]] == [({"a": 1}, None)] * 6


def test_generators_that_take_turns() -> None:
    """Blocks that generators leave in another order than they entered them leave nothing behind."""

    def block(name: str) -> Generator[None, None, None]:
        with otel_ml.span(name):
            yield

    for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1), (2, 0, 1)):
        with capture() as seen:
            blocks = [block(name) for name in "abc"]
            for each in blocks:
                next(each)
            for at in order:
                blocks[at].close()
            assert current() is None
            inner()
        assert nested(seen) == [("a", None, None), ("b", "a", None), ("c", "b", None), ("inner", None, None)]


def test_a_block_left_inside_another() -> None:
    """One that ends inside another's block leaves that one current until its own end."""
    with capture() as seen:
        early = otel_ml.span("early")
        early.__enter__()
        with otel_ml.span("late") as late:
            early.__exit__(None, None, None)
            assert trace.get_current_span() is late
            inner()
        assert current() is None
        inner()
    assert nested(seen) == [
        ("early", None, None),
        ("late", "early", None),
        ("inner", "late", None),
        ("inner", None, None),
    ]


@pytest.mark.parametrize("part", PARTS)
def test_a_block_left_in_another_thread(part: str) -> None:
    """What is left by another thread or context than entered it ends there, and no span is inside it afterwards."""

    def block(seen: Captured) -> None:
        stack = ExitStack()
        stack.enter_context(PARTS[part]())
        thread = threading.Thread(target=stack.close)
        thread.start()
        thread.join()
        decorated.double(1)
        contextvars.copy_context().run(stack.enter_context, PARTS[part]())
        stack.close()
        decorated.double(1)

    with capture() as seen:
        contextvars.copy_context().run(block, seen)
    assert [n for n in nested(seen) if n[0] == "double" and n[1] not in (None, names.SPAN_STEP)] == []
    assert len(seen.named("part")) == (2 if part == "span" else 0)


def test_a_task_that_goes_on_after_its_parent() -> None:
    """What a span's task begins after the span's end is still its child."""

    async def background() -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        inner()

    async def work() -> None:
        with otel_ml.span("parent"):
            task = asyncio.create_task(background())
        await task

    with capture() as seen:
        asyncio.run(work())
    assert nested(seen) == [("parent", None, None), ("inner", "parent", None)]


# --- threads, tasks, steps, runs ----------------------------------------------------------------


def test_threads() -> None:
    """A thread that does not train nests under the training thread's step, also a pool's that outlives many steps."""
    clock = FakeClock()
    with capture(clock=clock) as seen, ThreadPoolExecutor(1) as pool:
        pool.submit(outer).result()
        for _ in range(2):
            train(clock, [1.0], lambda: pool.submit(outer).result())
        seen.turn()
        train(clock, [1.0], lambda: pool.submit(outer).result())
    assert nested(seen) == [
        ("outer", None, None), ("inner", "outer", None),
        *[(name, parent, n) for n in range(3) for name, parent in (("outer", names.SPAN_STEP), ("inner", "outer"))],
    ]  # fmt: skip


def test_gathered_tasks() -> None:
    """Tasks that run at the same time have each their own span current, under the span or step that gathers them."""

    @otel_ml.traced(name="task")
    async def task(n: int) -> str | None:
        await asyncio.sleep(0)
        with otel_ml.span(f"inside {n}"):
            await asyncio.sleep(0)
            return name_of(current())

    async def work() -> list[str | None]:
        with otel_ml.span("gather"):
            return await asyncio.gather(*(task(n) for n in range(3)))

    with capture() as seen, otel_ml.step():
        assert asyncio.run(work()) == ["inside 0", "inside 1", "inside 2"]
    assert sorted(nested(seen)) == [
        ("gather", names.SPAN_STEP, 0), *[(f"inside {n}", "task", 0) for n in range(3)], *[("task", "gather", 0)] * 3,
    ]  # fmt: skip


def test_a_span_over_many_steps() -> None:
    """Each step's spans are in their step, linked to the span that was begun in an earlier one or in none."""
    clock = FakeClock()
    with capture(clock=clock) as seen:
        with otel_ml.span("training"):
            train(clock, [1.0], inner)
            long = otel_ml.span("long")
            long.__enter__()
            train(clock, [1.0, 2.0], inner)
            long.__exit__(None, None, None)
        train(clock, [3.0])
    training, begun = seen.named("training")[0], seen.named("long")[0]
    assert [(n, p, s) for n, p, s in nested(seen) if n == "inner"] == [("inner", names.SPAN_STEP, n) for n in range(3)]
    assert [[link["span_id"] for link in s["links"]] for s in seen.named("inner")] == [
        [training["span_id"]], [begun["span_id"]], [begun["span_id"]],
    ]  # fmt: skip
    assert begun["attributes"] == {names.STEP_NUMBER: 0}


def test_a_torch_loop() -> None:
    """In an ordinary loop, spans are in the step they are part of, and what fails in one is not in the next."""
    model = torch.nn.Linear(3, 1)
    with capture() as seen:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for n in range(3):
            with suppress(ValueError), otel_ml.span("step"):
                optimizer.zero_grad()
                loss = model(torch.ones(2, 3)).square().mean()
                with otel_ml.span("backward!"):
                    loss.backward()
                optimizer.step()
                otel_ml.traced(fail)(ValueError(n)) if n == 1 else inner()
            assert current() is None or name_of(current()) is None
    assert [(name, s) for name, _, s in nested(seen) if name == "backward!"] == [("backward!", n) for n in range(3)]
    assert [row[names.OUTCOME] for row in seen.steps()] == ["ok"] * 3
    assert [line for line in told(seen) if line[1] == "error"] == [
        ("step", "error", "ValueError", []), ("fail", "error", "ValueError", ["1"]),
    ]  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_outlives_its_run(part: str) -> None:
    """What is open when a run ends is dropped, and the next run begins as if nothing had been."""
    kept = ExitStack()
    generator = PARTS[part]()(decorated.counted.__wrapped__)(3)  # type: ignore[attr-defined]
    with capture() as first:
        kept.enter_context(PARTS[part]())
        next(generator)
    with capture() as second:
        kept.close()
        generator.close()
        assert (current(), current_split.get(), request_id.get(), inside.checkpoint) == (None, None, None, False)
        with otel_ml.step():
            inner()
    assert "part" not in [s["name"] for s in first.spans]
    assert nested(second) == [("inner", names.SPAN_STEP, 0)]
    assert [row[names.STEP_NUMBER] for row in second.steps()] == [0]
    assert second.points(names.FUNCTION_DURATION) == {}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_begun_before_the_run(part: str) -> None:
    """What was entered before a run is no part of it, nor does leaving it disturb what is."""
    block = PARTS[part]()
    with block, capture() as seen, otel_ml.step():
        block.__exit__(None, None, None)
        inner()
    assert nested(seen) == [("inner", names.SPAN_STEP, 0)]


@pytest.mark.parametrize("part", PARTS)
def test_a_generators_part_stays_in_its_body(part: str) -> None:
    """What a part makes current in a generator is so in its body alone."""
    bodies: list[Any] = []

    def now() -> Any:
        return name_of(current()), current_split.get(), request_id.get(), inside.checkpoint

    @PARTS[part]()  # type: ignore[untyped-decorator]
    def body() -> Iterator[int]:
        for n in range(3):
            bodies.append(now())
            yield n

    with capture():
        before = now()
        assert [now() for _ in body()] == [before] * 3
        assert bodies == [bodies[0]] * 3
        assert (bodies[0] != before) == (part in ("span", "evaluation", "checkpoint", "request"))


def test_runs_inside_each_other() -> None:
    """A run inside another is a part of its own, and both are spans inside the process's run."""
    with capture() as seen, otel_ml.run("outer"), otel_ml.run("inner"), otel_ml.step():
        inner()
    runs = seen.named(names.SPAN_RUN)
    (process,) = [s for s in runs if s["parent_span_id"] is None]
    parts = [(s["attributes"][names.RUN_NAME], s["parent_span_id"]) for s in runs if s is not process]
    assert sorted(parts) == [("inner", process["span_id"]), ("outer", process["span_id"])]


# --- requests -----------------------------------------------------------------------------------


def test_requests() -> None:
    """A request's id is on its span and on all that is logged inside, also in its tasks; each use is a request."""
    log = logging.getLogger("decorated")
    log.setLevel(logging.INFO)

    @otel_ml.request()
    async def serve() -> None:
        await asyncio.gather(*(asyncio.to_thread(log.info, "served") for _ in range(2)))

    @otel_ml.request(size=2)
    def stream() -> Iterator[int]:
        for n in range(2):
            log.info("chunk")
            yield n

    with capture() as seen:
        asyncio.run(serve())
        for _ in stream():
            log.info("between")
        same = otel_ml.request()
        for _ in range(2):
            with same, same:
                log.info("again")
        with otel_ml.request("from-a-header"), otel_ml.request():
            log.info("inner")
        with otel_ml.request("not a slug/"):
            pass
    spans = seen.named(names.SPAN_REQUEST)
    ids = [s["attributes"][names.REQUEST_ID] for s in spans]
    assert [ids.count(of) for of in ids] == [1, 1, 2, 2, 2, 2, 2, 2, 1]
    assert (ids[6], ids[7], "size" in spans[1]["attributes"]) == ("from-a-header", "from-a-header", True)
    lines = [
        (entry["body"], entry["attributes"].get(names.REQUEST_ID)) for entry in seen.logs if not entry["event_name"]
    ]
    assert lines == [
        *[("served", ids[0])] * 2, ("chunk", ids[1]), ("between", None), ("chunk", ids[1]), ("between", None),
        ("again", ids[2]), ("again", ids[4]), ("inner", "from-a-header"),
    ]  # fmt: skip
    assert request_id.get() is None


# --- bounds -------------------------------------------------------------------------------------


def test_a_hundred_thousand_calls_in_a_step() -> None:
    """In one step 256 spans are kept and the rest are counted and said once; the next step has its own."""
    with capture() as seen:
        with otel_ml.step():
            for n in range(100_000):
                assert decorated.double(n) == 2 * n
        with otel_ml.step():
            outer()
    kept = [(s["name"], s["attributes"][names.STEP_NUMBER]) for s in own(seen)]
    assert kept == [*[("double", 0)] * 256, ("outer", 1), ("inner", 1)]
    assert seen.points(names.LEFT_OUT) == {((names.LIMIT_KIND, "span"),): 99_744}
    assert seen.totals is not None
    assert seen.totals.left_out == {"span": 99_744}


def test_threads_share_a_steps_spans(caplog: pytest.LogCaptureFixture) -> None:
    """All threads of a step have its 256 spans together; what is left out is still called, and said once."""
    with capture() as seen, otel_ml.step(), ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(decorated.double, range(1000))) == 999_000
    assert len(seen.named("double")) == 256
    assert seen.points(names.LEFT_OUT) == {((names.LIMIT_KIND, "span"),): 744}
    assert [r.message for r in caplog.records if "more spans" in r.message] == [f"otel-ml: {_TOO_MANY}"]


def test_fast_steps_keep_spans_of_some() -> None:
    """Over fast steps about 200 spans a second are kept beyond the first 2,000: all of a step, or none."""
    clock = FakeClock()
    with capture(clock=clock) as seen:
        for _ in range(400):
            with otel_ml.step():
                for _ in range(10):
                    decorated.double(1)
                clock.advance(0.01)
    counts: dict[int, int] = {}
    for span in own(seen):
        number = span["attributes"][names.STEP_NUMBER]
        counts[number] = counts.get(number, 0) + 1
    assert set(counts.values()) == {10}
    assert sum(counts.values()) == 2_800
    assert list(counts)[:200] == list(range(200))
    assert seen.points(names.LEFT_OUT) == {((names.LIMIT_KIND, "span"),): 1_200}


def test_outside_of_steps_a_second_is_a_step() -> None:
    """Where there is no step, 256 spans a second are kept; each run has its own."""
    for _ in range(2):
        clock = FakeClock()
        with capture(clock=clock) as seen:
            for _ in range(3):
                for _ in range(300):
                    decorated.double(1)
                clock.advance(1)
        assert len(own(seen)) == 768


# --- arguments, attributes, names -----------------------------------------------------------------


class Unprintable:
    """Must not be asked for anything."""

    def __repr__(self) -> str:
        raise AssertionError

    __str__ = __repr__
    __bool__ = __len__ = __repr__
    __eq__ = __repr__  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


class Broken(dict[str, int]):
    """Cannot be read."""

    def items(self) -> Any:
        raise ZeroDivisionError


def arguments(seen: Captured) -> list[dict[str, Any]]:
    """Each span's recorded arguments."""
    prefix = f"{names.ARGUMENT}."
    return [{k.removeprefix(prefix): v for k, v in s["attributes"].items() if k.startswith(prefix)} for s in own(seen)]


def test_arguments_are_recorded_when_asked() -> None:
    """Arguments are recorded by name where that was asked for, defaults among them, and otherwise not."""

    def load(path: Path, size: int = 8, *more: int, codec: str | None = "png", **rest: Any) -> None: ...

    calls: list[Callable[[Any], None]] = [
        lambda f: f(Path("a"), 4),
        lambda f: f(Path("b"), 1, 2, codec=None, deep={"x": 1}),
    ]
    found = []
    for asked in (False, True, ["size", "codec"], "path", ["rest"], ["deep"]):
        with capture() as seen:
            for call in calls:
                call(otel_ml.traced(arguments=asked)(load))
        found.append(arguments(seen))
    assert found == [
        [{}, {}],
        [
            {"path": "a", "size": 4, "codec": "png"},
            {"path": "b", "size": 1, "more": [2], "deep": "{'x': 1}"},
        ],
        [{"size": 4, "codec": "png"}, {"size": 1}],
        [{"path": "a"}, {"path": "b"}],
        [{}, {"deep": "{'x': 1}"}],
        [{}, {"deep": "{'x': 1}"}],
    ]


def test_arguments_that_are_no_plain_data() -> None:
    """Arrays are told by dtype, shape and device, other objects by class, secrets masked, and no `repr` asked for."""

    class Model:
        @otel_ml.traced(arguments=True)
        def fit(self, batch: Any, *, api_key: str, other: Any, counts: Any) -> None: ...

    with capture() as seen:
        for batch in (torch.ones(2, 3), jnp.ones((4,)), Unprintable()):
            Model().fit(batch, api_key=SECRET, other=Unprintable(), counts=[torch.ones(1), 2])
    shared = {"api_key": "****", "other": "<Unprintable>", "counts": ["float32[1] cpu", "2"]}
    assert arguments(seen) == [
        {"batch": "float32[2, 3] cpu", **shared},
        {"batch": f"float32[4] {jax.devices()[0].platform}:0", **shared},
        {"batch": "<Unprintable>", **shared},
    ]
    assert SECRET not in str(seen.spans)


def test_arguments_that_are_not_there() -> None:
    """To ask for an argument that is not there is an error where it is decorated; a bad call is the function's."""
    with pytest.raises(TypeError, match="plain has no argument y, z"):
        otel_ml.traced(arguments=["x", "z", "y"])(plain)
    with pytest.raises(TypeError, match="does not tell what arguments it has"):
        otel_ml.traced(arguments=True)(max)
    with capture() as seen:
        anything: Any = decorated.asked
        for args, kwargs in (((), {}), ((1, 2, 3), {}), ((1,), {"z": 1})):
            with pytest.raises(TypeError, match=r"asked\(\)"):
                anything(*args, **kwargs)
    assert arguments(seen) == [{}, {}, {}]


def test_a_bound_methods_arguments() -> None:
    """A method that is decorated once it is bound tells its arguments by their own names."""
    with capture() as seen:
        assert otel_ml.traced(arguments=True)(thing.plain)(3) == 3
    assert arguments(seen) == [{"x": 3}]


def test_odd_attributes() -> None:
    """Whatever is given as an attribute becomes one that a span can carry, and nothing raises."""
    recursive: list[Any] = []
    recursive.append(recursive)
    odd = {
        "big": 1 << 70, "huge": 1 << 5000, "nan": float("nan"), "bytes": b"\xff", "text": "x" * 10_000, "none": None,
        "nested": {"a": {"b": 1}, "token": SECRET}, "mixed": [1, "a", None], "numbers": [1, 2.5], "flag": True,
        "object": Unprintable(), "self": recursive, "many": list(range(1000)), "set": {3}, "url": f"https://u:{SECRET}@h/",
    }  # fmt: skip
    with capture() as seen, otel_ml.span("odd", **odd):
        pass
    found = seen.named("odd")[0]["attributes"]
    assert str(found.pop("nan")) == "nan"
    assert found == {
        "big": float(1 << 70), "huge": "<int>", "bytes": "<bytes>", "text": "x" * 4096, "nested.a.b": 1,
        "nested.token": "****", "mixed": ["1", "a", "None"], "numbers": [1.0, 2.5], "flag": True,
        "object": "<Unprintable>", "self": ["<list>"], "many": list(range(128)), "set": [3],
        "url": "https://****@h/",
    }  # fmt: skip


def test_names(caplog: pytest.LogCaptureFixture) -> None:
    """A name like ours goes by `user.…`, which is said once; a long one is cut, one that is no text is made text."""
    odd: Any = 7
    with capture() as seen:
        for name in ("ml.step", "ml.step", "x" * 300, "", odd):
            with otel_ml.span(name):
                pass
        otel_ml.traced(name="ml.mine")(plain)(1)
    assert [s["name"] for s in own(seen)] == ["user.ml.step", "user.ml.step", "x" * 200, "", "7", "user.ml.mine"]
    assert seen.points(names.LEFT_OUT) == {((names.LIMIT_KIND, "name"),): 3}
    assert [r.message for r in caplog.records] == [
        "otel-ml: span names may not begin with ml.: ml.step is told of as user.ml.step"
    ]


# --- timings ------------------------------------------------------------------------------------


def test_every_call_is_timed() -> None:
    """Every call of a timed function counts with its duration, whatever its kind and however it ends."""
    clock = FakeClock()

    @otel_ml.timed
    def works() -> None:
        clock.advance(0.25)

    @otel_ml.timed()
    def fails() -> None:
        clock.advance(0.5)
        raise ValueError

    @otel_ml.timed("stream")
    def stream() -> Iterator[int]:
        for n in range(3):
            clock.advance(1)
            yield n

    @otel_ml.timed("later")
    async def later() -> None:
        clock.advance(2)

    @otel_ml.timed("feed")
    async def feed() -> AsyncIterator[int]:
        clock.advance(4)
        yield 1

    async def use() -> None:
        await later()
        async for _ in feed():
            clock.advance(4)

    with capture(clock=clock) as seen:
        for _ in range(3):
            works()
            with suppress(ValueError):
                fails()
        for _ in stream():
            clock.advance(1)
        asyncio.run(use())
        with otel_ml.timed("block"), otel_ml.timed("inner"):
            clock.advance(8)
        with otel_ml.timed():
            clock.advance(16)
    here = "test_every_call_is_timed.<locals>."
    assert {key[0][1]: value for key, value in seen.points(names.FUNCTION_DURATION).items()} == {
        f"{here}works": (3, 0.75), f"{here}fails": (3, 1.5), "stream": (1, 6.0), "later": (1, 2.0), "feed": (1, 8.0),
        "block": (1, 8.0), "inner": (1, 8.0), HERE: (1, 16.0),
    }  # fmt: skip
    assert own(seen) == []


def test_timed_names_are_bounded() -> None:
    """Beyond 50 names the others are one, which is counted, and a long name is cut."""
    with capture() as seen:
        for n in range(60):
            with otel_ml.timed(f"{n}" if n else "x" * 300):
                pass
    counts = {key[0][1]: value[0] for key, value in seen.points(names.FUNCTION_DURATION).items()}
    assert counts == {"x" * 200: 1, **{f"{n}": 1 for n in range(1, 50)}, "other": 10}
    assert seen.points(names.LEFT_OUT) == {((names.LIMIT_KIND, "function"),): 10}


# --- compilers ----------------------------------------------------------------------------------


def compiled(function: Any, *inputs: Any) -> tuple[list[list[float]], int, dict[str, int]]:
    """What dynamo makes of a function: its results, its graphs and its breaks."""
    torch._dynamo.reset()
    counters.clear()
    fast: Any = torch.compile(function, backend="eager", fullgraph=True)
    results = [fast(each).tolist() for each in inputs]
    return results, counters["stats"]["unique_graphs"], dict(counters["graph_break"])


def compiles() -> dict[str, Any]:
    """The same computation, bare and with everything of ours around and inside."""

    def bare(x: torch.Tensor) -> torch.Tensor:
        return x * 2 + 1

    def halves(x: torch.Tensor) -> Iterator[torch.Tensor]:
        yield x
        yield x + 1

    out: dict[str, Any] = {"bare": bare}
    for label, make in DECORATORS.items():
        wrapped, parts = make()(bare), make()(halves)
        out[f"{label} whole"] = wrapped
        out[f"{label} inside"] = lambda x, wrapped=wrapped: wrapped(x)
        out[f"{label} generator"] = lambda x, parts=parts: sum(parts(x))
    for label, part in (*PARTS.items(), ("timed, nameless", otel_ml.timed)):

        def block(x: torch.Tensor, part: Any = part) -> torch.Tensor:
            with part():
                return bare(x)

        out[f"{label} block"] = block
    return out


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("what", compiles())
def test_torch_compile(what: str, recorded: bool) -> None:
    """A compiled function has the same graphs, without a break, and the same results; it says nothing."""
    with capture() if recorded else ExitStack() as seen:
        chosen = compiles()
        expected = compiled(chosen["bare"], torch.ones(2), torch.zeros(2))
        assert compiled(chosen[what], torch.ones(2), torch.zeros(2)) == expected
    if isinstance(seen, Captured):
        assert [s["name"] for s in own(seen) if s["name"] != names.SPAN_COMPILE] == []


def test_jax_jit() -> None:
    """A jitted function gives what it gave; as Python it runs while JAX traces it, and that is what its spans tell."""

    @otel_ml.traced(name="loss", arguments=True)
    def loss(w: Any, x: Any) -> Any:
        with otel_ml.span("square", shape=w), otel_ml.timed("square"):
            return jnp.sum((w * x) ** 2)

    plain_loss = loss.__wrapped__  # type: ignore[attr-defined]
    w, x = jnp.arange(3.0), jnp.ones(3)
    expected = str(jax.make_jaxpr(jax.grad(plain_loss))(w, x)), jax.jit(jax.grad(plain_loss))(w, x).tolist()
    with capture() as seen:
        graph = str(jax.make_jaxpr(jax.grad(loss))(w, x))
        step = jax.jit(jax.grad(loss))
        results = [step(w, x).tolist() for _ in range(3)]
        vmapped = jax.vmap(loss, (None, 0))(w, jnp.ones((4, 3))).tolist()
    assert (graph, results[0], results[0] == results[2], vmapped) == (*expected, True, [5.0] * 4)
    assert [s["name"] for s in own(seen) if not s["name"].startswith("ml.")] == ["loss", "square"] * 3


# --- errors of ours -----------------------------------------------------------------------------


def test_an_error_of_ours_stays_ours(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever goes wrong in us is counted and logged once; the function's result and exception are its own."""

    class Ill:
        def start_span(self, *_: Any, **__: Any) -> Any:
            raise ZeroDivisionError

    mine = ValueError("mine")
    with capture() as seen:
        monkeypatch.setattr(errors, "strict", False)
        assert runtime.recording is not None
        with otel_ml.span("odd", broken=Broken(a=1)):
            pass
        assert otel_ml.traced(arguments=True)(a_function)(Broken(a=1)) == "{'a': 1}()0.5{}"  # type: ignore[arg-type]
        monkeypatch.setattr(runtime.recording, "tracer", lambda _: Ill())
        assert [decorated.double(2), list(decorated.counted(2)), asyncio.run(decorated.later(3))] == [4, [0, 1], 3]
        with pytest.raises(ValueError, match="mine") as caught, otel_ml.span("ill"):
            raise mine
        assert (caught.value, current()) == (mine, None)
        assert errors.swallowed.counts == {"the begin of a part": 5, "reading arguments": 1}
        monkeypatch.undo()  # before the block puts back what was before it
    assert [s["name"] for s in own(seen)] == ["a_function"]
    assert [r.message for r in caplog.records] == [
        "otel-ml: error in the begin of a part; the program is not affected",
        "otel-ml: error in reading arguments; the program is not affected",
    ]


def test_a_span_that_the_program_ends_itself() -> None:
    """A span that the program has ended already is left as it is."""
    with capture() as seen, suppress(ValueError), otel_ml.span("mine") as span:
        span.end()
        raise ValueError
    assert told(seen) == [("mine", "unset", None, [])]


def test_limits_are_a_runs_own() -> None:
    """Nothing of a block's limits is left for the next one, whichever clock it has."""
    for clock in (None, FakeClock(), None, FakeClock()):
        with capture(clock=clock) as seen:
            with otel_ml.step():
                for _ in range(300):
                    decorated.double(1)
            for _ in range(1000):
                otel_ml.event("one of many")
            assert limits.counts == {"span": 44}
        assert len(seen.events("one of many")) == 1000
