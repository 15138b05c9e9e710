"""The optimizer's turn: step, zero_grad, gradient clipping and the GradScaler.

Each optimizer class's own `step` is wrapped once, where torch itself wraps it
(`_patch_step_function`, called at construction).
"""

from __future__ import annotations

import functools
import gc
from typing import TYPE_CHECKING, Any

from otel_ml.core import runtime
from otel_ml.core.clock import now
from otel_ml.core.context import optimizers, recorders
from otel_ml.core.native import load
from otel_ml.core.recorder import BUILD, CLIP, OPEN, OPTIMIZER_WORK, SCALER, STEP, ZERO_GRAD
from otel_ml.errors import guard, swallow
from otel_ml.instrument.patching import takes
from otel_ml.instrument.torch.hidden import hide, hide_deep
from otel_ml.instrument.torch.values import scalar

if TYPE_CHECKING:
    from otel_ml.instrument.patching import Patches

__all__ = ["install", "install_clipping", "install_scaler"]

local = recorders.local
_native = load("otel_ml.instrument.torch._hooks")


def install(torch: Any, patches: Patches, built: Any) -> None:
    """Record every optimizer's steps and zero_grads; `built()` is called when one is constructed."""
    compiling = torch.compiler.is_dynamo_compiling
    numbers = optimizers.numbers
    hide_deep(_number)
    hide_deep(_rates)
    base = torch.optim.Optimizer

    def wrap(original: Any) -> Any:
        if _native is not None:
            turn = _native.step(original, numbers, _number, _rates)

            @functools.wraps(original)
            def step(self: Any, *args: Any, **kwargs: Any) -> Any:
                if compiling():
                    return original(self, *args, **kwargs)
                result = turn(self, args, kwargs)
                if runtime.profiler is not None and not (recorder := recorders.mine()).stepping:
                    runtime.profiler.turned("torch", recorder.number)
                return result

        else:

            @functools.wraps(original)
            def step(self: Any, *args: Any, **kwargs: Any) -> Any:
                if compiling():
                    return original(self, *args, **kwargs)
                try:
                    recorder = local.recorder
                except AttributeError:
                    recorder = recorders.mine()
                if recorder.stepping:  # a subclass calls its base's step, a wrapper the wrapped one's: it is one turn
                    return original(self, *args, **kwargs)
                recorder.stepping = True
                start = now()
                try:
                    result = original(self, *args, **kwargs)
                except BaseException:
                    recorder.record(OPTIMIZER_WORK, start, now())
                    raise
                finally:
                    recorder.stepping = False
                end = now()
                number = numbers.get(id(self), -1)
                if number < 0:
                    number = _number(self)
                rate = None
                try:
                    groups = self.param_groups
                    rate = groups[0]["lr"] if len(groups) == 1 else None
                    if type(rate) is not float:
                        rate = _rates(self)
                except Exception:  # noqa: BLE001 - an optimizer without param_groups still takes its turn
                    swallow("reading the learning rate")
                recorder.turn(number)
                recorder.record(STEP, start, end, number, rate)
                if runtime.profiler is not None:
                    runtime.profiler.turned("torch", recorder.number)
                return result

        return hide(step)

    def adopt(cls: type) -> None:
        for owner in cls.__mro__:
            own = vars(owner).get("step")
            if own is not None and owner is not base and not patches.holds(owner, "step") and issubclass(owner, base):
                patches.set(owner, "step", wrap(own))

    original_patch = base._patch_step_function

    def constructed(optimizer: Any) -> None:
        with guard("an optimizer's construction"):
            adopt(type(optimizer))
            built()
            moment = now()
            recorder = recorders.mine()
            recorder.edge()
            recorder.record(BUILD, moment, moment, optimizers.number(optimizer))
            if "torch" not in runtime.trained:
                runtime.trained.append("torch")

    @functools.wraps(original_patch)
    def _patch_step_function(self: Any) -> None:
        original_patch(self)
        if not compiling():
            constructed(self)  # dynamo looks at everything that this closure holds: let it be functions alone

    hide(_patch_step_function)
    hide_deep(constructed)
    patches.set(base, "_patch_step_function", _patch_step_function)

    if runtime.late:
        with guard("the optimizers that exist"):
            for optimizer in [o for o in gc.get_objects() if issubclass(type(o), base)]:
                constructed(optimizer)
                own = vars(optimizer).get("step")
                if own is not None:  # a learning rate scheduler has put its own around the class's
                    patches.set(
                        optimizer, "step", functools.wraps(own)(functools.partial(wrap(_unbound(own)), optimizer))
                    )

    original_zero = base.zero_grad

    if _native is not None:
        zero = _native.zero_grad(original_zero, numbers)

        if takes(original_zero, "self", "set_to_none", defaults=(True,)):

            @functools.wraps(original_zero)
            def zero_grad(self: Any, set_to_none: Any = True) -> Any:  # noqa: FBT002 - torch's signature
                return original_zero(self, set_to_none) if compiling() else zero(self, set_to_none)

        else:

            @functools.wraps(original_zero)
            def zero_grad(self: Any, *args: Any, **kwargs: Any) -> Any:
                return original_zero(self, *args, **kwargs) if compiling() else zero(self, *args, **kwargs)

    else:

        @functools.wraps(original_zero)
        def zero_grad(self: Any, *args: Any, **kwargs: Any) -> Any:
            if compiling():
                return original_zero(self, *args, **kwargs)
            try:
                recorder = local.recorder
            except AttributeError:
                recorder = recorders.mine()
            if recorder.state != OPEN:
                recorder.candidate()
            start = now()
            try:
                return original_zero(self, *args, **kwargs)
            finally:
                recorder.record(ZERO_GRAD, start, now(), numbers.get(id(self), -1))

    patches.set(base, "zero_grad", hide(zero_grad))


def _number(optimizer: Any) -> int:
    """The number that it is known by from now on; -1 for what cannot be."""
    try:
        return optimizers.number(optimizer)
    except Exception:  # noqa: BLE001 - one that no weak reference can be had to still takes its turn
        swallow("numbering an optimizer")
        return -1


def _rates(optimizer: Any) -> Any:
    """The learning rate of an optimizer's only group, or those of all; None for what is not ready on the host."""
    try:
        groups = optimizer.param_groups
        return scalar(groups[0]["lr"]) if len(groups) == 1 else tuple(scalar(g["lr"]) for g in groups)
    except Exception:  # noqa: BLE001 - an optimizer without param_groups still takes its turn
        swallow("reading the learning rate")
        return None


def _unbound(bound: Any) -> Any:
    """What is called without its object, as a function that is given it."""

    @functools.wraps(bound)
    def step(_: Any, *args: Any, **kwargs: Any) -> Any:
        return bound(*args, **kwargs)

    return step


def install_clipping(torch: Any, patches: Patches) -> None:
    """Record the gradient norm where clipping computes it, and the time both halves take."""
    module = torch.nn.utils.clip_grad
    original_norm = module._get_total_norm

    @functools.wraps(original_norm)
    def _get_total_norm(*args: Any, **kwargs: Any) -> Any:
        start = now()
        norm = None
        try:
            result = original_norm(*args, **kwargs)
            try:
                norm = scalar(result)
            except Exception:  # noqa: BLE001 - the law: never break the program
                swallow("reading the gradient norm")
            return result
        finally:
            recorders.mine().record(CLIP, start, now(), norm)

    hide(_get_total_norm)
    _get_total_norm._torchdynamo_inline = original_norm  # type: ignore[attr-defined]
    patches.set(module, "_get_total_norm", _get_total_norm)
    for owner in (module, torch.nn.utils):
        if vars(owner).get("get_total_norm") is original_norm:
            patches.set(owner, "get_total_norm", _get_total_norm)

    original_clip = module._clip_grads_with_norm_

    @functools.wraps(original_clip)
    def _clip_grads_with_norm_(*args: Any, **kwargs: Any) -> Any:
        start = now()
        try:
            return original_clip(*args, **kwargs)
        finally:
            recorders.mine().record(OPTIMIZER_WORK, start, now())

    hide(_clip_grads_with_norm_)
    _clip_grads_with_norm_._torchdynamo_inline = original_clip  # type: ignore[attr-defined]
    patches.set(module, "_clip_grads_with_norm_", _clip_grads_with_norm_)
    if vars(torch.nn.utils).get("clip_grads_with_norm_") is original_clip:
        patches.set(torch.nn.utils, "clip_grads_with_norm_", _clip_grads_with_norm_)


def install_scaler(torch: Any, patches: Patches) -> None:
    """Record GradScaler steps (a skip is one with no optimizer step inside) and their scale."""
    compiling = torch.compiler.is_dynamo_compiling
    scaler_class = torch.amp.GradScaler
    numbers = optimizers.numbers

    def timed(name: str, *, turn: bool) -> None:
        original = getattr(scaler_class, name)

        @functools.wraps(original)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            if compiling():
                return original(self, *args, **kwargs)
            recorder = recorders.mine()
            optimizer = numbers.get(id(args[0]), -1) if args else -1
            scale = None
            if turn:
                try:
                    scale = scalar(self._scale) if self._enabled else None
                except Exception:  # noqa: BLE001 - the law: never break the program
                    swallow("reading the loss scale")
            start = now()
            try:
                result = original(self, *args, **kwargs)
            except BaseException:
                recorder.record(OPTIMIZER_WORK, start, now())
                raise
            end = now()
            if turn:
                if not recorder.took_turn(optimizer):
                    recorder.turn(optimizer)
                recorder.record(SCALER, start, end, optimizer, scale)
            else:
                recorder.record(OPTIMIZER_WORK, start, end)
            return result

        patches.set(scaler_class, name, hide(method))

    timed("step", turn=True)
    timed("unscale_", turn=False)
    timed("update", turn=False)
