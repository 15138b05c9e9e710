"""Why a function was traced again: what is different about its arguments since the last time.

Computed from what jit itself keys its cache by; JAX's own `jax_explain_cache_misses` is left alone, since it also
makes other loggers talk.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Reason", "Signature", "differences", "signature"]

_SHOWN = 60  # characters of a static value
_LISTED = 3  # arguments named in one reason
_PLAIN = (str, int, float, bool, type(None), bytes)


class Reason(NamedTuple):
    """One word for the kind, and a sentence that names the argument."""

    kind: str  # size, dtype, type, value or other
    text: str


class Signature(NamedTuple):
    """What a trace was made for."""

    arrays: dict[str, tuple[tuple[int, ...], str, bool]]  # by argument path: shape, dtype, weakly typed
    statics: dict[str, str]
    context: Any


def signature(p: Any, jit_info: Any, args: tuple[Any, ...], kwargs: dict[str, Any], context: Any) -> Signature:
    """The signature of one trace; `jit_info` tells which arguments are static."""
    arrays = {
        name: (tuple(a.shape), str(a.dtype), bool(getattr(a, "weak_type", False)))
        for name, a in zip(p.arg_names, p.in_avals, strict=False)
    }
    statics: dict[str, str] = {}
    if jit_info is not None:
        names = _names(jit_info)
        for n in jit_info.static_argnums:
            if -len(args) <= n < len(args):
                statics[names.get(n, f"args[{n}]")] = _short(args[n])
        for name in jit_info.static_argnames:
            if name in kwargs:
                statics[name] = _short(kwargs[name])
    return Signature(arrays, statics, context)


def _names(jit_info: Any) -> dict[int, str]:
    known = getattr(jit_info, "fun_signature", None)
    if known is None:
        return {}
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return dict(enumerate(name for name, parameter in known.parameters.items() if parameter.kind in positional))


def _short(value: Any) -> str:
    """A static value in few words; what is not plain is told by its type and place, so that nothing of it is shown."""
    if isinstance(value, _PLAIN):
        text = repr(value)
        return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
    if isinstance(value, tuple) and all(isinstance(v, _PLAIN) for v in value):
        return f"({', '.join(map(_short, value))})"[:_SHOWN]
    name = getattr(value, "__qualname__", None) or type(value).__qualname__
    return f"{name} at {id(value):#x}"


def _said(shape: tuple[int, ...], dtype: str, weak: bool) -> str:  # noqa: FBT001 - as it stands in the signature
    return f"{'weak ' if weak else ''}{dtype}[{','.join(map(str, shape))}]"


def differences(before: Signature, now: Signature) -> Reason | None:
    """What changed from one trace to the next; None where nothing that jit keys by did (its caches were cleared)."""
    found = list(_differences(before, now))
    if not found:
        return None
    texts = [text for _, text in found[:_LISTED]]
    if len(found) > _LISTED:
        texts.append(f"and {len(found) - _LISTED} more")
    return Reason(found[0][0], "; ".join(texts))


def _differences(before: Signature, now: Signature) -> Iterator[Reason]:
    for name, value in now.statics.items():
        old = before.statics.get(name)
        if old is not None and old != value:
            yield Reason("value", f"{name}: {old} -> {value}")
    for name, array in now.arrays.items():
        past = before.arrays.get(name)
        if past is not None and past != array:
            kind = "size" if past[0] != array[0] else "dtype"
            yield Reason(kind, f"{name}: {_said(*past)} -> {_said(*array)}")
    added = [n for n in now.arrays if n not in before.arrays] + [n for n in now.statics if n not in before.statics]
    gone = [n for n in before.arrays if n not in now.arrays] + [n for n in before.statics if n not in now.statics]
    if added:
        yield Reason("type", f"new in the arguments: {', '.join(added[:_LISTED])}")
    if gone:
        yield Reason("type", f"gone from the arguments: {', '.join(gone[:_LISTED])}")
    if before.context != now.context:
        yield Reason("other", "the trace context (a jax.config setting, a mesh or a dtype rule) is another one")
