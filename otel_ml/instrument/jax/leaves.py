"""A few scalars of a step's outputs, kept until the device has computed them; never waited for."""

from __future__ import annotations

from operator import methodcaller
from typing import TYPE_CHECKING, Any

from otel_ml.core.deferred import Deferred, Values
from otel_ml.errors import swallow

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Leaves", "lost", "recorded"]


class _Lost:
    """How many values were given away to the device again before they could be read."""

    def __init__(self) -> None:
        self.count = 0
        self._told = 0

    def taken(self) -> int:
        """How many more there are than the last time."""
        more, self._told = self.count - self._told, self.count
        return more


lost = _Lost()


class Leaves(Deferred):
    """The scalars of one call, by name."""

    __slots__ = ("arrays", "done", "known", "names", "packed", "value")

    def __init__(self, packed: int, names: tuple[str, ...], arrays: list[Any], value: Callable[[Any], Any]) -> None:
        self.packed = packed
        self.names = names
        self.arrays = arrays
        self.value = value
        self.known: dict[str, float] = {}
        self.done = False

    def seen(self, array: Any, value: Any) -> bool:
        """The program has just read this array; whether it may read more of these."""
        try:
            names, arrays = self.names, self.arrays  # the drain may let go of them at any moment
            at = next((n for n, mine in enumerate(arrays) if mine is array), None)
            if at is None or len(names) != len(arrays):
                return False
            self.known[names[at]] = _number(value)
            arrays[at] = None
            return any(mine is not None for mine in arrays)
        except Exception:  # noqa: BLE001 - the law: never break the program
            swallow("taking a value that the program read")
            return False

    def ready(self) -> bool:
        """Whether every scalar has been computed, or is gone."""
        try:
            self.done = all(array is None or _settled(array) for array in self.arrays)
        except Exception:  # noqa: BLE001 - the law: never break the program
            swallow("asking for a device's value")
            return True
        return self.done

    def read(self) -> Values:
        """What there is; a scalar that was donated is counted, one that is not ready is left out."""
        for name, array in zip(self.names, self.arrays, strict=True):
            if array is not None:
                self._read(name, array)
        self.arrays = []  # let go of the device's memory
        self.names = ()
        return Values(self.packed, self.known.copy())

    def _read(self, name: str, array: Any) -> None:
        try:
            if self.done or _settled(array):
                self.known[name] = _number(self.value(array))
        except RuntimeError:  # donated
            lost.count += 1
        except Exception:  # noqa: BLE001 - the law: never break the program
            swallow("reading a device's value")


def _settled(array: Any) -> bool:
    """Whether it has been computed, or is gone.

    Both are asked in one step under the interpreter lock: JAX crashes the process when it is asked whether an array is
    ready that another thread has just deleted.
    """
    return any(map(_called, (array.is_deleted, array.is_ready)))


_called = methodcaller("__call__")


def _number(value: Any) -> float:
    """A number, the mean of what each device has."""
    return float(value.mean() if getattr(value, "ndim", 0) else value)


def recorded(value: Callable[[Any], Any], array: Any) -> Leaves | None:
    """A scalar that the program records, read once it has been computed; None for an array of several."""
    return Leaves(-1, ("",), [array], value) if array.size == 1 else None
