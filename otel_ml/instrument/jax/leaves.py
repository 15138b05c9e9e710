"""A few scalars of a step's outputs, kept until the device has computed them; never waited for."""

from __future__ import annotations

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

    __slots__ = ("arrays", "names", "packed", "value")

    def __init__(self, packed: int, names: tuple[str, ...], arrays: list[Any], value: Callable[[Any], Any]) -> None:
        self.packed = packed
        self.names = names
        self.arrays = arrays
        self.value = value

    def ready(self) -> bool:
        """Whether every scalar has been computed, or is gone."""
        try:
            return all(a.is_deleted() or a.is_ready() for a in self.arrays)
        except Exception:  # noqa: BLE001 - given away between the two questions
            return True

    def read(self) -> Values:
        """What there is; a scalar that was donated is counted, one that is not ready is left out."""
        scalars: dict[str, float] = {}
        for name, array in zip(self.names, self.arrays, strict=True):
            self._read(name, array, scalars)
        self.arrays = []  # let go of the device's memory
        self.names = ()
        return Values(self.packed, scalars)

    def _read(self, name: str, array: Any, scalars: dict[str, float]) -> None:
        try:
            if array.is_deleted():
                lost.count += 1
            elif array.is_ready():
                value = self.value(array)
                scalars[name] = float(value.item() if value.size == 1 else value.mean())
        except RuntimeError:  # donated meanwhile
            lost.count += 1
        except Exception:  # noqa: BLE001 - the law: never break the program
            swallow("reading a device's value")


def recorded(value: Callable[[Any], Any], array: Any) -> Leaves | None:
    """A scalar that the program records, read once it has been computed; None for an array of several."""
    return Leaves(-1, ("",), [array], value) if array.size == 1 else None
