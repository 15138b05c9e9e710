"""Values that a device is still computing: recorded now, read by the drain once they are ready."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Deferred", "Values"]


class Values(NamedTuple):
    """What a Deferred turned out to be: samples and tokens as the recorder packs them, and scalars by name."""

    packed: int
    scalars: dict[str, float]


class Deferred:
    """Neither method ever waits. No abstract base class: whether an event holds one is asked of every event."""

    __slots__ = ()

    def ready(self) -> bool:
        """Whether `read()` would find every value there is."""
        raise NotImplementedError

    def read(self) -> Values:
        """The values that are ready; those that were given away or are not ready are absent."""
        raise NotImplementedError
