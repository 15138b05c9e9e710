"""What a compiled function is, read from its jaxpr: whether it trains, where its loss comes out, what goes in.

Called on a miss of jit's cache only, about a microsecond an equation. Nothing is computed, traced or compiled.

The rule: every equation of a reverse-mode derivative carries `transpose(` in its name stack. A function that has
some, and gives back arrays of the shapes that it takes (its state), trains. Where nothing but those derivatives come
out, it yields gradients; a function without any that takes and gives such gradients is the update.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from otel_ml.core.recorder import DEVICE_CALL, DEVICE_GRAD, DEVICE_TRAIN, DEVICE_UPDATE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Pick", "Program", "read", "shapes_of"]

_DEEP = 12  # equations that a loss may have passed through after its derivative was taken (a mean over devices, …)
_MOST_SCALARS = 16
_LOSS = ("loss", "train_loss", "total_loss", "loss_value")
_NORMS = ("grad_norm", "gradient_norm", "grad_global_norm", "grads_norm", "gnorm")
_WEIGHTS = re.compile(r"(?:^|[.'\"\[])(?:params|model|weights|theta)(?:$|[.'\"\[\]])")
_TOKENS = re.compile(r"input_ids|tokens")
_FIRST = re.compile(r"[.\[]")

Shapes = Counter[tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class Pick:
    """A scalar among a function's outputs: its name, and how to reach it."""

    name: str
    get: Callable[[Any], Any]


@dataclass
class Program:
    """One traced form of a function."""

    code: int
    picks: tuple[Pick, ...] = ()
    packed: int = -1  # samples and tokens, as the recorder packs them
    batch: Callable[[Any], Any] | None = None  # (args, kwargs) → the array whose shape tells the samples
    parameters: int | None = None
    gradients: Shapes = field(default_factory=Counter)


def shapes_of(avals: Any) -> Shapes:
    """How many arrays there are of each shape and type; scalars are not state."""
    return Counter((tuple(a.shape), str(a.dtype)) for a in avals if getattr(a, "shape", ()))


def read(jax: Any, p: Any, gradients: list[Shapes], *, devices: bool) -> Program:
    """Read the traced parameters `p` of one jit call; `gradients` are those that other functions yield.

    `devices` says that the leading axis of everything is that of the devices (`pmap`).
    """
    closed = p.params["jaxpr"]
    jaxpr = closed.jaxpr
    taken, given = shapes_of(p.in_avals), shapes_of(closed.out_avals)
    state = taken & given
    if not state or not any(_is_transposed(e) for e in _equations(jax, jaxpr)):
        if any(g and not (g - state) for g in gradients):
            return Program(DEVICE_UPDATE)
        return Program(DEVICE_CALL, packed=_served(closed.out_avals, p.in_avals, devices=devices))
    origins = _Origins(jax)
    derived = [origins.of(jaxpr, n) for n in range(len(jaxpr.outvars))]
    backs = [v.aval for n, v in enumerate(jaxpr.outvars) if derived[n] == "gradient" and v.aval.shape]
    updates_inside = any(
        derived[n] != "gradient" and (tuple(v.aval.shape), str(v.aval.dtype)) in state
        for n, v in enumerate(jaxpr.outvars)
        if v.aval.shape
    )
    packed, batch = _packed(jax, p, given, devices=devices)
    program = Program(
        DEVICE_TRAIN if updates_inside else DEVICE_GRAD,
        picks=tuple(_picks(jax, p, jaxpr, derived, devices=devices)),
        packed=packed,
        batch=batch,
        parameters=_parameters(jax, p, given, backs if not updates_inside else None, devices=devices),
    )
    if not updates_inside:
        program.gradients = shapes_of(backs)
    return program


# --- equations ------------------------------------------------------------------------------


def _inner(jax: Any, equation: Any) -> list[Any]:
    core = jax._src.core
    return [getattr(j, "jaxpr", j) for j in core.jaxprs_in_params(equation.params)]


def _equations(jax: Any, jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in _inner(jax, equation):
            yield from _equations(jax, inner)


def _is_transposed(equation: Any) -> bool:
    return "transpose(" in str(equation.source_info.name_stack)


class _Origins:
    """Where outputs come from."""

    def __init__(self, jax: Any) -> None:
        self._jax = jax
        self._producers: dict[int, dict[int, Any]] = {}  # by jaxpr: equations by what they yield

    def of(self, jaxpr: Any, index: int) -> str:
        """Tell "gradient", "value" (of what was differentiated), or "" for one output of a jaxpr."""
        producers = self._producers.get(id(jaxpr))
        if producers is None:
            producers = self._producers[id(jaxpr)] = {id(v): e for e in jaxpr.eqns for v in e.outvars}
        variable = jaxpr.outvars[index]
        return self._from(variable, producers, 1 if variable.aval.shape else _DEEP)

    def _from(self, variable: Any, producers: dict[int, Any], deep: int) -> str:
        equation = producers.get(id(variable))
        if equation is None:
            return ""
        stack = str(equation.source_info.name_stack)
        if "transpose(" in stack:
            return "gradient"
        if "jvp(" in stack:
            return "value"
        place = next(n for n, v in enumerate(equation.outvars) if v is variable)
        for inner in _inner(self._jax, equation):
            if len(inner.outvars) == len(equation.outvars):
                found = self.of(inner, place)
                if found:
                    return found
        if deep <= 1:
            return ""
        behind = [self._from(v, producers, deep - 1) for v in equation.invars if id(v) in producers]
        return "gradient" if "gradient" in behind else "value" if "value" in behind else ""


# --- what comes out -------------------------------------------------------------------------


def _paths(jax: Any, tree: Any) -> list[tuple[Any, ...]]:
    numbered = jax.tree_util.tree_unflatten(tree, range(tree.num_leaves))
    return [path for path, _ in jax.tree_util.tree_flatten_with_path(numbered)[0]]


def _name(key: Any) -> str | None:
    name = getattr(key, "key", getattr(key, "name", None))
    return name if isinstance(name, str) else None


def _getter(jax: Any, path: tuple[Any, ...], index: int) -> Callable[[Any], Any]:
    """How to reach the leaf: by its keys where Python has them, else by its place."""
    t = jax.tree_util
    steps: list[tuple[int, Any]] = []
    for key in path:
        if isinstance(key, t.SequenceKey):
            steps.append((0, key.idx))
        elif isinstance(key, t.DictKey):
            steps.append((0, key.key))
        elif isinstance(key, t.GetAttrKey):
            steps.append((1, key.name))
        else:
            return lambda tree: t.tree_leaves(tree)[index]
    if len(steps) == 1 and not steps[0][0]:
        only = steps[0][1]
        return lambda tree: tree[only]

    def get(tree: Any) -> Any:
        for by_name, key in steps:
            tree = getattr(tree, key) if by_name else tree[key]
        return tree

    return get


def _picks(jax: Any, p: Any, jaxpr: Any, derived: list[str], *, devices: bool) -> Iterator[Pick]:
    """The floating scalars that come out and are not state: by their names, and the loss if need be by its origin."""
    fed = {
        re.split(r"[.\[]", n)[-1].strip("]'\"") for n, a in zip(p.arg_names, p.in_avals, strict=False) if not a.shape
    }
    kind = jax.numpy.floating
    found: dict[str, Callable[[Any], Any]] = {}
    unnamed: list[tuple[int, Callable[[Any], Any]]] = []
    for index, (path, variable) in enumerate(zip(_paths(jax, p.out_tree), jaxpr.outvars, strict=False)):
        aval = variable.aval
        shape = tuple(getattr(aval, "shape", (0,)))
        if len(shape) != int(devices) or not jax.numpy.issubdtype(aval.dtype, kind):
            continue
        name = next((n for n in map(_name, reversed(path)) if n is not None), None)
        get = _getter(jax, path, index)
        if name is None:
            unnamed.append((index, get))
        elif name not in fed and len(found) < _MOST_SCALARS:
            found.setdefault(_known_as(name), get)
    if "loss" not in found and unnamed:
        of_value = [get for index, get in unnamed if derived[index] == "value"]
        if of_value or len(unnamed) == 1:
            found["loss"] = of_value[0] if of_value else unnamed[0][1]
    for name, get in found.items():
        yield Pick(name, get)


def _known_as(name: str) -> str:
    if name in _LOSS:
        return "loss"
    return "grad_norm" if name in _NORMS else name


# --- what goes in ---------------------------------------------------------------------------


def _root(name: str) -> str:
    """The argument that a path begins with."""
    return _FIRST.split(name)[0]


def _state_roots(p: Any, given: Shapes) -> set[str]:
    """The arguments that come back: told apart in order, since a batch may happen to have a weight's shape."""
    left = Counter(given)
    roots: set[str] = set()
    by_root: dict[str, list[Any]] = {}
    for name, aval in zip(p.arg_names, p.in_avals, strict=False):
        by_root.setdefault(_root(name), []).append(aval)
    for root, avals in by_root.items():
        mine = shapes_of(avals)
        matched = mine & left
        if mine and matched.total() * 2 >= mine.total():
            roots.add(root)
            left -= matched
    return roots


def _packed(jax: Any, p: Any, given: Shapes, *, devices: bool) -> tuple[int, Callable[[Any], Any] | None]:
    """Samples and tokens of the batch among the arguments, and how to reach the array that tells them."""
    roots = _state_roots(p, given)
    names, avals = p.arg_names, p.in_avals
    batch = [
        (n, name, a)
        for n, (name, a) in enumerate(zip(names, avals, strict=False))
        if len(getattr(a, "shape", ())) > int(devices) and _root(name) not in roots and not _is_key(jax, a)
    ]
    if not batch:
        return -1, None
    index, _, first = batch[0]
    samples = math.prod(first.shape[: 1 + devices])
    whole = [
        (name, a)
        for _, name, a in batch
        if jax.numpy.issubdtype(a.dtype, jax.numpy.integer) and len(a.shape) == 2 + devices
    ]
    tokens = 0
    named = [a for name, a in whole if _TOKENS.search(name)]
    if named:
        tokens = math.prod(named[0].shape)
    elif len(whole) > 1 and whole[0][1].shape == whole[1][1].shape:
        tokens = math.prod(whole[0][1].shape)
    reach = None
    paths = _paths(jax, p.in_tree)
    if not devices and not tokens and len(paths) == len(avals):
        reach = _getter(jax, paths[index], index)
    return samples | tokens << 32, reach


def _served(given: Any, taken: Any, *, devices: bool) -> int:
    """Samples of a call that serves: the leading axis of what comes out, if something that goes in has it too."""
    axes = 1 + devices
    rows = next((tuple(a.shape[:axes]) for a in given if len(a.shape) >= axes), None)
    known = rows is not None and any(tuple(a.shape[:axes]) == rows for a in taken if len(a.shape) >= axes)
    return math.prod(rows) if known and rows else -1


def _is_key(jax: Any, aval: Any) -> bool:
    """Whether this is a random key, new-style or the old pair of words."""
    dtype = aval.dtype
    return jax.numpy.issubdtype(dtype, jax.dtypes.prng_key) or (
        str(dtype) == "uint32" and tuple(aval.shape)[-1:] == (2,)
    )


def _parameters(jax: Any, p: Any, given: Shapes, gradients: list[Any] | None, *, devices: bool) -> int | None:
    """How many weights are trained: of the gradients, else of what is called params or model; None if unknown."""

    def count(avals: list[Any]) -> int:
        return sum(math.prod(a.shape[int(devices) :]) for a in avals)

    if gradients is not None:
        return count(gradients)
    roots = _state_roots(p, given)
    floating = [
        (n, a)
        for n, a in zip(p.arg_names, p.in_avals, strict=False)
        if _root(n) in roots and jax.numpy.issubdtype(a.dtype, jax.numpy.floating)
    ]
    named = [a for n, a in floating if _WEIGHTS.search(n.partition("opt")[0])]
    return count(named) or None
