"""Calls of compiled functions, by JAX's own hook after each; what misses jit's cache is in `misses.py`.

No object of the program's is replaced. JAX calls `_post_hook_state` after a warm call, with the jitted function and
what came out: that is the end of the dispatch, and all there is; where it began is not known.
Calls inside another function's trace do not reach it as such: outermost calls only.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections import deque
from time import thread_time_ns
from typing import TYPE_CHECKING, Any

from wrapt import ObjectProxy

from otel_ml.core import runtime
from otel_ml.core.clock import now
from otel_ml.core.context import optimizers, recorders, roots
from otel_ml.core.recorder import (
    BUILD,
    DEVICE_CALL,
    DEVICE_GRAD,
    DEVICE_TRAIN,
    DEVICE_UPDATE,
    FAILED,
    bit,
)
from otel_ml.errors import guard, swallow
from otel_ml.instrument.jax.functions import VARIES, Function
from otel_ml.instrument.jax.programs import Program, read
from otel_ml.instrument.jax.retrace import Reason, Signature, differences

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_ml.instrument.patching import Patches

__all__ = ["Calls", "is_library", "miss", "trains"]

_GAP_NS = 200_000  # since a thread's last event, from which it is worth two microseconds to ask what it did meanwhile
_AHEAD = 64  # functions traced ahead of time that wait to be compiled
_ENDED = 1000
# Whose jitted functions are not the program's own: by the top level of where they are defined.
_LIBRARIES = frozenset({"jax", "jaxlib", "optax", "orbax", "flax", "equinox", "chex", "haiku", "grain"})
# Where those libraries wrap what is the program's.
_WRAPPERS = frozenset({"equinox._jit", "jax._src.pmap", "jax._src.shard_map"})

local = recorders.local


class _Miss(threading.local):
    """What this thread is compiling, if anything: the compile listener asks."""

    start: int | None = None
    told = False  # of the call that goes on
    name: str | None = None
    reason: Reason | None = None
    jit_info: Any = None
    ahead = False  # it is traced to be lowered by hand
    traced: Any = None


miss = _Miss()


def _began(recorder: Any, start: int, end: int) -> int:
    """When a request's dispatch began, at the earliest: it is no longer than what the thread computed since the last.

    What came before it, asleep or in a socket, is not the model's. After many requests in close succession, of which
    this was not asked, the first one may still seem as long as the gap before it.
    """
    cpu = thread_time_ns()
    earliest: int = end - max(cpu - recorder.cpu, 2)
    recorder.cpu = cpu
    return max(start, earliest)


class Calls:
    """The hook, and what it knows of each jitted function."""

    def __init__(self, jax: Any, value: Any) -> None:
        self.jax = jax
        self.value = value
        self.known: Any = {}  # functions, or None, by the jitted object's id
        self.functions: dict[int, Function] = {}  # by the id of the function that was jitted
        self.ended: list[Function] = []  # the program let go of them; their last calls are still to be told
        self.gradients: list[Any] = []
        self.executables: list[tuple[Function, Any]] = []  # whose cost is still to be asked for
        self.traced: deque[tuple[str, Any, Function]] = deque(maxlen=_AHEAD)  # ahead of time: name, out tree, function
        self.compiled: dict[int, Function] = {}  # ahead of time: by the executable's id
        self._built = False
        self._whole = False  # a function that trains and updates has been met
        self._lock = threading.Lock()

    # --- warm calls ------------------------------------------------------------------

    def hook(self, jitted: Any, args: Any, kwargs: Any, out: Any) -> None:
        """JAX calls this after every call that took jit's fast path, eager operations included."""
        try:
            try:
                function = self.known[id(jitted)]
            except KeyError:
                function = self._meet_warm(jitted, args, kwargs)
            if function is None:
                return
            end = now()
            try:
                recorder = local.recorder
            except AttributeError:
                recorder = recorders.mine()
            try:
                start = recorder.buffer[-3]
            except IndexError:  # the drain has just taken it
                start = recorder.last or end - 2
            if end - start > _GAP_NS and function.code == DEVICE_CALL and not runtime.trained:
                start = _began(recorder, start, end)
            function.called(recorder, start + 1, end, args, kwargs, out)
        except Exception:  # noqa: BLE001 - the law: never break the program
            swallow("a jitted call")

    def _meet_warm(self, jitted: Any, args: Any, kwargs: Any) -> Function | None:
        inner = getattr(jitted, "_fun", None)
        if inner is None:
            return None  # an anonymous one of an eager derivative's, made at each call: not to be remembered
        function = None
        try:
            if not is_library(inner):
                function = self.functions.get(id(inner))
                if function is None:  # compiled before we were here; what JAX has cached tells all
                    pjit = self.jax._src.pjit
                    infer = getattr(pjit._infer_params, "__wrapped__", pjit._infer_params)
                    p, _ = infer(inner, jitted._jit_info, args, kwargs)
                    function = self.meet(inner, p, None)
                elif function.number < 0:
                    function = None
        finally:  # also where it could not be read: that is tried once
            self.known[id(jitted)] = function
            weakref.finalize(jitted, self.known.pop, id(jitted), None).atexit = False
        return function

    # --- functions -------------------------------------------------------------------

    def meet(self, inner: Any, p: Any, sign: Callable[[], Signature] | None) -> Function | None:
        """Get to know a function by a traced form of it; None for a library's, and for what could not be read.

        `sign` tells what a call that was traced just now was traced for.
        """
        if is_library(inner):
            return None
        with self._lock:
            function = self.functions.get(id(inner))
            if function is None:
                function = self.functions[id(inner)] = Function(str(p.params["name"]), self.value)
                weakref.finalize(inner, self._end, id(inner)).atexit = False
        closed = p.params["jaxpr"]
        if id(closed) not in function.seen:
            try:
                self._read(function, inner, p)
            finally:  # what could not be read once cannot be read
                function.seen[id(closed)] = _weakly(closed, functools.partial(function.seen.pop, id(closed), None))
            if sign is not None:
                before, function.last = function.last, sign()
                if before is not None:
                    miss.reason = differences(before, function.last)
        return function if function.number >= 0 else None

    def _end(self, key: int) -> None:
        function = self.functions.pop(key, None)
        if function is not None and len(self.ended) < _ENDED:
            self.ended.append(function)

    def _read(self, function: Function, inner: Any, p: Any) -> None:
        devices = getattr(inner, "__module__", None) == "jax._src.pmap"
        program = read(self.jax, p, self.gradients, devices=devices)
        if program.code == DEVICE_TRAIN:
            self._whole = True
        elif program.code == DEVICE_GRAD and self._whole:
            program = Program(DEVICE_CALL)  # a map of saliencies, say: what trains here updates its weights itself
        elif program.code == DEVICE_GRAD:
            self.gradients.append(program.gradients)
        if function.number < 0:
            self._number(function, inner, program)
            function.packed = program.packed
        elif program.packed != function.packed:
            function.packed, function.batch = -1, program.batch
            function.flops = VARIES
        function.picks = tuple(pick.get for pick in program.picks)
        function.names = tuple(pick.name for pick in program.picks)

    def _number(self, function: Function, inner: Any, program: Program) -> None:
        function.code = program.code
        if program.code == DEVICE_CALL:
            function.number = roots.number(inner, function.name)
            roots.facts[function.number].update(name=function.name)
            return
        trains()
        function.number = optimizers.number(inner, function.name)
        function.alone = bit(function.number)
        optimizers.facts[function.number].update(function=function.name)
        if program.parameters is not None:
            model = roots.number(inner, function.name)
            roots.facts[model].update(name=function.name, trainable=program.parameters, frozen=0)
        recorder = recorders.mine()
        if program.code in (DEVICE_TRAIN, DEVICE_UPDATE) and (not self._built or recorder.number):
            self._built = True  # and what is met after whole rounds without it begins something new
            at = now() if miss.start is None else miss.start  # its call begins before it is traced and read
            recorder.edge()
            recorder.record(BUILD, at, at, function.number)

    def failed(self, fun: Any, start: int | None) -> None:
        """A call raised: of a function that is known and does not train, it is one that served and failed."""
        with guard("a jitted call that failed"):
            function = self.functions.get(id(fun))
            if function is not None and function.number >= 0 and function.code == DEVICE_CALL:
                recorder, end = recorders.mine(), now()
                recorder.edge()
                recorder.record(DEVICE_CALL, end if start is None else start, end, function.number, FAILED)

    def install_proxy(self, patches: Patches) -> None:
        """The way out where JAX has no such hook: what `jax.jit` returns from now on is wrapped."""
        original = self.jax.jit

        @functools.wraps(original)
        def jit(*args: Any, **kwargs: Any) -> Any:
            made = original(*args, **kwargs)
            if hasattr(made, "lower"):
                return Proxy(made, self)
            return lambda fun: Proxy(made(fun), self)

        patches.set(self.jax, "jit", jit)

    def install_hook(self, patches: Patches) -> None:
        """Stand beside JAX's own use of its hook, which looks for NaNs when asked to."""
        api, config = self.jax._src.api, self.jax._src.config
        state = api._post_hook_state
        ours = self.hook

        def beside(theirs: Any) -> Any:
            if theirs is None or theirs is ours:
                return ours

            def both(jitted: Any, args: Any, kwargs: Any, out: Any) -> None:
                try:
                    theirs(jitted, args, kwargs, out)
                except Exception:
                    self.failed(getattr(jitted, "_fun", None), None)
                    raise
                ours(jitted, args, kwargs, out)

            return both

        def globally(original: Any) -> Any:
            @functools.wraps(original)
            def update(value: Any) -> None:
                original(value)
                state.set_global(beside(state.get_global()))

            return update

        def locally(original: Any) -> Any:
            @functools.wraps(original)
            def update(value: Any) -> None:
                original(value)
                state.set_local(beside(state.get_local()))

            return update

        def remove() -> None:
            self.known = _Unseen()  # threads that have our hook as their own call it on, for nothing
            config.debug_nans._update_global_hook(None)
            if state.get_local() is ours:
                state.set_local(None)

        patches.undo_with(remove)
        for flag in (config.debug_nans, config.debug_infs):
            for name, wrap in (("_update_global_hook", globally), ("_update_thread_local_hook", locally)):
                before = getattr(flag, name)
                patches.undo_with(functools.partial(setattr, flag, name, before))
                setattr(flag, name, wrap(before))
        state.set_global(beside(state.get_global()))
        if state.get_local() is None:  # JAX itself leaves that behind, and it hides the global one
            state.set_local(ours)


class Proxy(ObjectProxy):  # type: ignore[type-arg]
    """Around one jitted function, where JAX has no hook of its own: its type and repr are another's then."""

    def __init__(self, jitted: Any, calls: Calls) -> None:
        super().__init__(jitted)
        self._self_calls = calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        miss.told = False
        out = self.__wrapped__(*args, **kwargs)
        calls = self._self_calls
        if not miss.told and calls.jax._src.core.trace_state_clean():
            calls.hook(self.__wrapped__, args, kwargs, out)
        return out

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__wrapped__.__reduce_ex__(protocol)


class _Unseen(dict[int, None]):
    """Knows every function as one that is not to be recorded."""

    def __missing__(self, _: int) -> None:
        return None


def trains() -> None:
    """Note that this program does."""
    if "jax" not in runtime.trained:
        runtime.trained.append("jax")


def is_library(inner: Any) -> bool:
    """Whether a jitted function is no program's own."""
    module = getattr(inner, "__module__", None) or ""
    if type(inner) is functools.partial:
        return is_library(inner.func)
    return module.partition(".")[0] in _LIBRARIES and module not in _WRAPPERS


def _weakly(thing: Any, gone: Any) -> Any:
    try:
        return weakref.ref(thing, lambda _: gone())
    except TypeError:
        return thing
