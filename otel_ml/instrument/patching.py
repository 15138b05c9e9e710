"""Putting our functions where a framework's were, and every original back by identity."""

from __future__ import annotations

import inspect
import sys
import weakref
from contextlib import suppress
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any

from otel_ml.errors import swallow

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Patches", "takes"]

_MISSING = object()
_LEADING = (FunctionType, partial)  # what `functools.wraps` makes lead to what it wraps


def takes(function: Any, *names: str, defaults: tuple[Any, ...]) -> bool:
    """Whether a function's parameters are these: one of ours that says so itself is called at less cost."""
    code = getattr(function, "__code__", None)
    return (
        code is not None
        and code.co_varnames[: code.co_argcount] == names
        and function.__defaults__ == defaults
        and not code.co_kwonlyargcount
        and not code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)
    )


class _Patch:
    """One replaced attribute, without keeping alive what its owner does: a class dies with what its methods hold."""

    def __init__(self, owner: Any, name: str, before: Any, ours: Any) -> None:
        self.name = name
        self._owner = _held(owner)
        self._leads = isinstance(ours, _LEADING) and vars(ours).get("__wrapped__", self) is before
        self._ours = _held(ours) if self._leads else partial(_itself, ours)
        self._before = None if self._leads else before

    @property
    def owner(self) -> Any:
        """Whose attribute it is; None once that is gone."""
        return self._owner()

    @property
    def before(self) -> Any:
        """What was there."""
        return getattr(self._ours(), "__wrapped__", None) if self._leads else self._before

    @property
    def gone(self) -> bool:
        """Whether its owner is, or ours, which somebody replaced in turn: there is nothing to restore."""
        return self.owner is None or (self._leads and self._ours() is None)

    def restore(self) -> None:
        """Put back what was there, where ours still is."""
        owner, before = self.owner, self.before
        if self.gone or vars(owner).get(self.name, _MISSING) is not self._ours():
            return
        if before is _MISSING:
            delattr(owner, self.name)
        else:
            setattr(owner, self.name, before)


def _itself(thing: Any) -> Any:
    return thing


def _held(thing: Any) -> Callable[[], Any]:
    """A weak reference where there can be one."""
    try:
        return weakref.ref(thing)
    except TypeError:
        return partial(_itself, thing)


class Patches:
    """The attributes we replaced, in order; `undo()` restores each that is still ours."""

    def __init__(self) -> None:
        self._done: list[_Patch] = []
        self._also: list[Callable[[], Any]] = []
        self.report: dict[str, str] = {}

    def undo_with(self, remove: Callable[[], Any]) -> None:
        """Have `undo()` call this as well: a hook the framework itself registered."""
        self._also.append(remove)

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Replace `owner.name`; a class's own attribute is told from an inherited one.

        A function is replaced in the module that defines it as well: it is pickled by that
        name, which must lead back to the same function.
        """
        before = vars(owner).get(name, _MISSING)
        setattr(owner, name, value)
        for patch in [patch for patch in self._done if patch.gone]:
            self._forget(patch)
        self._done.append(_Patch(owner, name, before, value))
        if isinstance(before, FunctionType):
            home, known = sys.modules.get(before.__module__ or ""), before.__qualname__
            if home is not None and home is not owner and vars(home).get(known) is before:
                self.set(home, known, value)

    def attempt(self, label: str, install: Any) -> None:
        """Run one hook's `install()`; one that fails leaves the others working and is reported."""
        try:
            install()
        except Exception as error:  # noqa: BLE001 - a version of the framework that lacks this hook
            self.failed(label, error)
        else:
            self.report.setdefault(label, "hooked")

    def failed(self, label: str, error: Exception) -> None:
        """Report, from the except clause, what could not be hooked and why."""
        self.report[label] = f"missing: {type(error).__name__}: {error}"
        swallow(f"hook {label}")

    def remove(self, owner: Any, name: str) -> None:
        """Undo the replacement of one attribute."""
        patch = self._of(owner, name)
        if patch is not None:
            patch.restore()
            self._forget(patch)

    def holds(self, owner: Any, name: str) -> bool:
        """Whether this attribute was replaced, and ours is still in use."""
        return self._of(owner, name) is not None

    def _of(self, owner: Any, name: str) -> _Patch | None:
        made = (patch for patch in reversed(self._done) if patch.name == name and patch.owner is owner)
        return next((patch for patch in made if not patch.gone), None)

    def _forget(self, patch: _Patch) -> None:
        with suppress(ValueError):  # another thread did
            self._done.remove(patch)

    def kept_in(self, namespace: Mapping[str, Any]) -> list[str]:
        """The names under which a namespace still has what we replaced: calls by those are not seen."""
        before = {id(known): known for known in (patch.before for patch in self._done) if callable(known)}
        return [name for name, value in list(namespace.items()) if id(value) in before]

    def undo(self) -> None:
        """Put every original back; what somebody else placed over ours since stays."""
        while self._done:
            self._done.pop().restore()
        while self._also:
            self._also.pop()()
        self.report.clear()
