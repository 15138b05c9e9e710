"""What is current in this process: the recorders, and the optimizers and roots that hooks have met.

Hooks write here, the drain reads. Module state on purpose: a hook must reach it in one
attribute look-up.
"""

from __future__ import annotations

import threading
import weakref
from contextvars import ContextVar
from functools import partial
from typing import Any

from otel_ml.core.recorder import Recorders

__all__ = ["Registry", "optimizers", "recorders", "request_id", "roots"]

request_id: ContextVar[str | None] = ContextVar("otel_ml_request_id", default=None)
"""The request that this task or thread is serving."""


class Registry:
    """Numbers objects in the order they are met, and remembers what to call them.

    Numbers are by identity and are dropped when the object dies, so that an address used
    again is a new number. Nothing is put on the user's object.
    """

    def __init__(self) -> None:
        self.numbers: dict[int, int] = {}
        self.labels: list[str] = []
        self.facts: list[dict[str, Any]] = []
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
            alike = sum(1 for label in self.labels if label.partition("#")[0] == name)
            self.labels.append(f"{name}#{alike + 1}" if alike else name)
            self.facts.append({})
            self.numbers[key] = number
            self._references[key] = weakref.ref(thing, partial(self._forget, key))
        return number

    def restart(self) -> None:
        """Forget every object: what another run in this process begins with."""
        with self._lock:
            self.numbers.clear()
            self.labels.clear()
            self.facts.clear()
            self._references.clear()

    def _forget(self, key: int, _: object) -> None:
        self.numbers.pop(key, None)
        self._references.pop(key, None)


recorders = Recorders(limit=65_536)
optimizers = Registry()
roots = Registry()
