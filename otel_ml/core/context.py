"""What is current in this process: the recorders, and the optimizers and roots that hooks have met.

Hooks write here, the drain reads. Module state on purpose: a hook must reach it in one
attribute look-up.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

from otel_ml.core.recorder import Recorders, changed, hook_threads
from otel_ml.errors import logger

__all__ = [
    "Limits",
    "Registry",
    "Scalars",
    "limits",
    "optimizers",
    "recorders",
    "request_id",
    "roots",
    "scalars",
    "split",
]

MOST_SCALARS = 200

request_id: ContextVar[str | None] = ContextVar("otel_ml_request_id", default=None)
"""The request that this task or thread is serving."""
split: ContextVar[str | None] = ContextVar("otel_ml_split", default=None)
"""What this task or thread is evaluating on: validation, test, …"""


class Registry:
    """Numbers objects in the order they are met, and remembers what to call them.

    Numbers are by identity and are dropped when the object dies, so that an address used
    again is a new number. Nothing is put on the user's object.
    """

    def __init__(self) -> None:
        self.numbers: dict[int, int] = {}
        self.labels: list[str] = []
        self.facts: list[dict[str, Any]] = []
        self._alike: Counter[str] = Counter()
        self._references: dict[int, weakref.ref[Any]] = {}
        self._lock = threading.Lock()

    def number(self, thing: object, name: str | None = None) -> int:
        """The object's number; a new one gets the next, labelled by `name`, else by its class."""
        key = id(thing)
        found = self.numbers.get(key)
        if found is not None:
            return found
        with self._lock:
            number = len(self.labels)
            name = name or type(thing).__name__
            alike = self._alike[name]
            self._alike[name] += 1
            self.labels.append(f"{name}#{alike + 1}" if alike else name)
            self.facts.append({})
            self.numbers[key] = number
            self._references[key] = weakref.ref(thing, partial(self._forget, key))
        return number

    def restart(self) -> None:
        """Forget every object: what another run in this process begins with."""
        with self._lock:
            self.numbers.clear()
            changed()
            self.labels.clear()
            self.facts.clear()
            self._alike.clear()
            self._references.clear()

    def _forget(self, key: int, _: object) -> None:
        self.numbers.pop(key, None)
        changed()
        self._references.pop(key, None)


class _Inside(threading.local):
    """What this thread is inside of that must not be recorded twice."""

    checkpoint = False
    fetch = False


class Limits:
    """Counts what the program asked for and a limit left out, and says so once for each kind."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def over(self, kind: str, said: str) -> None:
        """One more of this kind is left out; the first time, `said` is logged."""
        with self._lock:
            count = self.counts[kind] = self.counts.get(kind, 0) + 1
        if count == 1:
            with suppress(Exception):  # of a handler of the program's
                logger.warning("otel-ml: %s", said)

    def restart(self) -> None:
        """Forget them: what another run in this process begins with."""
        self.counts = {}


class Scalars:
    """Numbers the values that the program records, by name and split; there are at most 200."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[str, str | None], int] = {}
        self.columns: list[str] = []
        self.about: dict[str, tuple[str, str | None]] = {}
        self._lock = threading.Lock()

    def number(self, name: str, of: str | None) -> int:
        """The value's number; -1 where there are too many."""
        key = name, of
        found = self.numbers.get(key)
        if found is not None:
            return found
        with self._lock:
            number = len(self.columns)
            if number >= MOST_SCALARS:
                return -1
            column = f"{of}/{name}" if of else name
            self.columns.append(column)
            self.about[column] = key
            return self.numbers.setdefault(key, number)

    def restart(self) -> None:
        """Forget them."""
        with self._lock:
            self.numbers.clear()
            self.columns.clear()
            self.about.clear()


inside = _Inside()
recorders = Recorders(limit=65_536)
hook_threads(recorders)
limits = Limits()
scalars = Scalars()
optimizers = Registry()
roots = Registry()
