"""Events that training logs usually hold, under names that are the same in every program.

Each is a log record in the step and span that are current, as of `otel_ml.event()`, whose
limits and cost hold here too. They tell and measure nothing: `otel_ml.epoch()` and
`otel_ml.checkpoint()` do both, and a launcher sees most of it unasked.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from otel_ml import names
from otel_ml.api import told

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["checkpoint_saved", "epoch_done", "memory_warning", "model_loaded", "training_started"]


def training_started(**about: Any) -> None:
    """Training begins; `about` is whatever is worth knowing of it."""
    told(names.EVENT_TRAINING_STARTED, "training started", about)


def epoch_done(number: int, **about: Any) -> None:
    """An epoch is over: `epoch_done(3, loss=0.2)`."""
    told(names.EVENT_EPOCH_FINISHED, f"epoch {number} done", {names.EPOCH_NUMBER: number, **about})


def model_loaded(name: str, *, parameters: int | None = None, path: str | PathLike[str] | None = None) -> None:
    """A model is ready; `parameters` is how many it holds."""
    told(
        names.EVENT_MODEL_LOADED,
        f"model {name} loaded",
        {names.MODEL_NAME: name, names.MODEL_PARAMETERS_COUNT: parameters, names.CHECKPOINT_PATH: _text(path)},
    )


def memory_warning(message: str, *, used: int | None = None, free: int | None = None) -> None:
    """Memory runs out; `used` and `free` in bytes."""
    told(names.EVENT_MEMORY_WARNING, message, {names.MEMORY_USED_BY: used, names.MEMORY_FREE_BY: free}, warning=True)


def checkpoint_saved(path: str | PathLike[str], *, size: int | None = None) -> None:
    """A checkpoint was written; `size` in bytes."""
    told(
        names.EVENT_CHECKPOINT_SAVED,
        f"checkpoint saved: {_text(path)}",
        {names.CHECKPOINT_OPERATION: "save", names.CHECKPOINT_PATH: _text(path), names.CHECKPOINT_SIZE_BY: size},
    )


def _text(path: str | PathLike[str] | None) -> str | None:
    return None if path is None else str(os.fspath(path))
