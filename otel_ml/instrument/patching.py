"""Putting our functions where a framework's were, and every original back by identity."""

from __future__ import annotations

import inspect
import sys
from types import FunctionType
from typing import TYPE_CHECKING, Any

from otel_ml.errors import swallow

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Patches", "takes"]

_MISSING = object()


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


class Patches:
    """The attributes we replaced, in order; `undo()` restores each that is still ours."""

    def __init__(self) -> None:
        self._done: list[tuple[Any, str, Any, Any]] = []
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
        self._done.append((owner, name, before, value))
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
        for entry in reversed(self._done):
            if entry[0] is owner and entry[1] == name:
                self._restore(entry)
                self._done.remove(entry)
                return

    def kept_in(self, namespace: Mapping[str, Any]) -> list[str]:
        """The names under which a namespace still has what we replaced: calls by those are not seen."""
        before = {id(known): known for _, _, known, _ in self._done if callable(known)}
        return [name for name, value in list(namespace.items()) if id(value) in before]

    def undo(self) -> None:
        """Put every original back; what somebody else placed over ours since stays."""
        while self._done:
            self._restore(self._done.pop())
        while self._also:
            self._also.pop()()
        self.report.clear()

    @staticmethod
    def _restore(entry: tuple[Any, str, Any, Any]) -> None:
        owner, name, before, ours = entry
        if vars(owner).get(name, _MISSING) is not ours:
            return
        if before is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
