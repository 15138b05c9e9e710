"""Ordinary JAX programs, and what is told of them: every count exact, nothing of theirs changed."""

from __future__ import annotations

import functools
import itertools
import time
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otel_ml.testing import Captured, capture

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

X = np.random.default_rng(0).normal(size=(8, 4)).astype("f")
Y = np.random.default_rng(1).normal(size=(8, 2)).astype("f")


def weights() -> dict[str, jax.Array]:
    return {"w": jnp.full((4, 2), 0.1, "float32"), "b": jnp.zeros((2,), "float32")}


def loss_of(params: Any, x: Any, y: Any) -> Any:
    return jnp.mean((jnp.tanh(x @ params["w"] + params["b"]) - y) ** 2)


def descend(params: Any, grads: Any) -> Any:
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)


def step(params: Any, x: Any, y: Any) -> Any:
    loss, grads = jax.value_and_grad(loss_of)(params, x, y)
    return descend(params, grads), loss


@pytest.fixture(autouse=True)
def _fresh() -> None:
    """No test finds what another one has compiled."""
    jax.clear_caches()  # type: ignore[no-untyped-call]


def losses(seen: Captured) -> list[Any]:
    return [row.get("ml.training.loss") for row in seen.steps()]


def counts(seen: Captured) -> dict[str, Any]:
    """What the run's totals hold, apart from zeros and times."""
    totals = seen.totals
    assert totals is not None
    found = {
        "steps": totals.steps,
        "failed": totals.steps_failed,
        "samples": totals.samples,
        "micro_batches": totals.micro_batches,
        "evaluations": totals.evaluations,
        "inference": totals.inference.count,
        "recompiles": totals.recompiles,
        "errors": totals.errors,
    }
    return {k: v for k, v in found.items() if v}


# --- steps --------------------------------------------------------------------------------


def decorated() -> Callable[..., Any]:
    return jax.jit(step)


def donating() -> Callable[..., Any]:
    return functools.partial(jax.jit, donate_argnums=0)(step)


def ahead_of_time() -> Callable[..., Any]:
    return jax.jit(step).lower(weights(), X, Y).compile()


def with_aux() -> Callable[..., Any]:
    def forward(params: Any, x: Any, y: Any) -> Any:
        loss = loss_of(params, x, y)
        return loss, {"accuracy": jnp.float32(0.5), "count": 3}

    @jax.jit
    def train(params: Any, x: Any, y: Any) -> Any:
        (loss, aux), grads = jax.value_and_grad(forward, has_aux=True)(params, x, y)
        return descend(params, grads), (loss, aux)

    def call(params: Any, x: Any, y: Any) -> Any:
        params, (loss, _) = train(params, x, y)
        return params, loss

    return call


def inner_jit() -> Callable[..., Any]:
    gradient = jax.jit(jax.value_and_grad(loss_of))

    @jax.jit
    def train(params: Any, x: Any, y: Any) -> Any:
        loss, grads = gradient(params, x, y)
        return descend(params, grads), loss

    return train


def rematerialised() -> Callable[..., Any]:
    @jax.jit
    def train(params: Any, x: Any, y: Any) -> Any:
        loss, grads = jax.value_and_grad(jax.checkpoint(loss_of))(params, x, y)
        return descend(params, grads), loss

    return train


class Trainer:
    @functools.partial(jax.jit, static_argnums=0)
    def method(self, params: Any, x: Any, y: Any) -> Any:
        return step(params, x, y)


def method() -> Callable[..., Any]:
    return Trainer().method


WAYS = [decorated, donating, ahead_of_time, with_aux, inner_jit, rematerialised, method]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_one_call_is_one_step(way: Callable[[], Callable[..., Any]]) -> None:
    """A compiled function that trains is a step a call; its loss is in the record to the bit, its batch is counted."""
    computed = []
    with capture() as seen:
        train, params = way(), weights()
        for _ in range(12):
            params, loss = train(params, X, Y)
            computed.append(float(loss))

    assert counts(seen) == {"steps": 12, "samples": 96, "micro_batches": 12}
    assert losses(seen) == computed
    assert [row["ml.step.number"] for row in seen.steps()] == list(range(12))


def test_key_in_the_state() -> None:
    """A random key of JAX's own type is state like any other, and no weight."""

    @jax.jit
    def train(state: Any, x: Any, y: Any) -> Any:
        key, mine = jax.random.split(state["key"])
        noise = jax.random.normal(mine, x.shape)
        params, loss = step(state["params"], x + noise, y)
        return {"params": params, "key": key}, loss

    computed = []
    with capture() as seen:
        state: Any = {"params": weights(), "key": jax.random.key(0)}
        for _ in range(5):
            state, loss = train(state, X, Y)
            computed.append(float(loss))

    assert counts(seen) == {"steps": 5, "samples": 40, "micro_batches": 5}
    assert losses(seen) == computed
    assert [p["value"] for p in seen.metrics if p["name"] == "ml.model.parameters" and p["value"]] == [10]


def test_dropout() -> None:
    """A model of flax nnx with dropout, whose state holds keys, trains and is evaluated as any."""
    import optax
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.dropout = nnx.Dropout(0.1, rngs=rngs)
            self.linear = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.linear(self.dropout(x))

    def loss_of(net: Net, x: Any, y: Any) -> Any:
        return jnp.mean((net(x) - y) ** 2)

    @nnx.jit
    def train(net: Net, optimizer: Any, x: Any, y: Any) -> Any:
        loss, grads = nnx.value_and_grad(loss_of)(net, x, y)
        optimizer.update(net, grads)
        return loss

    evaluate = nnx.jit(loss_of)
    computed = []
    with capture() as seen:
        net = Net(nnx.Rngs(0))
        optimizer = nnx.Optimizer(net, optax.adam(1e-2), wrt=nnx.Param)
        for _ in range(2):
            net.train()  # type: ignore[no-untyped-call]
            for _ in range(4):
                computed.append(float(train(net, optimizer, X, Y)))  # noqa: PERF401 - one step after the other
            net.eval()  # type: ignore[no-untyped-call]
            float(evaluate(net, X, Y))

    assert counts(seen) == {"steps": 8, "samples": 64, "micro_batches": 8, "evaluations": 2}
    assert losses(seen) == computed


def test_equinox() -> None:
    """The samples of a step that equinox jits are counted, though it puts model, batch and state into one argument."""
    import equinox as eqx
    import optax

    adam = optax.adam(1e-2)

    def loss_of(model: Any, x: Any, y: Any) -> Any:
        return jnp.mean((jax.vmap(model)(x) - y) ** 2)

    @eqx.filter_jit
    def train(model: Any, x: Any, y: Any, state: Any) -> Any:
        loss, grads = eqx.filter_value_and_grad(loss_of)(model, x, y)  # type: ignore[no-untyped-call]
        updates, state = adam.update(grads, state, model)
        return loss, eqx.apply_updates(model, updates), state

    with capture() as seen:
        model: Any = eqx.nn.MLP(4, 2, 16, 1, key=jax.random.PRNGKey(0))
        state = adam.init(eqx.filter(model, eqx.is_array))
        for rows in (8, 8, 8, 6):
            loss, model, state = train(model, X[:rows], Y[:rows], state)

    assert counts(seen) == {"steps": 4, "samples": 30, "micro_batches": 4, "recompiles": 1}
    assert losses(seen)[-1] == float(loss)


@pytest.mark.parametrize("before", [False, True])
def test_what_cannot_be_read(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that we fail to read is not recorded, and fails once: not at each of its calls."""
    from otel_ml import errors
    from otel_ml.instrument.jax.programs import read

    train, evaluate, params = jax.jit(step), jax.jit(loss_of), weights()
    if before:
        for _ in range(2):
            evaluate(params, X, Y)
    with capture() as seen:
        monkeypatch.setattr(errors, "strict", False)

        def fails(jax: Any, p: Any, *args: Any, **kwargs: Any) -> Any:
            if p.params["name"] == "loss_of":
                raise AttributeError(p)
            return read(jax, p, *args, **kwargs)

        monkeypatch.setattr("otel_ml.instrument.jax.calls.read", fails)
        for _ in range(3):
            params, _ = train(params, X, Y)
            for _ in range(2):
                evaluate(params, X, Y)
        with pytest.raises(TypeError):
            evaluate(params, X.T, Y)

    assert counts(seen) == {"steps": 3, "samples": 24, "micro_batches": 3, "errors": 1}


def test_jitted_before() -> None:
    """A function that was compiled before we came is known by what JAX has cached of it."""
    train, params = jax.jit(step), weights()
    params, _ = train(params, X, Y)
    params, _ = train(params, X, Y)
    with capture() as seen:
        for _ in range(5):
            params, loss = train(params, X, Y)

    assert counts(seen) == {"steps": 5, "samples": 40, "micro_batches": 5}
    assert losses(seen)[-1] == float(loss)


def test_gradients_alone() -> None:
    """Gradients compiled, the update in Python: a step is one call, and no update is taken for an evaluation."""
    gradient = jax.jit(jax.value_and_grad(loss_of))
    with capture() as seen:
        params = weights()
        for _ in range(6):
            loss, grads = gradient(params, X, Y)
            params = descend(params, grads)

    assert counts(seen) == {"steps": 6, "samples": 48, "micro_batches": 6}
    assert losses(seen)[-1] == float(loss)


def test_gradients_and_update() -> None:
    """Gradients and update compiled apart: the update is the turn, two gradients before it are two micro-batches.

    In the first round nobody can know that an update is to come: its two gradients are two steps.
    """
    gradient, update = jax.jit(jax.value_and_grad(loss_of)), jax.jit(descend)
    with capture() as seen:
        params = weights()
        for _ in range(6):
            for _ in range(2):
                _, grads = gradient(params, X, Y)
            params = update(params, grads)

    assert counts(seen) == {"steps": 7, "samples": 96, "micro_batches": 12}


def test_op_by_op() -> None:
    """Training without jit: a step is one derivative, with the loss that it was taken of."""
    computed = []
    with capture() as seen:
        params = weights()
        for _ in range(4):
            loss, grads = jax.value_and_grad(loss_of)(params, X, Y)
            params = descend(params, grads)
            computed.append(float(loss))

    assert counts(seen) == {"steps": 4, "micro_batches": 4}
    assert losses(seen) == computed


def test_derivative_of_no_loss() -> None:
    """A derivative of something that is no scalar is no step."""
    with capture() as seen:
        _, pull = jax.vjp(jnp.tanh, jnp.ones(3))
        pull(jnp.ones(3))

    assert seen.totals is None


def test_gradient_of_a_jitted_function() -> None:
    """The same where what is differentiated is jitted."""
    inner = jax.jit(loss_of)
    with capture() as seen:
        params = weights()
        for _ in range(4):
            params = descend(params, jax.grad(inner)(params, X, Y))

    assert counts(seen) == {"steps": 4, "micro_batches": 4}


def test_many_steps_in_a_scan() -> None:
    """A function that scans over steps of its own is one step a call."""

    @jax.jit
    def train(params: Any, x: Any, y: Any) -> Any:
        return jax.lax.scan(lambda p, _: step(p, x, y), params, length=5)

    with capture() as seen:
        params = weights()
        for _ in range(3):
            params, _ = train(params, X, Y)

    assert counts(seen) == {"steps": 3, "samples": 24, "micro_batches": 3}


def test_two_that_train_in_turn() -> None:
    """Two training functions that take turns are one step a round, each with its loss."""

    def other(params: Any, x: Any, y: Any) -> Any:
        return step(params, x, y)

    first, second = jax.jit(step), jax.jit(other)
    with capture() as seen:
        a, b = weights(), weights()
        for _ in range(6):
            a, _ = first(a, X, Y)
            b, _ = second(b, X, Y)

    assert counts(seen) == {"steps": 6, "samples": 96, "micro_batches": 12}
    assert {"ml.step.loss.step", "ml.step.loss.other"} <= set(seen.steps()[-1])


def test_numbered_by_the_program() -> None:
    """A step has the number that the program's own annotation gives it, also after a checkpoint was restored."""
    from opentelemetry import trace

    train = jax.jit(step)
    with capture() as seen:
        params, tracer = weights(), trace.get_tracer("mine", tracer_provider=seen.tracer_provider)
        for number in (100, 101, 102, 200):
            with jax.profiler.StepTraceAnnotation("train", step_num=number):
                params, _ = train(params, X, Y)
                with tracer.start_as_current_span("logging"):
                    pass

    assert [row["ml.step.number"] for row in seen.steps()] == [100, 101, 102, 200]
    assert [s["attributes"]["ml.step.number"] for s in seen.spans if s["name"] == "logging"] == [100, 101, 102, 200]


def test_steps_do_not_overlap() -> None:
    """A step ends before the next one begins, also where that one is of a function that is traced for a while."""

    def other(params: Any, x: Any, y: Any) -> Any:
        time.sleep(0.3)
        return step(params, x, y)

    def numbered(params: Any, x: Any, y: Any) -> Any:
        time.sleep(0.3)
        with jax.profiler.StepTraceAnnotation("train", step_num=10):
            return step(params, x, y)

    params = weights()
    with capture() as seen:
        for function in (step, other, numbered):
            train = jax.jit(function)
            for _ in range(3):
                params, _ = train(params, X, Y)

    steps = [(s["start_unix_ns"], s["end_unix_ns"]) for s in seen.named("ml.step")]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(steps))
    assert counts(seen)["steps"] == 9


# --- what is no step ----------------------------------------------------------------------


def test_evaluation() -> None:
    """Calls of other compiled functions between steps are an evaluation; those that set the training up are nothing."""
    train, evaluate, make = jax.jit(step), jax.jit(loss_of), jax.jit(lambda key: jax.random.normal(key, (4, 2)))
    with capture() as seen:
        params = {**weights(), "w": make(jax.random.PRNGKey(0))}
        for _ in range(3):
            for _ in range(4):
                params, _ = train(params, X, Y)
            for _ in range(2):
                evaluate(params, X, Y).block_until_ready()

    assert counts(seen) == {"steps": 12, "samples": 96, "micro_batches": 12, "evaluations": 3}


def test_gradients_beside_a_training() -> None:
    """Gradients that are asked for between the steps of a function that trains are an evaluation."""
    train, saliency = jax.jit(step), jax.jit(jax.grad(lambda x, params: loss_of(params, x, Y)))
    with capture() as seen:
        params = weights()
        for _ in range(2):
            for _ in range(4):
                params, _ = train(params, X, Y)
            saliency(X, params)

    assert counts(seen) == {"steps": 8, "samples": 64, "micro_batches": 8, "evaluations": 2}


def test_gradients_of_the_test_set() -> None:
    """A function that yields gradients and is called on the test set too evaluates there: flax's own MNIST example."""
    apply, update, computed = jax.jit(jax.value_and_grad(loss_of)), jax.jit(descend), []
    with capture() as seen:
        params = weights()
        for _ in range(3):
            for n in range(4):
                loss, grads = apply(params, X + n, Y)
                params = update(params, grads)
                computed.append(float(loss))
            apply(params, X[:2], Y[:2])

    assert counts(seen) == {
        "steps": 12, "samples": 96, "micro_batches": 12, "evaluations": 3, "recompiles": 1,
    }  # fmt: skip
    assert losses(seen) == computed


def test_helper_before_every_step() -> None:
    """A compiled function that is called before every step is a part of the step, no evaluation."""
    train, augment = jax.jit(step), jax.jit(lambda x, n: x * (1 + n))
    with capture() as seen:
        params = weights()
        for n in range(8):
            params, _ = train(params, augment(X, float(n)), Y)

    assert counts(seen) == {"steps": 8, "samples": 64, "micro_batches": 8}


def test_inference() -> None:
    """In a process that never trains, calls are requests."""
    model = jax.jit(lambda params, x: jnp.tanh(x @ params["w"] + params["b"]))
    with capture() as seen:
        params = weights()
        for _ in range(20):
            model(params, X).block_until_ready()

    assert counts(seen) == {"inference": 20}


def test_requests_do_not_sleep() -> None:
    """What a thread sleeps between two requests is of neither: JAX says when a dispatch ended, not when it began."""
    model = jax.jit(lambda params, x: jnp.tanh(x @ params["w"] + params["b"]))
    with capture() as seen:
        params = weights()
        slept = 0.0
        for _ in range(4):
            model(params, X).block_until_ready()
            before = time.perf_counter()
            time.sleep(0.5)
            slept += time.perf_counter() - before

    (latency,) = [p for p in seen.metrics if p["name"] == "ml.inference.duration"]
    assert latency["count"] == 4
    assert latency["sum"] - latency["max"] < slept / 2  # without the first one, which was compiled


def test_failed_requests() -> None:
    """A call that raises is a request that failed: its arguments do not fit, or it is not to give a NaN and did."""
    model = jax.jit(lambda params, x: jnp.log(x @ params["w"] + params["b"]))
    with capture() as seen:
        params = weights()
        for _ in range(3):
            model(params, abs(X)).block_until_ready()
        for _ in range(2):
            with pytest.raises(TypeError, match="dot_general"):
                model(params, X.T)
        with jax.debug_nans(True), pytest.raises(FloatingPointError):
            model(params, -abs(X))

    requests = {p["attributes"]["ml.outcome"]: p["value"] for p in seen.metrics if p["name"] == "ml.inference.requests"}
    assert requests == {"ok": 3, "failed": 3}


@pytest.mark.parametrize(
    "transformed",
    [
        lambda f: jax.vmap(f, in_axes=(None, 0, 0)),
        lambda f: jax.grad(lambda *a: f(*a).sum()),
        lambda f: jax.jit(lambda *a: f(*a) * 2),
        lambda f: lambda *a: jax.lax.scan(lambda c, xy: (c, f(a[0], *xy)), 0.0, (a[1], a[2])),
        jax.checkpoint,
    ],
    ids=["vmap", "grad", "jit", "scan", "checkpoint"],
)
def test_outermost_calls_only(transformed: Callable[[Any], Any]) -> None:
    """A jitted function inside another's trace is not a call of its own."""
    inner = jax.jit(loss_of)
    with capture() as seen:
        for _ in range(3):
            jax.jit(transformed(inner))(weights(), X, Y)

    found = counts(seen)
    assert found.get("steps", 0) + found.get("inference", 0) == 3


# --- nothing is changed -------------------------------------------------------------------


def test_nothing_is_replaced() -> None:
    """The jitted function is the one that JAX made: type, repr, methods, pickling by name."""
    import copy
    import pickle

    with capture():
        train = jax.jit(step)
        assert type(train) is type(jax.jit(lambda x: x))
        assert repr(train).startswith("<PjitFunction of <function step")
        assert copy.copy(train) is train or type(copy.copy(train)) is type(train)
        assert pickle.loads(pickle.dumps(jax.block_until_ready)) is jax.block_until_ready  # noqa: S301 - our own
        assert train.lower(weights(), X, Y).as_text()
        train.clear_cache()  # type: ignore[attr-defined]


def test_nothing_is_left() -> None:
    """After the end every function of JAX's is the original."""
    from jax._src import api, config, monitoring, pjit, stages
    from jax._src.array import ArrayImpl
    from jax._src.interpreters import ad, pxla

    def standing() -> list[Any]:
        return [
            pjit._infer_params, pjit._run_python_pjit, pjit.jit_trace, ad.linearize, api.block_until_ready,
            jax.block_until_ready, vars(ArrayImpl)["_value"], ArrayImpl.block_until_ready,
            vars(stages.Compiled)["call"], pxla.MeshExecutable.create_cpp_call, api._post_hook_state.get_global(),
            config.debug_nans._update_global_hook, config.debug_infs._update_thread_local_hook,
            monitoring.get_event_listeners(), monitoring.get_event_time_span_listeners(),
            monitoring.get_event_duration_listeners(),
        ]  # fmt: skip

    before = standing()
    with capture():
        assert standing() != before
        jax.jit(step)(weights(), X, Y)
    assert standing() == before


def test_same_error() -> None:
    """What the program's function raises is the same object, and it is no call."""
    mine = ValueError("mine")

    @jax.jit
    def broken(x: Any) -> Any:
        raise mine

    with capture() as seen, pytest.raises(ValueError, match="mine") as raised:
        broken(X)
    assert raised.value is mine
    assert seen.totals is None


def test_debug_nans() -> None:
    """JAX's own use of its hook stays: NaNs are still found, and calls are still seen."""
    train = jax.jit(lambda x: jnp.log(x) * 1)
    with capture() as seen:
        train(X)
        with jax.debug_nans(True):
            with pytest.raises(FloatingPointError):
                train(X)
            assert float(train(jnp.abs(X))[0, 0]) == float(np.log(np.abs(X[0, 0])))
        train(X)
        train(X)

    assert counts(seen)["inference"] == 5


def test_without_jaxs_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """A JAX without a hook after its calls has a proxy around jax.jit instead, and the report says so."""
    from jax._src import api

    from otel_ml.instrument.jax import report

    monkeypatch.delattr(api, "_post_hook_state")
    computed = []
    with capture() as seen:
        assert "proxy" in report()["calls"]
        train, params = jax.jit(step), weights()
        tuned = functools.partial(jax.jit, donate_argnums=0)(step)
        for each in (train, train, train, tuned, tuned):
            params, loss = each(params, X, Y)
            computed.append(float(loss))
        assert train.lower(params, X, Y).as_text()

    assert counts(seen)["steps"] == 5
    assert losses(seen) == computed


def test_guarded_transfers() -> None:
    """A program that forbids all transfers has its losses recorded all the same, and no error of ours."""
    train, params = jax.jit(step), weights()
    x, y = jax.device_put(X), jax.device_put(Y)
    jax.config.update("jax_transfer_guard", "disallow")  # type: ignore[no-untyped-call]
    try:
        with capture() as seen:
            for _ in range(3):
                params, loss = train(params, x, y)
    finally:
        jax.config.update("jax_transfer_guard", "allow")  # type: ignore[no-untyped-call]

    assert counts(seen) == {"steps": 3, "samples": 24, "micro_batches": 3}
    assert losses(seen)[-1] == float(loss)


def test_cleared_listeners() -> None:
    """Whoever clears all of JAX's listeners has ours cleared until the drain's next turn, and no longer."""
    with capture() as seen:
        train, params = jax.jit(step), weights()
        for _ in range(3):
            params, _ = train(params, X, Y)
        jax.monitoring.clear_event_listeners()  # type: ignore[no-untyped-call]
        seen.turn()
        jax.jit(loss_of)(weights(), X, Y)

    compiled = {p["attributes"]["code.function.name"] for p in seen.metrics if p["name"] == "ml.compile.duration"}
    assert {"step", "loss_of"} <= compiled


def test_calls_by_function() -> None:
    """Every outermost call of a function of the program's is counted under its name, and none of a library's."""
    train, evaluate = jax.jit(step), jax.jit(loss_of)
    with capture() as seen:
        params = weights()
        for _ in range(7):
            params, _ = train(params, X, Y)
        for _ in range(3):
            evaluate(params, X, Y)

    found = {
        p["attributes"]["code.function.name"]: p["value"] for p in seen.metrics if p["name"] == "ml.function.calls"
    }
    assert found == {"step": 7, "loss_of": 3}


# --- compilations -------------------------------------------------------------------------


def again(seen: Captured) -> list[tuple[str, ...]]:
    """Each recompilation: function, kind and reason."""
    return [
        tuple(log["attributes"][k] for k in ("code.function.name", "ml.compile.reason.kind", "ml.compile.reason"))
        for log in seen.logs
        if log["event_name"] == "ml.compile.recompiled"
    ]  # fmt: skip


def test_retrace_names_the_argument() -> None:
    """A function traced again says which argument changed, and how."""

    @functools.partial(jax.jit, static_argnames="mode")
    def f(tree: Any, x: Any, mode: str = "a") -> Any:
        return x * tree["k"].sum()

    k = jnp.ones(3)
    with capture() as seen:
        f({"k": k}, X)
        f({"k": k}, X[:4])
        f({"k": k}, X[:4].astype("i"))
        f({"k": k}, X[:4].astype("i"), mode="b")
        f({"k": k, "more": k}, X[:4].astype("i"), mode="b")

    assert again(seen) == [
        ("f", "size", "x: float32[8,4] -> float32[4,4]"),
        ("f", "dtype", "x: float32[4,4] -> int32[4,4]"),
        ("f", "type", "new in the arguments: mode"),
        ("f", "type", "new in the arguments: tree['more']"),
    ]
    assert counts(seen)["recompiles"] == 4


def test_storm() -> None:
    """A function compiled again and again is an anomaly, told once, with the argument named."""
    f = jax.jit(lambda x: x * 2)
    with capture() as seen:
        for n in range(1, 14):
            f(np.ones(n, "f"))

    found = [log["attributes"] for log in seen.logs if log["event_name"] == "ml.anomaly"]
    assert [a["ml.anomaly.kind"] for a in found] == ["recompile_storm"]
    assert "most often for x;" in found[0]["ml.anomaly.evidence"]
    assert counts(seen)["recompiles"] == 12


# --- time and values ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "read", [jax.block_until_ready, float, lambda loss: loss.item()], ids=["block", "float", "item"]
)
def test_phases(read: Callable[[Any], Any]) -> None:
    """A step's time is host, wait, compile and residual, which sum to it; forward and backward are one program."""
    train = jax.jit(step)
    with capture() as seen:
        params = weights()
        for _ in range(5):
            params, loss = train(params, X, Y)
            read(loss)

    rows = seen.steps()
    phases = [{k.rpartition(".")[2]: v for k, v in row.items() if k.startswith("ml.step.phase.")} for row in rows]
    assert set(phases[0]) == {"compile", "host", "wait", "residual"}
    assert all(set(p) == {"host", "wait", "residual"} for p in phases[1:])
    for row, phase in zip(rows, phases, strict=True):
        assert sum(phase.values()) == pytest.approx(row["ml.step.duration"])


def test_named_values() -> None:
    """Scalars that come out under a name are values of the step; what is fed back in is not."""

    @jax.jit
    def train(state: Any, x: Any, y: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(state["params"], x, y)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        params = descend(state["params"], grads)
        return {"params": params, "scale": state["scale"] * 2}, {
            "loss": loss,
            "grad_norm": norm,
            "accuracy": loss * 0 + 0.25,
        }

    with capture() as seen:
        state: Any = {"params": weights(), "scale": jnp.float32(1)}
        for _ in range(3):
            state, metrics = train(state, X, Y)

    last = seen.steps()[-1]
    assert {k: v for k, v in last.items() if k.startswith(("ml.training", "ml.step.scalar"))} == {
        "ml.training.loss": float(metrics["loss"]),
        "ml.training.grad_norm": float(metrics["grad_norm"]),
        "ml.step.scalar.accuracy": 0.25,
    }


READS: dict[str, Callable[[Any], Any]] = {
    "none": lambda _: None,
    "one": lambda metrics: float(metrics["loss"]),
    "all": lambda metrics: [metrics[name].item() for name in ("grad_norm", "loss")],
    "later": lambda metrics: metrics["params"].block_until_ready(),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_values_that_the_program_reads(read: Callable[[Any], Any]) -> None:
    """Whatever the program reads of a step's values itself, and in whatever order, each of them is in its step."""

    @jax.jit
    def train(params: Any, x: Any, y: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params, x, y)
        params = descend(params, grads)
        return params, {"loss": loss, "grad_norm": jnp.sum(grads["w"] ** 2), "params": params["w"]}

    told, params = [], weights()
    with capture() as seen:
        for _ in range(100):
            params, metrics = train(params, X, Y)
            read(metrics)
            told.append(metrics)

    known = [(row["ml.training.loss"], row["ml.training.grad_norm"]) for row in seen.steps()[:64]]
    assert known == [(float(metrics["loss"]), float(metrics["grad_norm"])) for metrics in told[:64]]


def test_deleted_values_are_absent() -> None:
    """A loss that the program deletes is absent, and JAX is not asked for it: that would end the process."""
    train, params = jax.jit(step), weights()
    with capture() as seen:
        for n in range(4):
            params, loss = train(params, X, Y)
            if n % 2:
                loss.delete()

    assert [loss is None for loss in losses(seen)] == [False, True, False, True]


def test_donated_values_are_absent() -> None:
    """A loss that the program gives back to the device is absent and counted, never guessed."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train(params: Any, loss: Any, x: Any, y: Any) -> Any:
        value, grads = jax.value_and_grad(loss_of)(params, x, y)
        return descend(params, grads), value + 0 * loss

    with capture() as seen:
        params, loss = weights(), jnp.float32(0)
        for _ in range(4):
            params, loss = train(params, loss, X, Y)

    found = losses(seen)
    assert found[:-1] == [None] * 3
    assert found[-1] in (None, float(loss))


def test_operations_and_parameters() -> None:
    """The compiler's own count of operations is told for every call, and the weights that are trained are counted."""
    train = jax.jit(step)
    with capture() as seen:
        params = weights()
        for _ in range(3):
            params, _ = train(params, X, Y)

    cost: Any = jax.jit(step).lower(weights(), X, Y).compile().cost_analysis()
    points = {p["name"]: p["value"] for p in seen.metrics if p["name"] in ("ml.training.flops", "ml.memory.live")}
    assert points["ml.training.flops"] == 3 * cost["flops"]
    assert points["ml.memory.live"] > 0
    assert [p["value"] for p in seen.metrics if p["name"] == "ml.model.parameters" and p["value"]] == [10]


def test_grain() -> None:
    """A batch that grain gives is waited for, counted, and closes the step before it; both of its loaders."""
    import grain

    class Source:
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: Any) -> Any:
            return {"x": X[index % 8], "y": Y[index % 8]}

    dataset = grain.MapDataset.source(Source()).shuffle(seed=0).batch(8)
    sampler = grain.samplers.IndexSampler(40, seed=0, num_epochs=1)
    loader = grain.DataLoader(
        data_source=Source(), sampler=sampler, operations=[grain.transforms.Batch(8)], worker_count=0
    )
    train = jax.jit(step)
    for batches in (dataset, loader):
        with capture() as seen:
            params = weights()
            for batch in batches:
                params, _ = train(params, batch["x"], batch["y"])

        assert counts(seen) == {"steps": 5, "samples": 40, "micro_batches": 5}
        assert all("ml.step.phase.data_wait" in row for row in seen.steps())


def test_every_loss_of_slow_steps() -> None:
    """Below 400 steps a second every loss is known, also after the first 64 steps."""
    train, computed = jax.jit(step), []
    with capture() as seen:
        params = weights()
        for _ in range(90):
            params, loss = train(params, X, Y)
            computed.append(loss)
            time.sleep(0.0025)

    assert losses(seen) == [float(loss) for loss in computed]


# --- checkpoints --------------------------------------------------------------------------


def test_orbax(tmp_path: Path) -> None:
    """Saved behind the program, saved at once, restored, failed: each with what it took, where, and its bytes."""
    import orbax.checkpoint as ocp

    state = {"w": jnp.ones((64, 64), "float32")}
    train = jax.jit(step)
    with capture() as seen:
        params, _ = train(weights(), X, Y)
        with ocp.StandardCheckpointer() as behind:
            behind.save(tmp_path / "behind", state)
            behind.wait_until_finished()
            behind.restore(tmp_path / "behind", state)
            with pytest.raises(FileNotFoundError):
                behind.restore(tmp_path / "none", state)
        with ocp.PyTreeCheckpointer() as at_once:
            at_once.save(tmp_path / "at once", state)
        with ocp.CheckpointManager(tmp_path / "managed") as manager:
            manager.save(3, args=ocp.args.StandardSave(state))
            manager.wait_until_finished()
        train(params, X, Y)

    told = [
        (log["event_name"].rpartition(".")[2], log["attributes"]["ml.checkpoint.path"].rpartition(str(tmp_path))[2])
        for log in seen.logs
        if log["event_name"] and log["event_name"].startswith("ml.checkpoint")
    ]
    assert sorted(told) == [
        ("failed", "/none"), ("loaded", "/behind"),
        ("saved", "/at once"), ("saved", "/behind"), ("saved", "/managed/3"),
    ]  # fmt: skip
    known = [log["attributes"] for log in seen.logs if "ml.checkpoint.path" in log["attributes"]]
    sizes = {about["ml.checkpoint.path"].rpartition("/")[2]: about.get("ml.checkpoint.size", 0) for about in known}
    assert {name for name, size in sizes.items() if size >= 64 * 64 * 4} == {"behind", "at once", "3"}
    histograms = [p for p in seen.metrics if "checkpoint" in p["name"] and "count" in p]
    points = {(p["name"], tuple(p["attributes"].items())): p["count"] for p in histograms}
    assert points["ml.checkpoint.background.duration", ()] == 2
    assert points["ml.checkpoint.duration", (("ml.checkpoint.operation", "save"),)] == 3
    assert counts(seen)["steps"] == 2
    totals = seen.totals
    assert totals is not None
    assert (totals.checkpoints_saved, totals.checkpoints_loaded) == (3, 1)  # the one that failed is none


class Refused:
    """What orbax waits for behind the program, and never gets."""

    def result(self, timeout: float | None = None) -> None:
        """Fail."""
        raise OSError(28, "No space left on device")


def test_orbax_fails_behind(tmp_path: Path) -> None:
    """A save that fails behind the program is told of where orbax tells it, and the next one bears its own path."""
    import orbax.checkpoint as ocp

    class Handler(ocp.AsyncCheckpointHandler):  # type: ignore[misc]
        """Writes a file, or fails to once it has been asked to."""

        def __init__(self) -> None:
            self.fails = True

        async def async_save(self, directory: Any, **_: Any) -> Any:
            return [Refused()] if self.fails else []

        def save(self, directory: Any, **_: Any) -> None:
            raise NotImplementedError

        def restore(self, directory: Any, **_: Any) -> None:
            raise NotImplementedError

    train = jax.jit(step)
    with capture() as seen:
        params, _ = train(weights(), X, Y)
        handler = Handler()
        with ocp.AsyncCheckpointer(handler) as behind:
            behind.save(tmp_path / "lost")
            with pytest.raises(OSError, match="No space left"):
                behind.wait_until_finished()
            handler.fails = False
            behind.save(tmp_path / "kept")
        train(params, X, Y)

    told = {
        (log["event_name"], log["body"].replace(str(tmp_path), ""), log["attributes"].get("error.type"))
        for log in seen.logs
        if log["event_name"] and log["event_name"].startswith("ml.checkpoint")
    }
    assert told == {
        ("ml.checkpoint.failed", "checkpoint not saved: /lost: OSError", "OSError"),
        ("ml.checkpoint.saved", "checkpoint saved: /kept", None),
    }
    totals = seen.totals
    assert totals is not None
    assert (totals.steps, totals.checkpoints_saved) == (2, 1)
