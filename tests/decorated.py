"""Decorated functions that other processes find by name; imports nothing that a spawned child would wait for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import otel_ml

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

__all__ = ["asked", "counted", "double", "later", "named", "named_timing", "slow", "stream"]


@otel_ml.traced
def double(x: int) -> int:
    """Twice."""
    return 2 * x


@otel_ml.traced(name="asked", arguments=True)
def asked(x: int, y: int = 1) -> int:
    """Both."""
    return x + y


@otel_ml.timed
def slow(x: int) -> int:
    """The same."""
    return x


@otel_ml.timed("named")
def named_timing(x: int) -> int:
    """The same."""
    return x


@otel_ml.span("named")
def named(x: int) -> int:
    """The same."""
    return x


@otel_ml.traced
async def later(x: int) -> int:
    """The same, later."""
    return x


@otel_ml.traced
def counted(x: int) -> Iterator[int]:
    """Up to it."""
    yield from range(x)


@otel_ml.traced
async def stream(x: int) -> AsyncIterator[int]:
    """Up to it."""
    for n in range(x):
        yield n
