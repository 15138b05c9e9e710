"""PyTorch: hooks at torch's own few entry points, installed once the program has imported torch."""

from __future__ import annotations

import os
import sys
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar

from wrapt.importer import ImportHookFinder  # type: ignore[import-untyped]

from otel_ml.core import profiling, runtime
from otel_ml.core.context import Registry
from otel_ml.core.recorder import Recorder, Recorders, Within
from otel_ml.errors import swallow
from otel_ml.instrument.framework import FrameworkInstrumentor

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["TorchInstrumentor", "report"]


def report() -> dict[str, str]:
    """Each hook by name: "hooked", or "missing: why"."""
    return TorchInstrumentor.report()


def _hook(torch: Any) -> None:
    from otel_ml.instrument.torch import (
        autograd,
        checkpoint,
        data,
        hidden,
        modules,
        optimizer,
        values,
    )

    met = [method for cls in (*Recorder.__mro__, Within, Recorders, Registry) for method in _methods(cls)]
    for function in (values.scalar, values.shape, swallow, *met):
        hidden.hide_deep(function)
    hidden.hide(vars(ImportHookFinder)["find_spec"])  # runs at every import, also in what is compiled
    roots = modules.Roots(torch, _patches)
    runtime.framework("torch", str(torch.__version__))
    runtime.compiling = torch.compiler.is_dynamo_compiling
    runtime.readers["torch"] = values.recorded
    profiling.tracers["torch"] = (_begin_profile, _end_profile)
    for label, install in (
        ("root forward", roots.install),
        ("backward", lambda: autograd.install(torch, _patches)),
        ("autograd.grad", lambda: autograd.install_engine(torch, _patches)),
        ("optimizer", lambda: optimizer.install(torch, _patches, roots.arm)),
        ("clipping", lambda: optimizer.install_clipping(torch, _patches)),
        ("grad scaler", lambda: optimizer.install_scaler(torch, _patches)),
        ("data loader", lambda: data.install(torch, _patches)),
        ("checkpoint", lambda: checkpoint.install(torch, _patches)),
    ):
        _patches.attempt(label, install)


def _begin_profile(_folder: Path) -> Any:
    torch = sys.modules["torch"]
    profile = torch.profiler.profile()
    profile.start()
    return profile


def _end_profile(begun: Any, folder: Path) -> None:
    begun.stop()
    begun.export_chrome_trace(str(folder / f"trace-{os.getpid()}.json"))  # each rank's own


def _methods(cls: type) -> list[FunctionType]:
    return [value for value in vars(cls).values() if isinstance(value, FunctionType)]


def _hook_dynamo(utils: Any) -> None:
    from otel_ml.instrument.torch import compile as compiling

    _patches.attempt("compile", lambda: compiling.install(utils, _patches))


class TorchInstrumentor(FrameworkInstrumentor):
    """Records training steps, evaluations, inference, checkpoints and compilations of any torch program."""

    awaited: ClassVar = {"torch": _hook, "torch._dynamo.utils": _hook_dynamo}


_patches = TorchInstrumentor.patches
