"""A part of the program, between a begin and an end: a block's `with`, or any kind of function's decorator.

Also an asynchronous block's, and a decorator of coroutines, generators and asynchronous
generators; of a generator it lasts as long as the iteration. Nothing is done, and less than half
a microsecond spent, where nothing is recorded.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from otel_ml.core import runtime
from otel_ml.errors import swallow

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
    from contextvars import Token
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["F", "Part", "around", "failed", "home", "innermost", "put_back"]

F = TypeVar("F", bound="Callable[..., Any] | classmethod[Any, Any, Any] | staticmethod[Any, Any]")


class Part:
    """Something of the program between a begin and an end; see the module's words.

    Subclasses say what happens at `begin()` and `end()`, and at `resume()` and `pause()` whenever a generator's body
    takes over and gives back: what is current in the thread is set there, so that nothing leaks into who iterates.

    One that is entered while it is open, by the same thread or by another, is a new one each time. One that outlives
    its run, or is inherited by a forked child, is dropped.
    """

    given: Any = None
    """What the program said of it. Set afterwards: a class without `__init__` is instantiated in half the time."""
    _claim: tuple[Any] | None = None

    def again(self) -> Self:
        """A new part like this one: a decorated function's next call."""
        part = type(self)()
        part.given = self.given
        return part

    def begin(self) -> None:
        """It begins."""

    def resume(self) -> None:
        """The thread is in it from now on."""

    def pause(self) -> None:
        """The thread is out of it, for now."""

    def leave(self) -> None:
        """The thread is out of it for good; it need not be the thread or task that entered it."""
        self.pause()

    def end(self, error: BaseException | None) -> None:
        """It ends, by this exception if by any."""

    def open(self) -> bool:
        """Begin it; whether it did."""
        claim = self._claim = (runtime.recording,)
        return self._begin(claim)

    def close(self, error: BaseException | None, *, left: bool = True) -> None:
        """End it; `left` says that the thread is out of it already."""
        claim = self._claim
        try:
            if claim is not None and claim[0] is not None:
                if not left:
                    self.leave()
                if claim[0] is runtime.recording:
                    self.end(error)
        except Exception:  # noqa: BLE001 - the law: never break the program
            swallow("the end of a part")
        finally:
            self.__dict__.pop("_claim", None)

    def __enter__(self) -> object:
        if runtime.recording is not None and not runtime.compiling():
            self._enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if _recorded and (self._claim is not None or (runtime.recording is not None and not runtime.compiling())):
            self._leave(error)

    async def __aenter__(self) -> object:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def __call__(self, function: F, /) -> F:
        """The function, each of whose calls is such a part."""
        return around(function, lambda _args, _kwargs: self.again())

    def _enter(self) -> Part:
        global _recorded  # noqa: PLW0603
        _recorded = True
        claim = (runtime.recording,)
        if self.__dict__.setdefault("_claim", claim) is claim:  # one step: of two threads, one has it
            self._begin(claim)
            return self
        part = self.again()
        part.open()
        _entered.set((*_entered.get(), (self, part)))
        return part

    def _begin(self, claim: tuple[Any]) -> bool:
        try:
            self.begin()
            self.resume()
        except Exception:  # noqa: BLE001 - the law: never break the program
            self._claim = (None,)
            swallow("the begin of a part")
        return self._claim is claim

    def _leave(self, error: BaseException | None) -> None:
        entered = _entered.get()
        part = self
        for at in range(len(entered) - 1, -1, -1):
            if entered[at][0] is self:
                part = entered[at][1]
                _entered.set(entered[:at] + entered[at + 1 :])
                break
        part.close(error, left=False)


_recorded = False
"""Whether any part was ever entered while something was recorded."""
_entered: ContextVar[tuple[tuple[Part, Part], ...]] = ContextVar("otel_ml_entered", default=())
"""Parts that were entered while they were open, and what stands for each."""


def failed(error: BaseException | None) -> bool:
    """Whether that is a failure: a Ctrl-C, an exit or the end of an iteration are none."""
    return isinstance(error, Exception) and not isinstance(error, (StopIteration, StopAsyncIteration))


def put_back(variable: ContextVar[Any], token: Token[Any]) -> None:
    """Make the value of before current again; in another context than it was set in, there is nothing to put back."""
    with suppress(ValueError):
        variable.reset(token)


# --- decorating -----------------------------------------------------------------------------


def around(function: F, make: Callable[[Any, Any], Part], plainly: Any = None) -> F:
    """The function, each call inside `make(args, kwargs)`; its kind, signature and docs are kept.

    `plainly` wraps one that is neither a coroutine nor a generator, in place of us.
    """
    if isinstance(function, (classmethod, staticmethod)):
        return type(function)(around(function.__func__, make, plainly))
    if isinstance(function, type):
        message = f"{function.__qualname__} is a class: decorate its methods, `__init__` among them"
        raise TypeError(message)
    if not callable(function):
        message = (
            f"a decorator of otel_ml needs a function, not {type(function).__qualname__}: put it right above a `def`"
        )
        raise TypeError(message)
    kind = _kind(function)
    wrapper = plainly(function) if plainly is not None and kind is _plain_function else kind(function, make)
    kept = functools.WRAPPER_UPDATES if inspect.isfunction(function) else ()  # what an object holds is its own
    functools.update_wrapper(wrapper, function, updated=kept)
    if not hasattr(function, "__name__"):
        inner = innermost(function)
        wrapper.__module__, wrapper.__name__, wrapper.__qualname__ = home(inner), inner.__name__, inner.__qualname__
    return wrapper  # type: ignore[no-any-return]


def _kind(function: Any) -> Any:
    """What wraps this kind of function; an object is called by its class's `__call__`."""
    plain = inspect.isroutine(function) or isinstance(function, functools.partial)
    ways = (function,) if plain else (function, type(function).__call__)
    if any(map(inspect.iscoroutinefunction, ways)):
        return _coroutine
    if any(map(inspect.isasyncgenfunction, ways)):
        return _async_generator
    if any(map(inspect.isgeneratorfunction, ways)):
        code = getattr(function, "__code__", None)
        awaitable = code is not None and code.co_flags & inspect.CO_ITERABLE_COROUTINE
        return _generator_coroutine if awaitable else _generator
    return _plain_function


def innermost(function: Any) -> Any:
    """The function, or class of an object, below all wrappers and partials."""
    while True:
        inner = inspect.unwrap(function)
        if isinstance(inner, functools.partial):
            inner = inner.func
        if inner is function:
            return inner if hasattr(inner, "__qualname__") else type(inner)
        function = inner


def home(inner: Any) -> str:
    """The module that it is of."""
    return getattr(inner, "__module__", None) or "builtins"


def _plain_function(function: Any, make: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        if runtime.recording is None or runtime.compiling():
            return function(*args, **kwargs)
        with make(args, kwargs):
            return function(*args, **kwargs)

    return call


def _coroutine(function: Any, make: Any) -> Any:
    async def call(*args: Any, **kwargs: Any) -> Any:
        if runtime.recording is None or runtime.compiling():
            return await function(*args, **kwargs)
        with make(args, kwargs):
            return await function(*args, **kwargs)

    return call


def _generator(function: Any, make: Any) -> Any:
    # What is current is so only while the generator's own body runs, and nothing that passes through is held
    # meanwhile: neither an item while the consumer has it, nor an exception. `yield from` closes the body itself
    # where a GeneratorExit arrives, so that what the body makes of it is lost: it is for where nothing is recorded
    # and the cost of an item counts.
    def call(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        inner = function(*args, **kwargs)
        part = None if runtime.recording is None or runtime.compiling() else make(args, kwargs)
        del args, kwargs  # an iteration may last for hours
        if part is None:
            return (yield from inner)
        if not part.open():
            part = Part()
        turn: Any = inner.send
        passing: list[Any] = [None]
        try:
            while True:
                try:
                    passing.append(turn(passing.pop()))
                except StopIteration as stop:
                    value = stop.value
                    break
                finally:
                    part.pause()
                try:
                    passing.append((yield passing.pop()))
                    turn = inner.send
                except BaseException as thrown:  # noqa: BLE001 - it is the inner one's to handle
                    turn = inner.throw
                    passing.append(thrown)
                part.resume()
        except BaseException as error:
            part.close(error)
            raise
        part.close(None)
        return value

    return call


def _generator_coroutine(function: Any, make: Any) -> Any:
    return types.coroutine(_generator(function, make))


def _async_generator(function: Any, make: Any) -> Any:
    async def call(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        inner = function(*args, **kwargs)
        part = None if runtime.recording is None or runtime.compiling() else make(args, kwargs)
        del args, kwargs
        if part is None or not part.open():
            part = Part()
        turn: Any = functools.partial(_first_turn, inner)
        passing: list[Any] = [None]
        try:
            while True:
                try:
                    passing.append(await turn(passing.pop()))
                except StopAsyncIteration:
                    break
                finally:
                    part.pause()
                try:
                    passing.append((yield passing.pop()))
                    turn = inner.asend
                except BaseException as thrown:  # noqa: BLE001 - it is the inner one's to handle
                    turn = inner.athrow
                    passing.append(thrown)
                part.resume()
        except BaseException as error:
            part.close(error)
            raise
        part.close(None)

    return call


def _first_turn(inner: AsyncGenerator[Any, Any], given: Any) -> Any:
    """Start it unknown to the event loop, which at its end would close it while the one that drives it does so too."""
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, None)
    try:
        return inner.asend(given)
    finally:
        sys.set_asyncgen_hooks(*hooks)
