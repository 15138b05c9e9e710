"""What can go wrong with us, and what never reaches the user's program.

    OtelMlError
    ├── SettingsError      a bad or unknown OTEL_ML_* value; the message says what to type
    ├── CommandError       an `otel-ml` command cannot do what was asked; carries an exit code
    └── StoreError         a run's file cannot be read
        └── NewerStoreError   it was written by a newer otel-ml

Configuration speaks early, with these. Recording stays silent: an error inside us is
swallowed by `guard()`, counted, and logged once per place. Under `strict` (our own
tests) it is raised again, so that nothing hides.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CommandError", "NewerStoreError", "OtelMlError", "SettingsError", "StoreError", "guard", "say", "swallow"]

logger = logging.getLogger("otel_ml")


class OtelMlError(Exception):
    """The root of every exception that we raise ourselves."""


class SettingsError(OtelMlError):
    """A setting is wrong; the message says which, why, and what to type instead."""


class CommandError(OtelMlError):
    """A command cannot do what was asked; printed to stderr without a traceback."""

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StoreError(OtelMlError):
    """A run's file is missing, damaged or not ours."""


class NewerStoreError(StoreError):
    """A run's file has a schema newer than this version knows."""


def say(text: str) -> None:
    """Write a line of ours on stderr. Where there is none, nowhere: `print(file=None)` is the program's stdout."""
    with suppress(Exception):  # it is closed, full, or an object of the program's
        if sys.stderr is not None:
            sys.stderr.write(f"otel-ml: {text}\n")
            sys.stderr.flush()


class Swallowed:
    """Counts what `guard()` kept from the user's program, by the place it happened in."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def add(self, place: str) -> int:
        """Count one more error at `place` and return how many there have been."""
        with self._lock:
            self.counts[place] = self.counts.get(place, 0) + 1
            return self.counts[place]


swallowed = Swallowed()
strict = os.environ.get("OTEL_ML_STRICT") == "1"


def swallow(place: str) -> None:
    """Count the exception being handled against `place` and log the first one there.

    Call it from an `except Exception` clause. Under `OTEL_ML_STRICT=1` it raises the
    exception again instead.
    """
    if strict:
        raise  # noqa: PLE0704 - called from an except clause by contract
    if swallowed.add(place) == 1:
        with suppress(Exception):  # of a handler of the program's, or for want of memory
            logger.warning("otel-ml: error in %s; the program is not affected", place, exc_info=True)  # noqa: LOG014 - by contract in an except clause


@contextmanager
def guard(place: str) -> Iterator[None]:
    """Run a block of ours so that no error in it reaches the user's program."""
    try:
        yield
    except Exception:  # noqa: BLE001 - the law: never break the program
        swallow(place)
