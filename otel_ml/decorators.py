"""Spans and timings around the program's own functions: `traced`, `span`, `timed`, and what makes any part a decorator.

A *part* is what runs between a begin and an end. It is a context manager (also an
asynchronous one) and a decorator of functions, coroutines, generators and asynchronous
generators; of a generator it lasts as long as the iteration. Nothing is done, and under
half a microsecond spent, where nothing is recorded.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Link, Status, StatusCode

from otel_ml import names
from otel_ml.core import runtime
from otel_ml.core.clock import now
from otel_ml.core.context import limits, recorders
from otel_ml.core.recorder import DONE, TIMED
from otel_ml.errors import guard, swallow
from otel_ml.fields import attribute
from otel_ml.fields import attributes as cleaned
from otel_ml.redact import text

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterable
    from types import TracebackType

    from opentelemetry.trace import Span
    from typing_extensions import Self

__all__ = ["Part", "SpanPart", "own", "span", "timed", "traced"]

F = TypeVar("F", bound="Callable[..., Any] | classmethod[Any, Any, Any] | staticmethod[Any, Any]")

_SPANS_A_STEP = 256
_SPANS_A_SECOND = 200.0  # beyond those of the first, in steps that begin with none left
_SPANS_AT_FIRST = 2000.0
_TOO_MANY = (
    f"more spans of the program's own than are kept ({_SPANS_A_STEP} a step, {_SPANS_A_SECOND:g} a second): "
    "the others are only counted; `otel_ml.timed` measures every call"
)
_RESERVED = "ml."


class Part:
    """Something of the program between a begin and an end; see the module's words.

    Subclasses say what happens at `begin()` and `end()`, and at `resume()` and `pause()` whenever a generator's body
    takes over and gives back: what is current in the thread is set there, so that nothing leaks into who iterates.
    """

    __slots__ = ("_began",)

    def again(self) -> Part:
        """A new part like this one: a decorated function's next call."""
        raise NotImplementedError

    def begin(self) -> None:
        """It begins."""

    def resume(self) -> None:
        """The thread is in it from now on."""

    def pause(self) -> None:
        """The thread is out of it, for now or for good."""

    def end(self, error: BaseException | None) -> None:
        """It ends, by this exception if by any."""

    def entered(self) -> Any:
        """What `with … as` gives."""
        return self

    def __enter__(self) -> Any:
        self._began = runtime.recording is not None and not runtime.compiling()
        if self._began:
            self.begin()
            self.resume()
        return self.entered()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._began:
            self.pause()
            self.end(error)

    async def __aenter__(self) -> Any:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def __call__(self, function: F, /) -> F:
        """The function, each of whose calls is such a part."""
        return around(function, lambda _function, _args, _kwargs: self.again())


# --- decorating -----------------------------------------------------------------------------


def around(function: F, make: Callable[[Any, Any, Any], Part]) -> F:
    """The function, each call inside `make(function, args, kwargs)`; its kind, signature and docs are kept."""
    if isinstance(function, (classmethod, staticmethod)):
        return type(function)(around(function.__func__, make))
    if isinstance(function, type):
        message = f"{function.__qualname__} is a class: decorate its methods, `__init__` among them"
        raise TypeError(message)
    if not callable(function):
        message = f"a decorator of otel_ml needs a function, not {type(function).__qualname__}: put it above a `def`"
        raise TypeError(message)
    kind: Any = _plain_function
    if inspect.iscoroutinefunction(function):
        kind = _coroutine
    elif inspect.isasyncgenfunction(function):
        kind = _async_generator
    elif inspect.isgeneratorfunction(function):
        kind = _generator
    return functools.wraps(function)(kind(function, make))  # type: ignore[return-value]


def _plain_function(function: Any, make: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        if runtime.recording is None or runtime.compiling():
            return function(*args, **kwargs)
        with make(function, args, kwargs):
            return function(*args, **kwargs)

    return call


def _coroutine(function: Any, make: Any) -> Any:
    async def call(*args: Any, **kwargs: Any) -> Any:
        if runtime.recording is None:
            return await function(*args, **kwargs)
        with make(function, args, kwargs):
            return await function(*args, **kwargs)

    return call


def _generator(function: Any, make: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        inner = function(*args, **kwargs)
        if runtime.recording is None:
            return (yield from inner)
        return (yield from _drive(inner, make(function, args, kwargs)))

    return call


def _async_generator(function: Any, make: Any) -> Any:
    async def call(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        inner = function(*args, **kwargs)
        part = make(function, args, kwargs) if runtime.recording is not None else Part()
        failed: BaseException | None = None
        part.begin()
        try:
            turn, given = inner.asend, None
            while True:
                part.resume()
                try:
                    item = await turn(given)
                except StopAsyncIteration:
                    return
                finally:
                    part.pause()
                try:
                    given = yield item
                    turn = inner.asend
                except GeneratorExit:
                    await inner.aclose()
                    raise
                except BaseException as thrown:  # noqa: BLE001 - it is the inner one's to handle
                    turn, given = inner.athrow, thrown
        except BaseException as error:
            failed = error
            raise
        finally:
            part.end(failed)

    return call


def _drive(inner: Generator[Any, Any, Any], part: Part) -> Generator[Any, Any, Any]:
    """Iterate, with the part current only while the generator's own body runs."""
    failed: BaseException | None = None
    part.begin()
    try:
        turn: Any = inner.send
        given: Any = None
        while True:
            part.resume()
            try:
                item = turn(given)
            except StopIteration as stop:
                return stop.value
            finally:
                part.pause()
            try:
                given = yield item
                turn = inner.send
            except GeneratorExit:
                inner.close()
                raise
            except BaseException as thrown:  # noqa: BLE001 - it is the inner one's to handle
                turn, given = inner.throw, thrown
    except BaseException as error:
        failed = error
        raise
    finally:
        part.end(failed)


def own(name: str, kind: str) -> str:
    """A name of the program's; one that begins like ours is told once, and goes by `user.` and the rest."""
    if name.startswith(_RESERVED):
        limits.over("name", f"a {kind}'s name may not begin with ml.: {name} is told of as user.{name}")
        return f"user.{name}"
    return name


# --- spans ----------------------------------------------------------------------------------

_OPENED = otel_context.create_key("otel-ml-opened")
Key = tuple[int, int] | None


class _Allowance(threading.local):
    """How many spans this thread may still make in the step that it is in."""

    key: Key = (-1, -1)
    left = 0
    at = 0
    tokens = _SPANS_AT_FIRST

    def take(self, key: Key) -> bool:
        """One more: at most 256 in a step (and a second, outside of steps), in no more steps than the rate allows."""
        moment = now()
        if key is None:
            key = (-1, moment // 1_000_000_000)
        if key != self.key:
            self.key = key
            self.tokens = min(_SPANS_AT_FIRST, self.tokens + (moment - self.at) / 1e9 * _SPANS_A_SECOND)
            self.at = moment
            self.left = _SPANS_A_STEP if self.tokens >= 1 else 0
        if self.left <= 0:
            return False
        self.left -= 1
        self.tokens -= 1
        return True


class _Failure(threading.local):
    """The exception that a span of this thread has recorded already: the spans around it do not record it again."""

    told = 0


_allowance = _Allowance()
_failure = _Failure()
_openers: set[str] = set()
"""Spans that were begun before a thread's step was: where a round is complete, they begin the next one."""


class SpanPart(Part):
    """A span of the program's own, inside the step, request or span that is current."""

    __slots__ = ("_about", "_name", "_raw", "_scope", "_span", "_token")

    def __init__(self, name: str, about: dict[str, Any], scope: str, *, raw: bool = False) -> None:
        self._name = name
        self._about = about
        self._scope = scope
        self._raw = raw  # the name is ours to give
        self._span: Span | None = None
        self._token: Any = None

    def again(self) -> SpanPart:
        """A span like this one."""
        return SpanPart(self._name, self._about, self._scope, raw=self._raw)

    def entered(self) -> Span:
        """The OpenTelemetry span; one that records nothing where nothing is recorded, or a limit left it out."""
        return self._span if self._span is not None else trace.INVALID_SPAN

    def begin(self) -> None:
        """Start the span, as a child of the step that the thread is in now or of the span that is current."""
        run = runtime.recording
        if run is None:
            return
        try:
            self._start(run)
        except Exception:  # noqa: BLE001 - the law: never break the program
            swallow("a span")

    def _start(self, run: runtime.Recording) -> None:
        _failure.told = 0
        run.annotated()
        name = self._name if self._raw else own(self._name, "span")
        key = _step_at(name)
        if not _allowance.take(key):
            limits.over("span", _TOO_MANY)
            return
        context, links = None, []
        current = trace.get_current_span()
        opened = otel_context.get_value(_OPENED)
        if key is not None:
            if isinstance(opened, tuple) and opened[0] is current and opened[1] != key:
                links = [Link(current.get_span_context())]  # it was begun in another step, or in none
                context = trace.set_span_in_context(run.live)
            elif current is trace.INVALID_SPAN:  # a thread of the program's
                context = trace.set_span_in_context(run.live)
        about = cleaned(self._about) if self._about else {}
        if key is not None:
            about[names.STEP_NUMBER] = key[1]
        self._span = run.tracer(self._scope).start_span(name, context, attributes=about, links=links)
        self._token = key

    def resume(self) -> None:
        """Make it the current span."""
        span = self._span
        if span is not None:
            key = self._token
            here = otel_context.set_value(_OPENED, (span, key), trace.set_span_in_context(span))
            self._token = (key, otel_context.attach(here))

    def pause(self) -> None:
        """Make the one before current again."""
        if self._span is not None:
            self._token, token = self._token
            otel_context.detach(token)

    def end(self, error: BaseException | None) -> None:
        """End it; an exception is recorded by the innermost span that it leaves."""
        span, self._span = self._span, None
        if span is None:
            if error is None:
                _failure.told = 0
            return
        with guard("the end of a span"):
            if error is None:
                _failure.told = 0
            elif isinstance(error, Exception):
                self._failed(span, error)
            elif not isinstance(error, GeneratorExit):
                span.set_attribute(names.ERROR_TYPE, type(error).__qualname__)
            span.end()

    @staticmethod
    def _failed(span: Span, error: Exception) -> None:
        message = text(str(error))
        kind = type(error).__qualname__
        span.set_attribute(names.ERROR_TYPE, kind)
        span.set_status(Status(StatusCode.ERROR, f"{kind}: {message}" if message else kind))
        if _failure.told == id(error):
            return
        _failure.told = id(error)
        import traceback

        span.add_event(
            "exception",
            {
                names.EXCEPTION_TYPE: kind,
                names.EXCEPTION_MESSAGE: message,
                names.EXCEPTION_STACKTRACE: text("".join(traceback.format_exception(error))),
            },
        )


def _step_at(name: str) -> Key:
    """The step that this thread is in: its recorder and number; a span that begins rounds closes the one before."""
    recorder = recorders.live()
    if recorder is None or not recorder.state:
        if len(_openers) < _SPANS_A_STEP:
            _openers.add(name)
        return None
    mine: Any = getattr(recorders.local, "recorder", None)
    if recorder.state == DONE and name in _openers and mine is recorder:
        mine.candidate()
    return recorder.ordinal, recorder.number


def span(name: str, /, **attributes: Any) -> SpanPart:
    """A span around a block or a function: `with otel_ml.span("tokenize", files=3) as s:` or `@otel_ml.span("load")`.

    It is a child of the span that is current, which inside a training step is that step, and is in the step's trace;
    `s` is OpenTelemetry's span. An exception is recorded and passes on as it is.

    Args:
        name: Low in cardinality: the same for all that do the same.
        attributes: Numbers, text, sequences; arrays leave as dtype, shape and device, secrets masked.

    At most 256 spans a step are kept, and where steps are fast, those of some steps; what is left out is counted in
    `otel_ml.left_out`. A span costs what OpenTelemetry's own costs; without a run, under half a microsecond.
    """
    return SpanPart(name, attributes, _caller())


class _Traced(Protocol):
    def __call__(self, function: F, /) -> F:
        """The same function, traced."""


@overload
def traced(function: F, /) -> F: ...
@overload
def traced(
    *, name: str | None = None, arguments: bool | Iterable[str] = False, attributes: dict[str, Any] | None = None
) -> _Traced: ...
def traced(
    function: Any = None, /, *, name: str | None = None, arguments: bool | Iterable[str] = False,
    attributes: dict[str, Any] | None = None,
) -> Any:  # fmt: skip
    """A span around each call of a function: `@otel_ml.traced`, or `@otel_ml.traced(arguments=["lr"])`.

    Of a coroutine it lasts until that is done, of a generator as long as the iteration. Works on methods, and above or
    below `@classmethod` and `@staticmethod`. Signature, docs and pickling stay.

    Args:
        function: What is decorated.
        name: The span's name; unset, the function's `__qualname__`.
        arguments: Names of arguments to record, or True for all: as `ml.argument.<name>`, arrays as dtype, shape and
            device.
        attributes: More attributes, the same for each call.

    Raises:
        TypeError: what is decorated is no function, or has no such argument.

    Limits and cost are those of `span`.
    """
    if function is None:
        return functools.partial(_trace, name=name, arguments=arguments, attributes=attributes)
    return _trace(function, name=name, arguments=arguments, attributes=attributes)


def _trace(
    function: Any, /, *, name: str | None, arguments: bool | Iterable[str], attributes: dict[str, Any] | None
) -> Any:
    bare = getattr(function, "__func__", function)
    if not callable(bare):
        return around(function, _never)  # which says so
    inner = inspect.unwrap(bare)
    qualname = getattr(inner, "__qualname__", type(inner).__qualname__)
    scope = getattr(inner, "__module__", None) or "__main__"
    about = {**(attributes or {}), names.FUNCTION_NAME: f"{scope}.{qualname}"}
    called = name or qualname
    wanted = _wanted(bare, arguments)

    def make(_function: Any, args: Any, kwargs: Any) -> SpanPart:
        if wanted is None:
            return SpanPart(called, about, scope)
        return SpanPart(called, {**about, **wanted(args, kwargs)}, scope)

    return around(function, make)


def _wanted(function: Any, arguments: bool | Iterable[str]) -> Callable[[Any, Any], dict[str, Any]] | None:  # noqa: FBT001
    if arguments is False:
        return None
    signature = inspect.signature(function)
    chosen = None if arguments is True else frozenset(arguments)
    missing = (chosen or frozenset()) - signature.parameters.keys()
    if missing:
        message = f"{function.__qualname__} has no argument {', '.join(sorted(missing))}"
        raise TypeError(message)

    def read(args: Any, kwargs: Any) -> dict[str, Any]:
        try:
            bound = signature.bind(*args, **kwargs).arguments
        except TypeError:  # the call will say it better
            return {}
        return {
            f"{names.ARGUMENT}.{name}": attribute(name, value)
            for name, value in bound.items()
            if (name in chosen if chosen is not None else name not in ("self", "cls"))
        }

    return read


def _never(*_: Any) -> Any:
    raise NotImplementedError


def _caller() -> str:
    """The module that called a function of ours: a span's scope."""
    return str(sys._getframe(2).f_globals.get("__name__", "__main__"))  # noqa: SLF001 - as logging does


# --- timings --------------------------------------------------------------------------------


class TimedPart(Part):
    """A duration in a histogram."""

    __slots__ = ("_name", "_start")

    def __init__(self, name: str) -> None:
        self._name = name
        self._start = 0

    def again(self) -> TimedPart:
        """A timing like this one."""
        return TimedPart(self._name)

    def entered(self) -> Self:
        """Nothing of use."""
        return self

    def begin(self) -> None:
        """Look at the clock."""
        self._start = now()

    def end(self, error: BaseException | None) -> None:  # noqa: ARG002 - it counts as well
        """Record how long it was."""
        recorder = recorders.mine()
        recorder.apart = True
        recorder.record(TIMED, self._start, now(), self._name)
        if runtime.recording is not None:
            runtime.recording.annotated()


@overload
def timed(function: F, /) -> F: ...
@overload
def timed(name: str | None = None, /) -> TimedPart: ...
def timed(function: Any = None, /) -> Any:
    """How long each call of a function, or a block, takes: `@otel_ml.timed`, or `with otel_ml.timed("augment"):`.

    Every one is measured, by the host's clock, in the histogram `ml.function.duration` under the function's
    `__qualname__` or the name given (at most 50, the rest as "other"); no span is made. About a microsecond a call.
    """
    if function is None or isinstance(function, str):
        return TimedPart(function or _caller())
    bare = getattr(function, "__func__", function)
    name = getattr(inspect.unwrap(bare) if callable(bare) else bare, "__qualname__", type(bare).__qualname__)
    return around(function, lambda _function, _args, _kwargs: TimedPart(name))
