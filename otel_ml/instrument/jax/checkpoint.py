"""Checkpoints by orbax: what saving and restoring took the program, what went on behind it, and how many bytes.

The two checkpointers' own `save` and `restore` are timed, which every manager and wrapper of orbax's comes down to;
bytes and the end of an asynchronous save come from what orbax tells `jax.monitoring`.
"""

from __future__ import annotations

import functools
from collections import deque
from typing import TYPE_CHECKING, Any

from otel_ml.core.clock import now
from otel_ml.core.context import inside, recorders
from otel_ml.core.recorder import CHECKPOINT
from otel_ml.errors import guard

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_ml.instrument.patching import Patches

__all__ = ["Checkpoints"]

_WRITTEN = "/jax/orbax/write/gbytes"
_READ = "/jax/checkpoint/read/gbytes"
_BEHIND = "/jax/orbax/write/background_duration_secs"
_GIB = 1024**3
_PENDING = 64


class Checkpoints:
    """Hears orbax, and times its checkpointers once the program has imported them."""

    def __init__(self) -> None:
        self._bytes: dict[str, int] = {}
        self._pending: deque[dict[str, Any]] = deque(maxlen=_PENDING)

    def listeners(self) -> list[tuple[Callable[..., None], str]]:
        """What is to hear `jax.monitoring`, and of what."""
        return [(self.scalar, "scalar"), (self.duration, "event_duration")]

    def install(self, orbax: Any, patches: Patches) -> None:
        """Time saving and restoring."""
        blocking, behind = orbax.Checkpointer, orbax.AsyncCheckpointer
        for owner, name, operation in (
            (blocking, "save", "save"), (blocking, "restore", "load"), (behind, "save", "save"),
        ):  # fmt: skip
            if name in vars(owner):
                patches.set(owner, name, self._timed(vars(owner)[name], operation, later=owner is behind))
        for name in ("wait_until_finished", "check_for_errors"):
            if name in vars(behind):
                patches.set(behind, name, self._heard(vars(behind)[name]))

    def _heard(self, original: Any) -> Any:
        """Where orbax tells that what it wrote behind the program failed, by raising once."""

        @functools.wraps(original)
        def ask(mine: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return original(mine, *args, **kwargs)
            except Exception as failure:
                with guard("a checkpoint's failure"):
                    if self._pending:
                        at, error = now(), type(failure).__qualname__
                        payload = {"operation": "save", "error": error, "background": None, **self._pending.popleft()}
                        recorders.mine().record(CHECKPOINT, at, at, payload)
                raise

        return ask

    def _timed(self, original: Any, operation: str, *, later: bool) -> Any:
        @functools.wraps(original)
        def checkpoint(mine: Any, directory: Any, *args: Any, **kwargs: Any) -> Any:
            if inside.checkpoint:
                return original(mine, directory, *args, **kwargs)
            inside.checkpoint = True
            self._bytes.pop(operation, None)
            start = now()
            error: str | None = None
            try:
                return original(mine, directory, *args, **kwargs)
            except BaseException as failure:
                error = type(failure).__qualname__
                raise
            finally:
                inside.checkpoint = False
                with guard("a checkpoint"):
                    end = now()
                    payload: dict[str, Any] = {"operation": operation, "error": error, "path": str(directory)}
                    if later and error is None:
                        payload["pending"] = True
                        self._pending.append({"path": str(directory), "blocking": (end - start) / 1e9})
                    elif operation in self._bytes:
                        payload["size"] = self._bytes.pop(operation)
                    recorders.mine().record(CHECKPOINT, start, end, payload)

        return checkpoint

    def scalar(self, event: str, value: float, **_: Any) -> None:
        """How much was written or read."""
        if event in (_WRITTEN, _READ):
            with guard("a checkpoint's size"):
                self._bytes["save" if event == _WRITTEN else "load"] = round(float(value) * _GIB)

    def duration(self, event: str, seconds: float, **_: Any) -> None:
        """An asynchronous save is done."""
        if event != _BEHIND:
            return
        with guard("a checkpoint's end"):
            end = now()
            about: dict[str, Any] = self._pending.popleft() if self._pending else {}
            payload: dict[str, Any] = {"operation": "save", "error": None, "background": float(seconds), **about}
            if "save" in self._bytes:
                payload["size"] = self._bytes.pop("save")
            recorders.mine().record(CHECKPOINT, end - int(seconds * 1e9), end, payload)
