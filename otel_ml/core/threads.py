"""Threads of ours, which the program does not find: one that joins every thread that it finds would wait for ever.

While a run is recorded, `threading.enumerate()`, `threading.active_count()` and
`sys._current_frames()` leave them out. They stay in `threading._active`: without that,
`current_thread()` would make another object for them. Nor do they take a signal: one that
the kernel gave to them would not wake the program's thread that waits for it.
"""

from __future__ import annotations

import functools
import signal
import sys
import threading
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["Unseen", "hide", "show", "started_for_us"]

_STARTERS = ("opentelemetry.", "otel_ml.", "prometheus_client.")
_MARK = "_otel_ml_unseen"


# What a thread does itself is its own: without these, `faulthandler` would not be asked.
_OWN = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS}
_THE_PROGRAMS = signal.valid_signals() - _OWN


@contextmanager
def _unsignalled() -> Iterator[None]:
    """Threads that the calling one starts meanwhile take no signal."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _THE_PROGRAMS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Unseen(threading.Thread):
    """A thread of ours."""

    def start(self) -> None:
        """Start it; a signal is never its."""
        with _unsignalled():
            super().start()

    def _delete(self) -> None:
        _unlist(self)


_owners: list[tuple[weakref.ref[Any], str]] = []  # what starts a thread anew in a forked child, and where it has it
_put: list[tuple[Any, str, Any, Any]] = []  # where, what was there, and ours
_state = {"ending": False}


def _unlist(thread: threading.Thread) -> None:
    """Take out its entry as it ends, by the number that it began with.

    gevent's `monkey.patch_all()` gives threads other numbers than those that they are listed under: then `threading`
    finds no entry to take out, and says so on stderr with a traceback.
    """
    threading._active.pop(thread.ident, None)  # type: ignore[attr-defined] # noqa: SLF001 - all there are


def _ours(thread: threading.Thread) -> bool:
    marked = isinstance(thread, Unseen) or _MARK in getattr(thread, "__dict__", ())
    return marked or any(getattr(owner(), name, None) is thread for owner, name in _owners)


@contextmanager
def started_for_us() -> Iterator[None]:
    """What OpenTelemetry starts meanwhile is ours, and what it starts instead in a forked child."""
    before = threading._enumerate()  # type: ignore[attr-defined] # noqa: SLF001 - all there are, whoever replaced the other
    known = set(map(id, before))
    try:
        with _unsignalled():
            yield
    finally:
        for thread in threading._enumerate():  # type: ignore[attr-defined] # noqa: SLF001
            owner = getattr(getattr(thread, "_target", None), "__self__", None)
            if id(thread) not in known and type(owner).__module__.startswith(_STARTERS):
                vars(thread)[_MARK] = True
                vars(thread)["_delete"] = functools.partial(_unlist, thread)
                _owners.extend((weakref.ref(owner), name) for name, it in vars(owner).items() if it is thread)


def hide() -> None:
    """Leave them out from now on."""
    _state["ending"] = False
    if _put:
        return
    found, frames = threading.enumerate, sys._current_frames  # noqa: SLF001 - as documented

    @functools.wraps(found)
    def enumerate() -> list[threading.Thread]:  # noqa: A001 - threading's name
        threads = found()
        seen = [thread for thread in threads if not _ours(thread)]
        if _state["ending"] and len(seen) == len(threads):
            _restore()
        return seen

    @functools.wraps(threading.active_count)
    def active_count() -> int:
        return len(enumerate())

    @functools.wraps(frames)
    def _current_frames() -> dict[int, FrameType]:
        known = frames()
        for thread in filter(_ours, found()):
            known.pop(thread.ident or 0, None)
        known[threading.get_ident()] = sys._getframe(1)  # noqa: SLF001 - the caller's, not this one
        return known

    for owner, ours in ((threading, enumerate), (threading, active_count), (sys, _current_frames)):
        name = ours.__name__
        _put.append((owner, name, getattr(owner, name), ours))
        setattr(owner, name, ours)


def show() -> None:
    """Put the originals back; where a thread of ours still waits for an endpoint, once that is over."""
    _state["ending"] = True
    if _put:
        threading.enumerate()


def _restore() -> None:
    while _put:
        owner, name, before, ours = _put.pop()
        if getattr(owner, name) is ours:
            setattr(owner, name, before)
