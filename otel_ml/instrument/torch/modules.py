"""The root module's forward, through a slot on its class.

`Module._wrapped_call_impl` reads `self._compiled_call_impl`; we put a small descriptor of
that name on the *class* of a root, so the module's own `__dict__` is never touched
(copies, pickles and compiled modules stay as they are) and no submodule's call is. Roots
are found by arming the base class for a short window; it is armed again when an
optimizer or a composite module is built.
"""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from types import MethodType
from typing import TYPE_CHECKING, Any

from otel_ml.core.clock import now
from otel_ml.core.context import recorders, roots
from otel_ml.core.native import load
from otel_ml.core.recorder import FAILED, FORWARD, FORWARD_NOGRAD, OPEN
from otel_ml.errors import guard, swallow
from otel_ml.instrument.torch.hidden import hide, hide_deep, tracing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_ml.instrument.patching import Patches

__all__ = ["Roots"]

SLOT = "_compiled_call_impl"
_QUIET_CALLS = 8  # outermost calls with nothing new before the window closes
_MAX_ARMINGS = 64  # each arming invalidates the type caches of all Module subclasses
_MANY = 6  # more roots than this in a window: the model is called through its children

_compiling = sys.modules["torch"].compiler.is_dynamo_compiling
local = recorders.local
_depth = threading.local()
_numbers = roots.numbers
_native = load("otel_ml.instrument.torch._hooks")


class RootSlot:
    """On a class of roots: every instance's call is recorded."""

    def __init__(self, call: Any) -> None:
        self.call = call

    def __get__(self, obj: Any, cls: Any = None) -> Any:
        # Dynamo reads the slot of a module that has hooks, and must find there what torch put there.
        return None if obj is None or _compiling() else MethodType(self.call, obj)

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(None), ())


class SharedSlot(RootSlot):
    """On a class of torch's own, shared by roots and submodules: only known roots are recorded."""

    def __get__(self, obj: Any, cls: Any = None) -> Any:
        if obj is None or _compiling() or id(obj) not in _numbers:
            return None
        return MethodType(self.call, obj)


def _shown_get(self: Any, obj: Any, cls: Any = None) -> Any:  # noqa: ARG001 - Python's signature
    """The `__get__` of a slot that is C, as dynamo and whoever else looks for one finds it."""
    return None if _compiling() else self.answer(obj)


def _slot(call: Any, *, shared: bool) -> Any:
    if _native is not None:
        return _native.Slot(call, _numbers) if shared else _native.Slot(call)
    return (SharedSlot if shared else RootSlot)(call)


class Roots:
    """Finds root modules and keeps their classes' slots."""

    def __init__(self, torch: Any, patches: Patches) -> None:
        self.torch = torch
        self.module = torch.nn.Module
        self.patches = patches
        self.armed = False
        self.armings = 0
        self.quiet = 0
        # By identity, and weakly: a class, and what it closes over, may be gone tomorrow.
        self.classes: dict[int, tuple[weakref.ref[type], Any]] = {}
        self.window: dict[int, weakref.ref[type]] = {}
        self.compiled: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self.call = self._make_call()
        self.discover = RootSlot(self._make_discover())
        for function in (RootSlot.__get__, SharedSlot.__get__):
            hide(function)
        hide_deep(_inside_a_module)
        hide_deep(_number)
        if _native is not None:
            _native.show(hide(_shown_get))
            _native.find_in(torch._C.__file__)
        for name in ("arm", "_disarm", "_met", "_describe", "_in_place"):
            hide_deep(vars(Roots)[name])

    def _make_call(self, compiled: Any = None) -> Any:
        torch = self.torch
        is_grad_enabled = torch.is_grad_enabled
        tensor = torch.Tensor
        modes = torch._C._len_torch_function_stack
        numbers = roots.numbers
        floating = torch.Tensor.is_floating_point
        is_traced = torch._C._is_tracing
        if _native is not None:
            return _native.forward(numbers, roots.number, tensor, is_grad_enabled, is_traced, modes, compiled)

        def root_call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
            if is_traced():  # by torch.jit: a shape read here would be a node in its graph
                return (self._call_impl if compiled is None else compiled)(*args, **kwargs)
            try:
                recorder = local.recorder
            except AttributeError:
                recorder = recorders.mine()
            grad = is_grad_enabled()
            state = recorder.state
            if not grad:
                if state or recorder.merged_from is not None:
                    recorder.edge()
            elif state != OPEN:
                recorder.candidate()
            size = -1
            if args:
                first = args[0]
                if type(first) is tensor and not modes():
                    try:
                        shape = first.shape
                        if shape:
                            size = shape[0]
                            if len(shape) == 2 and not floating(first):
                                size |= first.numel() << 32
                    except RuntimeError:  # a nested tensor has no shape
                        size = first.size(0)
            start = now()
            try:
                return (self._call_impl if compiled is None else compiled)(*args, **kwargs)
            except Exception:
                size = FAILED
                raise
            finally:
                end = now()
                number = numbers.get(id(self))
                if number is None:
                    number = _number(self)
                if number is None:
                    recorder.dropped += 1
                else:
                    recorder.record(FORWARD if grad else FORWARD_NOGRAD, start, end, number, size)

        return hide(root_call)

    def _make_discover(self) -> Any:
        roots_found = self
        call = self.call

        def discover(self: Any, /, *args: Any, **kwargs: Any) -> Any:
            if getattr(_depth, "value", 0):
                return self._call_impl(*args, **kwargs)
            _depth.value = 1
            try:
                if not roots_found._met(self):
                    return self._call_impl(*args, **kwargs)
                return call(self, *args, **kwargs)
            finally:
                _depth.value = 0

        return hide(discover)

    def _met(self, module: Any) -> bool:
        """Note an outermost call; say whether it is a root to record."""
        with guard("finding the root module"):
            if tracing() or self.torch.compiler.is_compiling():
                return False
            key = id(module)
            if key in roots.numbers and (key in self.window or self._slotted(type(module))):
                known = True
            else:
                known = next(_parameters(module), None) is not None
                if known:
                    self.window[key] = weakref.ref(type(module))
                    self.quiet = 0
                    self._describe(module)
            self.quiet += 1
            if self.quiet > _QUIET_CALLS:
                self._disarm()
            return known
        return False

    def _describe(self, module: Any) -> None:
        number = roots.number(module)
        trainable = frozen = 0
        base = self.torch._C.TensorBase
        with self.torch._C.DisableTorchFunction():  # whoever watches calls with a mode does not see ours
            for parameter in _parameters(module):
                count = 0 if self.torch.nn.parameter.is_lazy(parameter) else base.numel(parameter)
                if base.requires_grad.__get__(parameter):
                    trainable += count
                else:
                    frozen += count
        inner = dict(_held(module, "_modules")).get("_orig_mod")
        name = type(inner if inner is not None else module).__name__
        roots.facts[number].update(name=name, trainable=trainable, frozen=frozen)

    def arm(self) -> None:
        """Look for roots again: something that may be, or hold, a new one was built."""
        if self.armed:
            self.quiet = 0
            return
        if self.armings >= _MAX_ARMINGS:
            return
        self.armings += 1
        self.quiet = 0
        self.window = {}
        for cls, _ in self._alive():
            self.patches.remove(cls, SLOT)
        self.patches.set(self.module, SLOT, self.discover)
        self.armed = True

    def _disarm(self) -> None:
        if not self.armed:
            return
        self.armed = False
        self.patches.remove(self.module, SLOT)
        many = len(self.window) > _MANY
        for reference in self.window.values():
            met = reference()
            if met is None or self._slotted(met):
                continue
            shared = met.__module__.split(".")[0] == "torch"
            if not (many and shared):
                self.classes[id(met)] = reference, _slot(self.call, shared=shared)
        for cls, slot in self._alive():
            self.patches.set(cls, SLOT, slot)

    def _slotted(self, cls: type) -> bool:
        known = self.classes.get(id(cls))
        return known is not None and known[0]() is cls

    def _alive(self) -> list[tuple[type, Any]]:
        """The classes that have a slot, without those that are gone."""
        alive = [(reference(), reference, slot) for reference, slot in self.classes.values()]
        self.classes = {id(cls): (reference, slot) for cls, reference, slot in alive if cls is not None}
        return [(cls, slot) for cls, _, slot in alive if cls is not None]

    def install(self) -> None:
        """Arm for the program's first calls, and see to `Module.compile()` and composites."""
        self.arm()
        original = self.module.compile
        in_place = self._in_place
        compiled_modules = self.compiled

        @functools.wraps(original)
        def compile(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: A001 - torch's name
            result = original(self, *args, **kwargs)
            compiled = vars(self).get(SLOT)
            if compiled is not None:
                vars(self)[SLOT] = in_place(self, compiled)
                compiled_modules[id(self)] = self
            return result

        hide_deep(compile)
        self.patches.set(self.module, "compile", compile)
        self.patches.undo_with(self._uncover)
        self._install_rearming()

    def _install_rearming(self) -> None:
        """A copy, an unpickled model or one about to be evaluated may be a root that no window has seen."""
        arm = self.arm
        original_setstate, original_eval = self.module.__setstate__, self.module.eval

        @functools.wraps(original_setstate)
        def __setstate__(self: Any, state: Any) -> None:  # noqa: N807 - torch's name
            original_setstate(self, state)
            arm()

        @functools.wraps(original_eval)
        def eval(self: Any) -> Any:  # noqa: A001 - torch's name
            if id(self) not in roots.numbers:
                arm()
            return original_eval(self)

        ours: dict[str, Any] = {"__setstate__": __setstate__, "eval": eval}
        for name, function in ours.items():
            function._torchdynamo_inline = vars(self.module)[name]
            self.patches.set(self.module, name, hide(function))

        def registered(_module: Any, _name: str, _submodule: Any) -> None:
            arm()

        handle = self.torch.nn.modules.module.register_module_module_registration_hook(hide_deep(registered))
        self.patches.undo_with(handle.remove)

    def _in_place(self, module: Any, compiled: Any) -> Any:
        """What `module.compile()` put on the instance shadows the class's slot: record there, if it is a root."""
        record = self._make_call(compiled)
        known: list[bool] = []

        def compiled_call(*args: Any, **kwargs: Any) -> Any:
            if not known:
                known.append(not _inside_a_module())
                if known[0]:
                    self._describe(module)
            if not known[0]:
                return compiled(*args, **kwargs)
            before = getattr(_depth, "value", 0)
            _depth.value = 1
            try:
                return record(module, *args, **kwargs)
            finally:
                _depth.value = before

        compiled_call.__wrapped__ = compiled  # type: ignore[attr-defined]
        return hide(compiled_call)

    def _uncover(self) -> None:
        """Give every module that was compiled in place what torch had put there."""
        for module in list(self.compiled.values()):
            slot = vars(module).get(SLOT)
            if getattr(slot, "__module__", None) == __name__:
                vars(module)[SLOT] = slot.__wrapped__


def _held(module: Any, kind: str) -> list[tuple[str, Any]]:
    """What a module has registered, by name, whatever its class has put over torch's own ways to ask."""
    held = object.__getattribute__(module, "__dict__").get(kind, ())
    return list(dict.items(held) if issubclass(type(held), dict) else held.items() if held else ())  # a script's own


def _parameters(module: Any) -> Iterator[Any]:
    """Each parameter of a module and of those in it, once."""
    met: set[int] = set()
    modules = [module]
    while modules:
        one = modules.pop()
        if one is None or id(one) in met:
            continue
        met.add(id(one))
        for _, parameter in _held(one, "_parameters"):
            if parameter is not None and id(parameter) not in met:
                met.add(id(parameter))
                yield parameter
        modules.extend(child for _, child in _held(one, "_modules"))


def _number(module: Any) -> int | None:
    """The number that it is known by from now on; None where that met an error of ours."""
    try:
        return roots.number(module)
    except Exception:  # noqa: BLE001 - the law: never break the program
        swallow("numbering")
        return None


def _inside_a_module() -> bool:
    """Whether another module's call is on this thread's stack, below the one that asks."""
    frame = sys._getframe(2)
    calls = 0
    while frame is not None:
        calls += frame.f_code.co_name == "_wrapped_call_impl"
        frame = frame.f_back  # type: ignore[assignment]
    return calls > 1
