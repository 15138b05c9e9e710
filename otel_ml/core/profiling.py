"""The framework's own profiler, for the few steps that the user named: begun and ended at a step's turn.

Runs in the thread that trains, since that is where a profiler must be begun; a program that asks for no profile has
none of it. `runtime.profiler` is where hooks find it.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from otel_ml.errors import guard

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Profiler", "tracers"]

_ON_SIGNAL = 5  # steps, where nobody said which

tracers: dict[str, tuple[Callable[[Path], Any], Callable[[Any, Path], None]]] = {}
"""By framework: begins a profile into a folder; ends it, given what beginning gave back."""


class Profiler:
    """Profiles the `steps` from first to last, and as many more each time that the signal comes.

    `folder` makes the folder that the profiles go to, when there is one.
    """

    def __init__(self, folder: Callable[[], Path], steps: tuple[int, int] | None, signal_name: str | None) -> None:
        self.folder = folder
        self.captured: list[tuple[int, int, str]] = []  # first and last step, and where the profile is
        self._next = steps
        self._count = steps[1] - steps[0] + 1 if steps else _ON_SIGNAL
        self._asked = False
        self._going: tuple[str, Any, Path, int, int] | None = None
        if signal_name is not None:
            with guard("the signal that asks for a profile"):  # Python takes handlers in its main thread only
                signal.signal(signal.Signals[signal_name], self._ask)

    def _ask(self, *_: Any) -> None:
        self._asked = True

    def ask(self, steps: int) -> None:
        """Profile as many of the next steps."""
        self._count = steps
        self._asked = True

    def turned(self, framework: str, number: int) -> None:
        """Step `number` has taken its turn: begin before the first step that is wanted, end after the last."""
        if self._going is not None:
            if number >= self._going[4]:
                self.stop()
            return
        if self._asked:
            self._asked = False
            self._next = (number + 1, number + self._count)
        if self._next is None or number < self._next[0] - 1:
            return
        first, last = self._next
        self._next = None
        if number < last and framework in tracers:
            with guard("beginning a profile"):
                path = self.folder() / f"steps-{number + 1}-{last}"
                path.mkdir(mode=0o700, exist_ok=True)
                self._going = framework, tracers[framework][0](path), path, max(first, number + 1), last

    def stop(self) -> None:
        """End a profile that is going on; at the program's end it may be shorter than was wanted."""
        if self._going is None:
            return
        framework, begun, path, first, last = self._going
        with guard("ending a profile"):
            tracers[framework][1](begun, path)
            self.captured.append((first, last, str(path)))
        self._going = None  # not before: the drain may ask meanwhile

    def path_of(self, number: int) -> str | None:
        """Where this step's profile is, or will be, if it has one."""
        going = self._going
        known = self.captured if going is None else [*self.captured, (going[3], going[4], str(going[2]))]
        return next((path for first, last, path in known if first <= number <= last), None)
