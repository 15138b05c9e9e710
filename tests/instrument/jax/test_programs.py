"""What a jaxpr says of a function, and what it takes to read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import pytest

from otel_ml.instrument.jax.programs import _DEEP, _equations, _inner, _Origins, read

if TYPE_CHECKING:
    from collections.abc import Callable

W, S = jnp.ones(4), jnp.float32(1.0)


def loss_of(w: Any) -> Any:
    return (w**2).sum()


def tangled(levels: int, s: Any) -> Any:
    """A scalar with two ways back at each of its equations, through loops in loops."""
    for _ in range(3):
        s = jax.lax.select(s > 0, s * 0.9 + s, s - 1.0)
    if levels:
        s = s * jax.lax.while_loop(lambda c: c < 3.0, lambda c: tangled(levels - 1, c), s) + s
    return s


def train(w: Any, s: Any) -> Any:
    loss, grad = jax.value_and_grad(loss_of)(w)
    return w - 0.1 * grad, loss / 2, jnp.where(s > loss, s, grad.sum()), tangled(1, s), s > 0


def in_a_loop(w: Any, s: Any) -> Any:
    return jax.lax.scan(lambda c, _: (train(c, s)[0], train(c, s)[1:3]), w, length=3)


def gradients(w: Any, s: Any) -> Any:
    loss, grad = jax.jit(jax.value_and_grad(loss_of))(w)
    return grad, jnp.tanh(loss), {"norm": jnp.sqrt((grad**2).sum()), "scale": s}


def branches(w: Any, s: Any) -> Any:
    return jax.lax.cond(s > 0, jax.grad(loss_of), lambda w: w, w), jax.checkpoint(loss_of)(w)


def traced(function: Callable[..., Any]) -> Any:
    return jax.jit(function).trace(W, S).jaxpr.jaxpr


def plainly(jaxpr: Any, variable: Any, deep: int) -> str:
    """The rule for where a variable comes from, followed without a thought to what it costs."""
    equation = next((e for e in jaxpr.eqns if any(v is variable for v in e.outvars)), None)
    if equation is None:
        return ""
    stack = str(equation.source_info.name_stack)
    if "transpose(" in stack or "jvp(" in stack:
        return "gradient" if "transpose(" in stack else "value"
    place = next(n for n, v in enumerate(equation.outvars) if v is variable)
    for inner in _inner(jax, equation):
        if len(inner.outvars) == len(equation.outvars):
            found = plainly(inner, inner.outvars[place], depth(inner.outvars[place]))
            if found:
                return found
    behind = {plainly(jaxpr, v, deep - 1) for v in equation.invars} if deep > 1 else set()
    return next((known for known in ("gradient", "value") if known in behind), "")


def depth(variable: Any) -> int:
    return 1 if variable.aval.shape else _DEEP


@pytest.mark.parametrize("function", [train, in_a_loop, gradients, branches], ids=lambda f: f.__name__)
def test_origins(function: Callable[..., Any]) -> None:
    """What is kept of an earlier answer changes none: each output is of the origin that the plain rule gives it."""
    jaxpr = traced(function)
    origins = _Origins(jax)

    found = [origins.of(jaxpr, n) for n in range(len(jaxpr.outvars))]

    assert found == [plainly(jaxpr, v, depth(v)) for v in jaxpr.outvars]
    assert set(found) & {"gradient", "value"}


def test_origins_in_nested_loops() -> None:
    """Looking for an origin takes as many more visits as there are more equations, however loops are nested."""
    visits = []
    for levels in (4, 8, 16):
        jaxpr = traced(lambda w, s, levels=levels: (w - jax.grad(loss_of)(w), tangled(levels, s)))
        origins = _Origins(jax)
        assert origins.of(jaxpr, 1) == ""
        visits.append(origins.visits)

    assert visits[2] - visits[1] == 2 * (visits[1] - visits[0])
    assert visits[2] < 10_000


def test_equations_of_shared_programs() -> None:
    """A program that calls another twice, which calls another twice, and so on, has each one's equations read once."""

    def doubled(inner: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(lambda s: inner(s) + inner(s))

    function: Callable[..., Any] = jax.jit(jnp.sin)
    for _ in range(16):
        function = doubled(function)

    assert len(list(_equations(jax, traced(lambda _, s: function(s))))) < 100


def test_budget() -> None:
    """When the budget for it is spent, an origin is not known."""
    jaxpr = traced(train)

    assert _Origins(jax, budget=100).of(jaxpr, 1) == "value"
    assert _Origins(jax, budget=1).of(jaxpr, 1) == ""


def test_what_nobody_asks_for() -> None:
    """The origin of an output that can be neither a loss nor a gradient is not looked for."""
    asked = []

    class Counting(_Origins):
        def of(self, jaxpr: Any, index: int) -> str:
            asked.append(jaxpr.outvars[index].aval.dtype.name)
            return super().of(jaxpr, index)

    def function(w: Any, s: Any) -> Any:
        return w - jax.grad(loss_of)(w), s > 0, jnp.int32(s), s.astype("uint32"), {"scale": s}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("otel_ml.instrument.jax.programs._Origins", Counting)
        p, _ = jax._src.pjit._infer_params(function, jax.jit(function)._jit_info, (W, S), {})  # type: ignore[attr-defined]
        assert [pick.name for pick in read(jax, p, [], devices=False).picks] == ["scale"]

    assert asked == ["float32"]
