"""Checkpoints: `torch.save` and `torch.load`."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otel_ml.core.clock import now
from otel_ml.core.context import inside, recorders
from otel_ml.core.recorder import CHECKPOINT
from otel_ml.errors import guard
from otel_ml.instrument.torch.hidden import hide, hide_deep

if TYPE_CHECKING:
    from otel_ml.instrument.patching import Patches

__all__ = ["install"]


def install(torch: Any, patches: Patches) -> None:
    """Record what saving and loading took, where, and how large the file is."""
    storages = (torch.UntypedStorage, torch.storage.TypedStorage)

    def timed(name: str, operation: str, position: int) -> None:
        original = getattr(torch, name)

        @functools.wraps(original)
        def checkpoint(*args: Any, **kwargs: Any) -> Any:
            start = now()
            error: str | None = None
            thing = args[0] if position and args else None
            try:
                result = original(*args, **kwargs)
            except BaseException as failure:
                error = type(failure).__qualname__
                raise
            else:
                thing = thing if position else result
                return result
            finally:
                if not isinstance(thing, storages):  # pickling a tensor saves its storage: no checkpoint
                    tell(operation, args[position] if len(args) > position else kwargs.get("f"), start, error)

        checkpoint._torchdynamo_inline = original  # type: ignore[attr-defined]
        patches.set(torch, name, hide(checkpoint))

    hide_deep(tell)
    timed("save", "save", 1)
    timed("load", "load", 0)


def tell(operation: str, target: Any, start: int, error: str | None) -> None:
    """Record one checkpoint, and its path and size where it is a file; not inside one that the program itself named."""
    if inside.checkpoint:
        return
    end = now()
    with guard(f"torch.{operation}"):
        payload: dict[str, Any] = {"operation": operation, "error": error}
        if isinstance(target, (str, os.PathLike)):
            payload["path"] = os.fspath(target)
            if Path(target).exists():
                payload["size"] = Path(target).stat().st_size
        recorders.mine().record(CHECKPOINT, start, end, payload)
