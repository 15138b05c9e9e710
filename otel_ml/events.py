"""Events: `event`, and those that training logs usually hold, under names that are the same in every program.

Each is a log record in the step and span that are current; limits and cost are those of
`event()`. They tell and measure nothing: `otel_ml.epoch()` and `otel_ml.checkpoint()` do
both, and a launcher sees most of it unasked.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

from otel_ml import names
from otel_ml.core import runtime
from otel_ml.core.clock import now
from otel_ml.core.context import limits
from otel_ml.decorators import own
from otel_ml.errors import swallow
from otel_ml.fields import attributes as cleaned
from otel_ml.redact import text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

__all__ = ["checkpoint_saved", "epoch_done", "event", "memory_warning", "model_loaded", "training_started"]

_EVENTS_A_SECOND = 200.0
_EVENTS_AT_FIRST = 2000.0


class _Allowance:
    """How many events may still leave a run."""

    def __init__(self, run: Any) -> None:
        self.run = weakref.ref(run) if run is not None else _nobody
        self.left = _EVENTS_AT_FIRST
        self.at = now()

    def take(self) -> bool:
        """One more."""
        at = now()
        self.left = min(_EVENTS_AT_FIRST, self.left + (at - self.at) / 1e9 * _EVENTS_A_SECOND)
        self.at = at
        if self.left < 1:
            return False
        self.left -= 1
        return True


def _nobody() -> None:
    """A run that is no more."""


_allowance = _Allowance(None)


def _allowance_of(run: Any) -> _Allowance:
    global _allowance  # noqa: PLW0603
    if _allowance.run() is not run:
        _allowance = _Allowance(run)
    return _allowance


def event(name: str, body: str = "", /, *, attributes: Mapping[str, Any] | None = None, **more: Any) -> None:
    """Something happened: a log record with this event name, in the step and span that are current.

    `event("curriculum.changed", stage=2)`. The name may not begin with `ml.`; such a one goes by `user.ml.…`. At most
    200 a second after a first 2,000; the others are counted. Some ten microseconds.

    Args:
        name: Low in cardinality.
        body: A sentence for people; unset, the name.
        attributes: Attributes whose names are no Python names; `more` are joined to them. As for `span`.
        more: Attributes.
    """
    if runtime.recording is None or runtime.compiling():
        return
    _tell(own(str(name), "event"), body or str(name), {**(attributes or {}), **more})


def _tell(name: str, body: str, about: Mapping[str, Any], *, warning: bool = False) -> None:
    """Emit an event, within the limit; its name is not looked at."""
    run = runtime.recording
    if run is None or runtime.compiling():
        return
    try:
        run.annotated()
        if not _allowance_of(run).take():
            limits.over("event", f"more than {_EVENTS_A_SECOND:g} events a second: the others are only counted")
            return
        run.event(name, text(body), cleaned(about), warning=warning)
    except Exception:  # noqa: BLE001 - the law: never break the program
        swallow("an event")


# --- events with a name of ours -----------------------------------------------------------------


def training_started(**about: Any) -> None:
    """Training begins; `about` is whatever is worth knowing of it."""
    _tell(names.EVENT_TRAINING_STARTED, "training started", about)


def epoch_done(number: int, **about: Any) -> None:
    """An epoch is over: `epoch_done(3, loss=0.2)`."""
    _tell(names.EVENT_EPOCH_FINISHED, f"epoch {number} done", {names.EPOCH_NUMBER: number, **about})


def model_loaded(name: str, *, parameters: int | None = None, path: str | PathLike[str] | None = None) -> None:
    """A model is ready; `parameters` is how many it holds."""
    _tell(
        names.EVENT_MODEL_LOADED,
        f"model {name} loaded",
        {names.MODEL_NAME: name, names.MODEL_PARAMETERS_COUNT: parameters, names.CHECKPOINT_PATH: _text(path)},
    )


def memory_warning(message: str, *, used: int | None = None, free: int | None = None) -> None:
    """Memory runs out; `used` and `free` in bytes."""
    _tell(names.EVENT_MEMORY_WARNING, message, {names.MEMORY_USED_BY: used, names.MEMORY_FREE_BY: free}, warning=True)


def checkpoint_saved(path: str | PathLike[str], *, size: int | None = None) -> None:
    """A checkpoint was written; `size` in bytes."""
    _tell(
        names.EVENT_CHECKPOINT_SAVED,
        f"checkpoint saved: {_text(path)}",
        {names.CHECKPOINT_OPERATION: "save", names.CHECKPOINT_PATH: _text(path), names.CHECKPOINT_SIZE_BY: size},
    )


def _text(path: str | PathLike[str] | None) -> str | None:
    return None if path is None else str(os.fspath(path))
