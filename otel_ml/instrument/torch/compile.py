"""Compilations and why a function was compiled again, from dynamo's own account of each."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

from otel_ml.core.clock import now
from otel_ml.core.context import recorders
from otel_ml.core.recorder import COMPILE
from otel_ml.errors import guard
from otel_ml.instrument.torch.hidden import hide, hide_deep

if TYPE_CHECKING:
    from otel_ml.instrument.patching import Patches

__all__ = ["install", "kind"]

_KINDS = (
    ("size", re.compile(r"size mismatch|stride mismatch|rank mismatch|\.size\(|\.stride\(|shape", re.IGNORECASE)),
    ("dtype", re.compile(r"dtype mismatch|dtype", re.IGNORECASE)),
    ("type", re.compile(r"type mismatch|___check_type_id|expected type", re.IGNORECASE)),
    ("identity", re.compile(r"___check_obj_id|\bis\b|id mismatch", re.IGNORECASE)),
    ("value", re.compile(r"==|!=|not in", re.IGNORECASE)),
)


def kind(reason: str) -> str:
    """One word for a failed guard: size, dtype, type, identity, value or other."""
    return next((name for name, pattern in _KINDS if pattern.search(reason)), "other")


def install(utils: Any, patches: Patches) -> None:
    """Hear of every compilation; `utils` is `torch._dynamo.utils`, once the program has imported it."""
    original = utils.log_compilation_event

    @functools.wraps(original)
    def log_compilation_event(metrics: Any) -> Any:
        tell(metrics)
        return original(metrics)

    hide_deep(tell)
    patches.set(utils, "log_compilation_event", hide(log_compilation_event))


def tell(metrics: Any) -> None:
    """Record one compilation."""
    with guard("torch.compile"):
        end = now()
        microseconds = getattr(metrics, "duration_us", None) or 0
        reason = getattr(metrics, "recompile_reason", None)
        name = getattr(metrics, "co_name", None)
        if name is not None:
            payload = {"function": name, "reason": reason, "kind": kind(reason) if reason else None}
            recorders.mine().record(COMPILE, end - int(microseconds) * 1000, end, payload)
