"""Spans and timings around the program's own functions and blocks: `traced`, `span`, `timed`."""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, overload

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Link, Status, StatusCode

from otel_ml import names
from otel_ml.core import runtime
from otel_ml.core.clock import now
from otel_ml.core.context import limits, recorders
from otel_ml.core.recorder import DONE, TIMED
from otel_ml.errors import swallow
from otel_ml.fields import attribute
from otel_ml.fields import attributes as cleaned
from otel_ml.parts import F, Part, around, failed, home, innermost
from otel_ml.redact import text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

    from opentelemetry.context import Context
    from opentelemetry.trace import Span
    from typing_extensions import Self

__all__ = ["LONGEST_NAME", "SpanPart", "own", "span", "timed", "traced"]

LONGEST_NAME = 200
_LONGEST_MESSAGE = 4096
_LONGEST_TRACEBACK = 16_384  # from its begin and from its end
_SPANS_A_STEP = 256
_SPANS_A_SECOND = 200.0  # beyond those of the first, in steps that begin with none left
_SPANS_AT_FIRST = 2000.0
_TOO_MANY = (
    f"more spans of the program's own than are kept ({_SPANS_A_STEP} a step, {_SPANS_A_SECOND:g} a second): "
    "the others are only counted; `otel_ml.timed` measures every call"
)
_RESERVED = "ml."


def own(name: Any, kind: str) -> str:
    """A name of the program's; one that begins like ours is told once, and goes by `user.` and the rest."""
    called = str(name)[:LONGEST_NAME]
    if called.startswith(_RESERVED):
        limits.over("name", f"{kind} names may not begin with ml.: {called} is told of as user.{called}")
        return f"user.{called}"
    return called


# --- spans ----------------------------------------------------------------------------------

_NO_SPAN = trace.INVALID_SPAN
_OPENED = otel_context.create_key("otel-ml-opened")
Key = tuple[int, int] | None


class _Spent:
    """How many spans a run has still to give, in each step that a thread is in; no lock, so that a fork finds none."""

    def __init__(self, run: Any) -> None:
        self.run = weakref.ref(run) if run is not None else _nobody
        self.openers: set[str] = set()
        """Begun before a thread's step was: where a round is complete, they begin the next one."""
        self._tokens = _SPANS_AT_FIRST
        self._at = now()
        self._steps: dict[int, tuple[int, Any, int]] = {}

    def take(self, key: Key) -> bool:
        """One more: at most 256 in a step (and a second, outside of steps), in no more steps than the rate allows."""
        ordinal, number = key if key is not None else (-1, now() // 1_000_000_000)
        step = self._steps.get(ordinal)
        if step is None or step[0] != number:
            step = self._begin(ordinal, number)
        if next(step[1]) >= step[2]:
            return False
        self._tokens -= 1
        return True

    def _begin(self, ordinal: int, number: int) -> tuple[int, Any, int]:
        moment = now()
        self._tokens = min(_SPANS_AT_FIRST, self._tokens + (moment - self._at) / 1e9 * _SPANS_A_SECOND)
        self._at = moment
        if len(self._steps) >= _SPANS_A_STEP:  # of threads that have ended
            self._steps.clear()
        step = self._steps[ordinal] = number, itertools.count(), _SPANS_A_STEP if self._tokens >= 1 else 0
        return step


def _nobody() -> None:
    """A run that is no more."""


_spent = _Spent(None)


def _spent_of(run: Any) -> _Spent:
    global _spent  # noqa: PLW0603
    if _spent.run() is not run:
        _spent = _Spent(run)
    return _spent


class _Opened:
    """A span as the contexts that it is current in know it."""

    __slots__ = ("before", "gone", "key", "span")

    def __init__(self, span: Span, key: Key) -> None:
        self.span = span
        self.key = key
        self.before: Context | None = None
        self.gone = False  # left while it was not on top: whoever finds it there skips it


def _within(context: Context) -> _Opened | None:
    return otel_context.get_value(_OPENED, context)  # type: ignore[return-value]


def _standing(context: Context) -> Context:
    """The context, or the nearest before it whose span was not left elsewhere."""
    opened = _within(context)
    while opened is not None and opened.gone and trace.get_current_span(context) is opened.span:
        context = opened.before or otel_context.Context()
        opened = _within(context)
    return context


class SpanPart(Part):
    """A span of the program's own, inside the step, request or span that is current."""

    attributes: dict[str, Any]
    scope: str | None = None
    more: Callable[[], dict[str, Any]] | None = None  # attributes that only a span that is kept needs
    fit = False  # the attributes are as a span may carry them
    ours = False  # the name is ours to give
    span: Span | None = None
    _since: int
    _opened: _Opened
    _inside: Context

    def again(self) -> Self:
        """A span like this one."""
        part = type(self)()
        part.given = self.given
        part.attributes = self.attributes
        part.scope = self.scope
        return part

    def __call__(self, function: F, /) -> F:
        """The function, each of whose calls is such a span, of the function's module."""
        if self.scope is None:
            self.scope = getattr(function, "__module__", None)
        return super().__call__(function)

    def __enter__(self) -> Span:
        """The OpenTelemetry span; one that records nothing where nothing is recorded, or a limit left it out."""
        if runtime.recording is None or runtime.compiling():
            return _NO_SPAN
        part: Any = self._enter()
        return part.span or _NO_SPAN

    async def __aenter__(self) -> Span:
        return self.__enter__()

    def begin(self) -> None:
        """Start the span, as a child of the step that the thread is in now or of the span that is current."""
        run = runtime.recording
        more, self.more = self.more, None
        if run is None:
            return
        run.annotated()
        spent = _spent_of(run)
        name = self.given if self.ours else own(self.given, "span")
        key = _step_at(name, spent)
        if not spent.take(key):
            limits.over("span", _TOO_MANY)
            return
        context = _standing(otel_context.get_current())
        links = []
        current = trace.get_current_span(context)
        if key is not None:
            opened = _within(context)
            if opened is not None and opened.span is current and opened.key != key:
                links = [Link(current.get_span_context())]  # it was begun in another step, or in none
                context = trace.set_span_in_context(run.live, context)
            elif current is trace.INVALID_SPAN:  # a thread of the program's
                context = trace.set_span_in_context(run.live, context)
        about = self.about()
        if more is not None:
            about.update(more())
        if key is not None:
            about[names.STEP_NUMBER] = key[1]
        self._since = next(_turns)
        span = self.span = run.tracer(self.scope or names.SCOPE).start_span(
            name, context, attributes=about, links=links
        )
        self._opened = _Opened(span, key)
        self._inside = otel_context.set_value(_OPENED, self._opened, trace.set_span_in_context(span, context))

    def about(self) -> dict[str, Any]:
        """Its attributes."""
        return dict(self.attributes) if self.fit or not self.attributes else cleaned(self.attributes)

    def resume(self) -> None:
        """Make it the current span, in the context as its body left it."""
        if self.span is not None:
            self._opened.before = _standing(otel_context.get_current())
            otel_context.attach(self._inside)

    def pause(self) -> None:
        """Make the one before current again."""
        if self.span is not None:
            self._inside = otel_context.get_current()
            otel_context.attach(self._opened.before or otel_context.Context())

    def leave(self) -> None:
        """The one before is current again, now or as soon as what is on top is left."""
        if self.span is not None:
            opened = self._opened
            if _within(otel_context.get_current()) is opened:
                otel_context.attach(_standing(opened.before or otel_context.Context()))
            else:
                opened.gone = True

    def end(self, error: BaseException | None) -> None:
        """End it; an exception is recorded by the innermost span that it leaves."""
        span, self.span = self.span, None
        if span is None or not span.is_recording():
            return
        try:
            if failed(error):
                self._fail(span, error)
            elif error is not None and not isinstance(error, (GeneratorExit, StopIteration, StopAsyncIteration)):
                span.set_attribute(names.ERROR_TYPE, type(error).__qualname__)
        finally:
            span.end()

    def _fail(self, span: Span, error: Any) -> None:
        kind = type(error).__qualname__
        message = _message(error)
        span.set_attribute(names.ERROR_TYPE, kind)
        span.set_status(Status(StatusCode.ERROR, f"{kind}: {message}" if message else kind))
        if _is_told(error, self._since):
            return
        import traceback

        whole = "".join(traceback.format_exception(error))
        if len(whole) > 2 * _LONGEST_TRACEBACK:
            whole = f"{whole[:_LONGEST_TRACEBACK]}\n…\n{whole[-_LONGEST_TRACEBACK:]}"
        span.add_event(
            "exception",
            {
                names.EXCEPTION_TYPE: kind,
                names.EXCEPTION_MESSAGE: message,
                names.EXCEPTION_STACKTRACE: text(whole),
            },
        )


_turns = itertools.count()
_told: deque[tuple[int, int, tuple[int, int, int]]] = deque(maxlen=64)
"""Exceptions that spans have recorded: when, which, and how far it had come. By number: to hold one is to hold all of
its frames, and what is in them."""


def _is_told(error: BaseException, since: int) -> bool:
    """Whether a span inside the one that began at `since` has recorded this exception; if not, this one does.

    Numbers of objects come again. What cannot come again without that span is the place in its own frame.
    """
    places = {place for turn, which, place in list(_told) if turn > since and which == id(error)}
    entry = error.__traceback__
    here = _place(entry)
    while entry is not None and places:
        if _place(entry) in places:
            return True
        entry = entry.tb_next
    _told.append((next(_turns), id(error), here))
    return False


def _place(entry: TracebackType | None) -> tuple[int, int, int]:
    return (0, 0, 0) if entry is None else (id(entry), entry.tb_lasti, id(entry.tb_frame.f_code))


def _message(error: BaseException) -> str:
    try:
        return text(str(error)[:_LONGEST_MESSAGE])
    except Exception:  # noqa: BLE001 - the program's own code
        return "<it has no text>"


def _step_at(name: str, spent: _Spent) -> Key:
    """The step that this thread is in: its recorder and number; a span that begins rounds closes the one before."""
    recorder = recorders.live()
    if recorder is None or not recorder.state:
        if len(spent.openers) < _SPANS_A_STEP:
            spent.openers.add(name)
        return None
    mine: Any = getattr(recorders.local, "recorder", None)
    if recorder.state == DONE and name in spent.openers and mine is recorder:
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
    `otel_ml.left_out`. A span costs some third more than OpenTelemetry's own, one that is left out a tenth of it;
    without a run, a block or a call is left within half a microsecond.
    """
    part = SpanPart()
    part.given = name
    part.attributes = attributes
    if runtime.recording is not None and not runtime.compiling():
        part.scope = _caller()
    return part


class _Traced(Protocol):
    def __call__(self, function: F, /) -> F:
        """The same function, traced."""


@overload
def traced(function: F, /) -> F: ...
@overload
def traced(
    *, name: str | None = None, arguments: bool | Iterable[str] = False, attributes: Mapping[str, Any] | None = None
) -> _Traced: ...
def traced(
    function: Any = None, /, *, name: str | None = None, arguments: bool | Iterable[str] = False,
    attributes: Mapping[str, Any] | None = None,
) -> Any:  # fmt: skip
    """A span around each call of a function: `@otel_ml.traced`, or `@otel_ml.traced(arguments=["lr"])`.

    Of a coroutine it lasts until that is done, of a generator as long as the iteration. Works on methods, and above or
    below `@classmethod` and `@staticmethod`. Signature, docs and pickling stay.

    Args:
        function: What is decorated.
        name: The span's name; unset, the function's `__qualname__`.
        arguments: Names of arguments to record, or True for all: as `ml.argument.<name>`, defaults among them, arrays
            as dtype, shape and device.
        attributes: More attributes, the same for each call.

    Raises:
        TypeError: what is decorated is no function, or has no such argument.

    Limits and cost are those of `span`.
    """
    if function is None:
        return functools.partial(_trace, name=name, arguments=arguments, attributes=attributes)
    return _trace(function, name=name, arguments=arguments, attributes=attributes)


def _trace(
    function: Any, /, *, name: str | None, arguments: bool | Iterable[str], attributes: Mapping[str, Any] | None
) -> Any:
    bare = _bare(function)
    if not callable(bare):
        return around(function, lambda _args, _kwargs: Part())  # which says so
    inner = innermost(bare)
    scope = home(inner)
    about = cleaned({**(attributes or {}), names.FUNCTION_NAME: f"{scope}.{inner.__qualname__}"})
    called = name or inner.__qualname__
    wanted = _wanted(bare, arguments)

    def make(args: Any, kwargs: Any) -> SpanPart:
        part = SpanPart()
        part.given = called
        part.attributes = about
        part.fit = True
        part.scope = scope
        if wanted is not None:
            part.more = functools.partial(wanted, args, kwargs)
        return part

    return around(function, make)


def _bare(function: Any) -> Any:
    """What a classmethod or a staticmethod holds."""
    return function.__func__ if isinstance(function, (classmethod, staticmethod)) else function


def _wanted(function: Any, arguments: bool | Iterable[str]) -> Callable[[Any, Any], dict[str, Any]] | None:  # noqa: FBT001
    if arguments is False:
        return None
    try:
        signature = inspect.signature(function)
    except ValueError as error:
        message = f"{function.__qualname__} does not tell what arguments it has: leave out `arguments=`"
        raise TypeError(message) from error
    kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
    if arguments is True:
        chosen = frozenset(kinds) - {"self", "cls"}
    else:
        chosen = frozenset([arguments] if isinstance(arguments, str) else arguments)
    missing = chosen - kinds.keys()
    if missing and inspect.Parameter.VAR_KEYWORD not in kinds.values():
        message = f"{innermost(function).__qualname__} has no argument {', '.join(sorted(missing))}"
        raise TypeError(message)

    def read(args: Any, kwargs: Any) -> dict[str, Any]:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:  # the call will say it better
            return {}
        try:
            bound.apply_defaults()
            given: dict[str, Any] = {}
            for name, value in bound.arguments.items():
                if kinds[name] is inspect.Parameter.VAR_KEYWORD:
                    given.update({more: each for more, each in value.items() if more in chosen or name in chosen})
                elif name in chosen and (kinds[name] is not inspect.Parameter.VAR_POSITIONAL or value):
                    given[name] = value
            return {
                f"{names.ARGUMENT}.{name}": attribute(name, value) for name, value in given.items() if value is not None
            }
        except Exception:  # noqa: BLE001 - the arguments' own code
            swallow("reading arguments")
            return {}

    return read


def _caller() -> str:
    """The module that called a function of ours: a span's scope."""
    return str(sys._getframe(2).f_globals.get("__name__", "__main__"))  # noqa: SLF001 - as logging does


# --- timings --------------------------------------------------------------------------------


class TimedPart(Part):
    """A duration in a histogram."""

    module = "block"
    _start: int

    def again(self) -> Self:
        """A timing like this one."""
        part = super().again()
        part.module = self.module
        return part

    def __call__(self, function: F, /) -> F:
        """The function, each of whose calls is timed, under its own name if no other was given."""
        named = TimedPart()
        named.given = self.given
        if named.given is None and callable(_bare(function)):
            named.given = innermost(_bare(function)).__qualname__
        return around(function, lambda _args, _kwargs: named.again(), named.plainly)

    def plainly(self, function: Any) -> Any:
        """A plain function, timed in half the time that a part takes."""
        name = self.given[:LONGEST_NAME]

        def call(*args: Any, **kwargs: Any) -> Any:
            run = runtime.recording
            if run is None or runtime.compiling():
                return function(*args, **kwargs)
            start = now()
            try:
                return function(*args, **kwargs)
            finally:
                if runtime.recording is run:
                    _took(start, name)

        return call

    def begin(self) -> None:
        """Look at the clock."""
        self._start = now()

    def end(self, error: BaseException | None) -> None:  # noqa: ARG002 - it counts as well
        """Record how long it was."""
        _took(self._start, (self.given or self.module)[:LONGEST_NAME])


def _took(start: int, name: str) -> None:
    recorder = recorders.mine()
    recorder.apart = True
    recorder.record(TIMED, start, now(), name)
    if runtime.recording is not None:
        runtime.recording.annotated()


@overload
def timed(function: F, /) -> F: ...
@overload
def timed(name: str | None = None, /) -> TimedPart: ...
def timed(function: Any = None, /) -> Any:
    """How long each call of a function, or a block, takes: `@otel_ml.timed`, or `with otel_ml.timed("augment"):`.

    Every one is measured, by the host's clock, in the histogram `ml.function.duration` under the name given, else the
    function's `__qualname__`, a block's module (at most 50, the rest as "other"); no span is made. One to two
    microseconds a call, three a block.
    """
    if function is not None and not isinstance(function, str):
        return TimedPart()(function)
    part = TimedPart()
    part.given = function
    if function is None and runtime.recording is not None and not runtime.compiling():
        part.module = _caller()
    return part
