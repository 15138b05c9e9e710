"""Keeps dynamo from compiling, inlining or guarding on our functions.

Uses torch's C level only, so `torch._dynamo` is not imported before the program needs it.
"""

from __future__ import annotations

import sys
from typing import Any, TypeVar

__all__ = ["hide", "hide_deep", "tracing"]

F = TypeVar("F")


def _strategy(*, recursive: bool) -> Any:
    frames = sys.modules["torch"]._C._dynamo.eval_frame
    action = frames._FrameAction
    return frames, frames._FrameExecStrategy(action.SKIP, action.SKIP if recursive else action.DEFAULT)


def hide(function: F) -> F:
    """Dynamo skips this function's frame; what it calls is compiled as ever."""
    frames, strategy = _strategy(recursive=False)
    frames.set_code_exec_strategy(function.__code__, strategy)  # type: ignore[attr-defined]
    return function


def hide_deep(function: F) -> F:
    """Dynamo skips this function's frame and everything it calls."""
    frames, strategy = _strategy(recursive=True)
    frames.set_code_exec_strategy(function.__code__, strategy)  # type: ignore[attr-defined]
    return function


def tracing() -> bool:
    """Whether torch.jit traces, or autograd recomputes a checkpointed region."""
    c = sys.modules["torch"]._C
    return c._get_tracing_state() is not None or c._current_graph_task_id() != -1
