"""The program's own numbers of its steps: `jax.profiler.StepTraceAnnotation("train", step_num=7)`."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from otel_ml.core.clock import now
from otel_ml.core.context import recorders
from otel_ml.core.recorder import NUMBERED
from otel_ml.errors import guard
from otel_ml.instrument.jax.calls import miss

if TYPE_CHECKING:
    from otel_ml.instrument.patching import Patches

__all__ = ["install"]


def install(jax: Any, patches: Patches) -> None:
    """Take a step's number from the annotation around it."""
    owner = jax.profiler.StepTraceAnnotation
    original = owner.__init__

    @functools.wraps(original)
    def __init__(self: Any, name: str, **kwargs: Any) -> None:  # noqa: N807 - the annotation's own method
        original(self, name, **kwargs)
        with guard("a step's number"):
            number = kwargs.get("step_num")
            if isinstance(number, int):
                recorder = recorders.mine()
                recorder.numbered(number)
                at = now() if miss.start is None else miss.start  # of a call whose own code is being traced
                recorder.record(NUMBERED, at, at, number)

    patches.set(owner, "__init__", __init__)
