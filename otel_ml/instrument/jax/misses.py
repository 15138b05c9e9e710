"""What misses jit's cache, or never takes its fast path: the functions of JAX's own that it goes through.

`_infer_params` and `_run_python_pjit` see every miss, and know the jaxpr. What was lowered and compiled by hand has a
call of its own; a derivative that no compiled function holds is a training op by op.
"""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING, Any

from otel_ml.core.clock import now
from otel_ml.core.context import optimizers, recorders
from otel_ml.core.recorder import DEVICE_GRAD
from otel_ml.errors import guard, swallow
from otel_ml.instrument.jax.calls import is_library, miss, trains
from otel_ml.instrument.jax.functions import Function
from otel_ml.instrument.jax.retrace import signature

if TYPE_CHECKING:
    from otel_ml.instrument.jax.calls import Calls
    from otel_ml.instrument.patching import Patches

__all__ = ["bare", "install", "install_ahead", "install_derivatives"]


def install(calls: Calls, patches: Patches) -> None:
    """Wrap the two functions that every miss goes through."""
    jax = calls.jax
    pjit = jax._src.pjit
    clean = jax._src.core.trace_state_clean
    context = jax._src.config.trace_context
    infer, run = pjit._infer_params, pjit._run_python_pjit

    @functools.wraps(infer)
    def _infer_params(fun: Any, ji: Any, args: Any, kwargs: Any) -> Any:
        if not clean():
            return infer(fun, ji, args, kwargs)
        miss.start, miss.jit_info, miss.reason, miss.name = now(), ji, None, None
        try:
            result = infer(fun, ji, args, kwargs)
        except Exception:
            if not miss.ahead:
                calls.failed(fun, miss.start)
                miss.start = None
            raise
        with guard("a jitted function"):
            if not is_library(fun):
                miss.name = str(result[0].params["name"])
                if miss.ahead:
                    miss.traced = fun, result[0]
        return result

    trace = pjit.jit_trace

    @functools.wraps(trace)
    def jit_trace(jit_func: Any, *args: Any, **kwargs: Any) -> Any:
        miss.ahead = True
        try:
            result = trace(jit_func, *args, **kwargs)
        finally:
            found, miss.traced, miss.start, miss.ahead = miss.traced, None, None, False
        with guard("a function traced ahead of time"):
            function = calls.meet(found[0], found[1], None) if found is not None else None
            if function is not None and found is not None:
                calls.traced.append((function.name, found[1].out_tree, function))
        return result

    @functools.wraps(run)
    def _run_python_pjit(p: Any, args_flat: Any, fun: Any, args: Any, kwargs: Any) -> Any:
        if not clean():
            return run(p, args_flat, fun, args, kwargs)
        start = miss.start or now()
        function = None
        try:
            if not is_library(fun):
                function = calls.meet(fun, p, lambda: signature(p, miss.jit_info, args, kwargs, context()))
        except Exception:  # noqa: BLE001 - the law: never break the program
            swallow("a jitted function")
        try:
            result = run(p, args_flat, fun, args, kwargs)
        except Exception:
            calls.failed(fun, start)
            raise
        finally:
            miss.start = miss.reason = miss.name = None
        if function is not None:
            try:
                miss.told = True
                function.called(recorders.mine(), start, now(), args, kwargs, result[0])
                if result[5] is not None and function.flops is None:
                    calls.executables.append((function, result[5]))
                    function.flops = 0.0
            except Exception:  # noqa: BLE001 - the law: never break the program
                swallow("a jitted call")
        return result

    patches.set(pjit, "jit_trace", jit_trace)
    patches.set(pjit, "_infer_params", _infer_params)
    patches.set(pjit, "_run_python_pjit", _run_python_pjit)


def install_ahead(calls: Calls, patches: Patches) -> None:
    """See to functions that were lowered and compiled by hand: those have a call of their own."""
    executable, compiled = calls.jax._src.interpreters.pxla.MeshExecutable, calls.jax._src.stages.Compiled
    create, call = executable.create_cpp_call, compiled.call

    @functools.wraps(create)
    def create_cpp_call(mine: Any, params: Any) -> Any:
        jitted = create(mine, params)
        with guard("a function compiled ahead of time"):
            mine_name = bare(mine.unsafe_call.name)
            for name, tree, function in reversed(calls.traced):
                if name == mine_name and tree == params.out_tree:
                    calls.compiled[id(mine)] = function
                    weakref.finalize(mine, calls.compiled.pop, id(mine), None).atexit = False
                    if jitted is not None:
                        calls.known[id(jitted)] = function
                        weakref.finalize(jitted, calls.known.pop, id(jitted), None).atexit = False
                    break
        return jitted

    @functools.wraps(call)
    def first(*args: Any, **kwargs: Any) -> Any:
        start = now()
        result = call(*args, **kwargs)
        with guard("a call compiled ahead of time"):
            function = calls.compiled.get(id(args[0].executable))
            if function is not None:
                function.called(recorders.mine(), start, now(), args[1:], kwargs, result[0])
        return result

    patches.set(executable, "create_cpp_call", create_cpp_call)
    patches.set(compiled, "call", staticmethod(first))


def install_derivatives(calls: Calls, patches: Patches) -> None:
    """See to training op by op: a reverse-mode derivative that no compiled function holds."""
    ad = calls.jax._src.interpreters.ad
    clean = calls.jax._src.core.trace_state_clean
    linearize = ad.linearize
    function = Function("op by op", calls.value)
    function.code = DEVICE_GRAD
    function.names = ("loss",)
    function.picks = (lambda primals: next(v for v in primals.vals if v.shape == ()),)

    @functools.wraps(linearize)
    def eager(traceable: Any, primals_ft: Any, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("is_vjp") or not clean():
            return linearize(traceable, primals_ft, *args, **kwargs)
        start = now()
        result = linearize(traceable, primals_ft, *args, **kwargs)
        with guard("a derivative"):
            if not any(v.shape == () for v in result[0].vals):  # of no loss, whatever it is for
                return result
            if function.number < 0:
                trains()
                function.number = optimizers.number(eager, function.name)
                optimizers.facts[function.number].update(function=function.name)
            function.called(recorders.mine(), start, now(), (), {}, result[0])
        return result

    patches.set(ad, "linearize", eager)


def bare(name: str) -> str:
    """The function's name in what JAX calls its program: `jit(train)`."""
    return name.partition("(")[2][:-1] if name.endswith(")") and "(" in name else name
