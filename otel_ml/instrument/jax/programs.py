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
_VISITS = 200_000  # of variables, to learn where outputs come from: a tenth of a second or two
_MOST_SCALARS = 16
_LOSS = ("loss", "train_loss", "total_loss", "loss_value")
_NORMS = ("grad_norm", "gradient_norm", "grad_global_norm", "grads_norm", "gnorm")
_WEIGHTS = re.compile(r"(?:^|[.'\"\[])(?:params|model|weights|theta)(?:$|[.'\"\[\]])")
_TOKENS = re.compile(r"input_ids|tokens")
_FIRST = re.compile(r"[.\[]")
_ALL_IN_ONE = ("dynamic_donate[", "dynamic_nodonate[")

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
    if not state or not any(map(_is_transposed, _equations(jax, jaxpr))):
        if any(g and not (g - state) for g in gradients):
            return Program(DEVICE_UPDATE)
        return Program(DEVICE_CALL, packed=_served(closed.out_avals, p.in_avals, devices=devices))
    origins = _Origins(jax)
    shaped = [(v.aval, origins.of(jaxpr, n)) for n, v in enumerate(jaxpr.outvars) if _shape(v)]
    backs = [aval for aval, origin in shaped if origin == "gradient"]
    updates_inside = any(
        origin != "gradient" and (tuple(aval.shape), str(aval.dtype)) in state for aval, origin in shaped
    )
    packed, batch = _packed(jax, p, given, devices=devices)
    program = Program(
        DEVICE_TRAIN if updates_inside else DEVICE_GRAD,
        picks=tuple(_picks(jax, p, jaxpr, origins, devices=devices)),
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
    """All of them, those of a jaxpr that several equations share once."""
    left, met = [jaxpr], {id(jaxpr)}
    while left:
        for equation in left.pop().eqns:
            yield equation
            new = [inner for inner in _inner(jax, equation) if id(inner) not in met]
            met.update(map(id, new))
            left += new


def _is_transposed(equation: Any) -> bool:
    return "transpose(" in str(equation.source_info.name_stack)


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(getattr(variable.aval, "shape", ()))


class _Origins:
    """Where outputs come from: "gradient", "value" (of what was differentiated), or "".

    Whatever is found is kept: a jaxpr is met once for each of its outputs, an equation once at each depth. What is
    still asked for when the budget is spent is not known.
    """

    def __init__(self, jax: Any, budget: int = _VISITS) -> None:
        self._jax = jax
        self._producers: dict[int, dict[int, tuple[Any, int]]] = {}  # by jaxpr: what yields a variable, at which place
        self._own: dict[tuple[int, int], str] = {}  # by jaxpr and variable
        self._behind: dict[tuple[int, int, int], str] = {}  # by jaxpr, equation and depth
        self._budget = budget
        self.visits = 0

    def of(self, jaxpr: Any, index: int) -> str:
        """Tell it for one output of a jaxpr."""
        variable = jaxpr.outvars[index]
        return self._from(jaxpr, variable, 1 if _shape(variable) else _DEEP)

    def _from(self, jaxpr: Any, variable: Any, deep: int) -> str:
        self.visits += 1
        if self.visits > self._budget:
            return ""
        producers = self._producers.get(id(jaxpr))
        if producers is None:
            producers = self._producers[id(jaxpr)] = {
                id(v): (e, place) for e in jaxpr.eqns for place, v in enumerate(e.outvars)
            }
        equation, place = producers.get(id(variable), (None, 0))
        if equation is None:
            return ""
        own = self._own.get((id(jaxpr), id(variable)))
        if own is None:
            own = self._own[id(jaxpr), id(variable)] = self._of_equation(equation, place)
        if own or deep <= 1:
            return own
        key = id(jaxpr), id(equation), deep
        behind = self._behind.get(key)
        if behind is None:
            found = {self._from(jaxpr, v, deep - 1) for v in equation.invars}
            behind = self._behind[key] = "gradient" if "gradient" in found else "value" if "value" in found else ""
        return behind

    def _of_equation(self, equation: Any, place: int) -> str:
        """What the equation itself, or the jaxpr in it, says of one of its outputs."""
        stack = str(equation.source_info.name_stack)
        if "transpose(" in stack:
            return "gradient"
        if "jvp(" in stack:
            return "value"
        inner = (j for j in _inner(self._jax, equation) if len(j.outvars) == len(equation.outvars))
        return next((found for j in inner if (found := self.of(j, place))), "")


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


def _picks(jax: Any, p: Any, jaxpr: Any, origins: _Origins, *, devices: bool) -> Iterator[Pick]:
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
        only = unnamed[0][1] if len(unnamed) == 1 else None
        loss = only or next((get for index, get in unnamed if origins.of(jaxpr, index) == "value"), None)
        if loss is not None:
            found["loss"] = loss
    for name, get in found.items():
        yield Pick(name, get)


def _known_as(name: str) -> str:
    if name in _LOSS:
        return "loss"
    return "grad_norm" if name in _NORMS else name


# --- what goes in ---------------------------------------------------------------------------


def _root(name: str) -> str:
    """The argument that a path begins with; each array its own where equinox has put all of them into one."""
    return name if name.startswith(_ALL_IN_ONE) else _FIRST.split(name)[0]


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
