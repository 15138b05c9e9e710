"""Joins what the store wrote with what the endpoint acknowledged, record by record, in either order.

The SDK's exporters say for a batch whether it arrived; the store knows its rows. Both hear
the same objects: a span is known by its ids, a log record by its attributes, the one
object that every processor's copy of it shares. Metric readers collect each on their own,
so a collection that arrived stands for the stored one or two before it. Where exports failed
or were held up there are more: these are sent later, so that the curve has no hole.

A row is *in flight* from when it is written until its exporter has told of it, or has told
of two batches after it: then the SDK's queue dropped it. What is neither in flight nor
acknowledged is the spool's to send. Called on the SDK's export threads; no lock is held
over I/O, and every table is bounded.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["Ledger"]

_BETWEEN = 2  # stored collections between two that arrived: more, and an export was held up for longer than an interval
_COLLECTIONS = 4096  # stored while no export has told anything: eleven hours
_QUEUE = 2048  # records in the SDK's queue, and held back by the store before the first step


class Ledger:
    """What is under way of the signals in `owed`, those that have an endpoint which tells what arrived."""

    def __init__(self, owed: Iterable[str]) -> None:
        self.owed = set(owed)
        self.queue = _QUEUE  # the most records that wait in the SDK's queue of a signal
        self.told_of: Callable[[bool], None] = _nothing  # called after an exporter has told; whether all arrived
        self.late = False  # whether a row was written whose record an exporter had given up before
        self.failing: dict[str, bool] = {}  # whether the signal's last export failed
        self._lock = threading.Lock()
        self._flying: dict[str, dict[Any, tuple[int, Any]]] = {"spans": {}, "logs": {}}
        self._early: dict[str, dict[Any, tuple[bool, Any]]] = {"spans": {}, "logs": {}}  # told of before written
        self._high = {"spans": 0, "logs": 0}
        self._collections: deque[tuple[int, int, int]] = deque(maxlen=_COLLECTIONS)  # first row, last row, when
        self._arrived: dict[str, list[int]] = {}

    # --- the store's side --------------------------------------------------------------------

    def stored(self, signal: str, rows: Sequence[tuple[int, Any]]) -> None:
        """These rows are on disk: their ids, ascending, each with what its record is known by."""
        if signal not in self.owed:
            return
        with self._lock:
            flying, early = self._flying[signal], self._early[signal]
            for row, known_by in rows:
                key = _key(known_by)
                told = early.pop(key, None)
                if told is None:
                    flying[key] = (row, known_by)
                elif told[0]:
                    self._arrived.setdefault(signal, []).append(row)
                else:
                    self.late = True
            while len(flying) > 2 * self.queue:
                del flying[next(iter(flying))]

    def collected(self, first: int, last: int, at_unix_ns: int) -> None:
        """The points of one collection are on disk."""
        if "points" in self.owed:
            with self._lock:
                self._collections.append((first, last, at_unix_ns))

    def take(self) -> dict[str, list[int]]:
        """The rows that have arrived since the last call; who cannot note them gives them back."""
        with self._lock:
            arrived, self._arrived = self._arrived, {}
        return arrived

    def give_back(self, arrived: dict[str, list[int]]) -> None:
        """These could not be noted."""
        with self._lock:
            for signal, rows in arrived.items():
                self._arrived.setdefault(signal, []).extend(rows)

    def restart(self) -> None:
        """The file is gone, another one begins: its rows have other ids."""
        with self._lock:
            self._arrived.clear()
            self._collections.clear()
            for flying in self._flying.values():
                flying.clear()
            self._high = dict.fromkeys(self._high, 0)

    def in_flight(self, signal: str) -> set[int]:
        """The rows whose exporter has not told of them yet, and those that arrived and are not noted yet."""
        with self._lock:
            arrived = self._arrived.get(signal, ())
            if signal == "points":
                return {row for first, last, _ in self._collections for row in range(first, last + 1)}.union(arrived)
            return {row for row, _ in self._flying[signal].values()}.union(arrived)

    # --- the exporters' side -----------------------------------------------------------------

    def told(self, signal: str, known_by: Iterable[Any], *, arrived: bool) -> None:
        """An exporter has told of a batch of spans or log records."""
        if signal not in self.owed:
            return
        with self._lock:
            flying, early = self._flying[signal], self._early[signal]
            highest = 0
            for each in known_by:
                key = _key(each)
                found = flying.pop(key, None)
                if found is None:
                    early[key] = (arrived, each)
                else:
                    highest = max(highest, found[0])
                    if arrived:
                        self._arrived.setdefault(signal, []).append(found[0])
            while len(early) > 2 * self.queue:
                del early[next(iter(early))]
            dropped = self._overtaken(signal, highest)
            self.failing[signal] = not arrived
        self.told_of(arrived and not dropped)

    def told_points(self, at_unix_ns: int, *, arrived: bool) -> None:
        """An exporter has told of a collection."""
        if "points" not in self.owed:
            return
        with self._lock:
            before = []
            while self._collections and self._collections[0][2] <= at_unix_ns:
                before.append(self._collections.popleft())
            hole = self.failing.get("points", False) or len(before) > _BETWEEN
            if arrived:
                for first, last, _ in before[-1:] if hole else before:
                    self._arrived.setdefault("points", []).extend(range(first, last + 1))
            self.failing["points"] = not arrived
        self.told_of(arrived and not hole)

    def _overtaken(self, signal: str, highest: int) -> bool:
        """Exports keep the order, but for records made at the same moment: what two of them passed by was dropped."""
        if not highest:
            return False
        flying, passed = self._flying[signal], self._high[signal]
        before = len(flying)
        while flying:
            key = next(iter(flying))
            if flying[key][0] > passed:
                break
            del flying[key]
        self._high[signal] = highest
        return len(flying) < before


def _key(known_by: Any) -> Any:
    return known_by if type(known_by) is tuple else id(known_by)


def _nothing(_: bool) -> None:  # noqa: FBT001 - stands for a listener
    """Nobody listens yet."""
