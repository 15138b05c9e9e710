"""What JAX offers, used as programs use it: results, types, counts of compilations and what is raised."""

import copy
import functools
import io
import logging
import pickle
import threading
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cases import case, main, nameless

X = np.random.default_rng(0).normal(size=(16, 8)).astype("f")
Y = np.random.default_rng(1).normal(size=(16, 2)).astype("f")


def bits(tree):
    """Every array of a tree as text, to the bit."""
    return [np.asarray(leaf).tobytes().hex()[:64] + str(np.asarray(leaf).dtype) for leaf in jax.tree.leaves(tree)]


def fresh():
    return {"w": jnp.full((8, 2), 0.1, "float32"), "b": jnp.zeros((2,), "float32")}


def loss_of(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["w"] + params["b"]) - y) ** 2)


def descend(params, x, y):
    loss, grads = jax.value_and_grad(loss_of)(params, x, y)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), loss


def trained(step, steps=20):
    params, losses = fresh(), []
    for _ in range(steps):
        params, loss = step(params, X, Y)
        losses.append(loss)
    return bits(params), bits(losses)


@case
def plain_jit():
    return trained(jax.jit(descend))


@case
def donation():
    step = functools.partial(jax.jit, donate_argnums=0)(descend)
    first = fresh()
    step(first, X, Y)
    return trained(step), [leaf.is_deleted() for leaf in jax.tree.leaves(first)]


@case
def with_adam():
    optimizer = optax.MultiSteps(optax.adam(1e-2), 2)

    @jax.jit
    def step(state, x, y):
        params, inner = state
        loss, grads = jax.value_and_grad(loss_of)(params, x, y)
        updates, inner = optimizer.update(grads, inner, params)
        return (optax.apply_updates(params, updates), inner), loss

    state = fresh(), optimizer.init(fresh())
    for _ in range(10):
        state, loss = step(state, X, Y)
    return bits(state), bits(loss)


@case
def op_by_op():
    return trained(descend, steps=3)


@case
def ahead_of_time():
    lowered = jax.jit(descend).lower(fresh(), X, Y)
    compiled = lowered.compile()
    return trained(compiled), nameless(type(compiled)), sorted(compiled.cost_analysis())[:3]


@case
def exported():
    from jax import export

    known = export.export(jax.jit(loss_of))(fresh(), X, Y)
    return bits(known.call(fresh(), X, Y)), str(known.mlir_module())[:2000]


@case
def transformations():
    f = jax.jit(loss_of)
    tangents = jax.tree.map(jnp.ones_like, fresh())
    return [
        bits(jax.vmap(f, in_axes=(None, 0, 0))(fresh(), X, Y)),
        bits(jax.grad(f)(fresh(), X, Y)),
        bits(jax.jvp(lambda p: f(p, X, Y), (fresh(),), (tangents,))),
        bits(jax.hessian(lambda b: f({**fresh(), "b": b}, X, Y))(jnp.zeros(2))),
        bits(jax.lax.scan(lambda c, xy: (c, f(fresh(), *xy)), 0.0, (X, Y))),
        bits(jax.checkpoint(f)(fresh(), X, Y)),
        str(jax.make_jaxpr(f)(fresh(), X, Y))[:2000],
        str(jax.eval_shape(f, fresh(), X, Y)),
    ]


@case
def custom_derivative():
    @jax.custom_vjp
    def clip(x):
        return x

    clip.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -0.1, 0.1),))
    return bits(jax.jit(jax.grad(lambda x: clip(x**2).sum()))(jnp.arange(4.0)))


@case
def spellings():
    class Model:
        @functools.partial(jax.jit, static_argnums=0)
        def method(self, x):
            return x * 2

        @staticmethod
        @jax.jit
        def static(x):
            return x * 3

        def __call__(self, x):
            return x * 4

    @functools.partial(jax.jit, static_argnames=("mode",))
    def named(x, mode="a"):
        return x + len(mode)

    m = Model()
    functions = [
        m.method,
        Model.static,
        jax.jit(m),
        jax.jit(functools.partial(jnp.add, 1.0)),
        named,
        jax.jit(lambda x: x),
    ]
    return [(bits(f(X)), bits(f(X)), bits(f(X[:2]))) for f in functions], bits(named(X, mode="bb"))


@case
def looks():
    f = jax.jit(descend)
    alike = jax.jit(descend)
    return {
        "type": str(type(f)),
        "repr": nameless(f),
        "name": (f.__name__, f.__qualname__, f.__module__),
        "wrapped": f.__wrapped__ is descend,
        "hash": hash(f) == hash(f),
        "equal": (f == f, f == alike),  # noqa: PLR0124
        "weak": weakref.ref(f)() is f,
        "copy": (type(copy.copy(f)).__name__, type(copy.deepcopy(f)).__name__),
        "attributes": sorted(a for a in dir(f) if not a.startswith("__")),
        "array": (str(type(jnp.ones(2))), repr(jnp.ones(2)), sorted(vars(type(jnp.ones(2))))[:400]),
        "pickled": bits(pickle.loads(pickle.dumps(jnp.arange(3)))),
    }


@case
def cached():
    f = jax.jit(loss_of)
    sizes = []
    for x, y in ((X, Y), (X, Y), (X[:4], Y[:4]), (X.astype("d"), Y)):
        f(fresh(), x, y)
        sizes.append(f._cache_size())
    f.clear_cache()
    sizes.append(f._cache_size())
    f(fresh(), X, Y)
    return sizes


@case
def compilations():
    """How often each function is traced and compiled, by JAX's own log."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger("jax").addHandler(handler)
    try:
        with jax.log_compiles():
            step = jax.jit(descend)
            for x, y in ((X, Y), (X, Y), (X[:4], Y[:4])):
                params, _ = step(fresh(), x, y)
            jax.clear_caches()
            step(params, X, Y)
            jax.jit(loss_of)(params, X, Y)
    finally:
        logging.getLogger("jax").removeHandler(handler)
    lines = [line.partition(" in ")[0] for line in stream.getvalue().splitlines()]
    return [nameless(line) for line in lines if line.startswith(("Compiling", "Finished"))]


@case
def leaks():
    with jax.checking_leaks():
        return trained(jax.jit(descend), steps=3)


@case
def guarded():
    step, params = jax.jit(descend), fresh()
    x, y = jax.device_put(X), jax.device_put(Y)
    with jax.transfer_guard("disallow"):
        for _ in range(5):
            params, loss = step(params, x, y)
    return bits(params), bits(loss)


@case
def nans():
    f = jax.jit(lambda x: jnp.log(x) * 2)
    told = [bits(f(X))]
    for guard in (jax.debug_nans, jax.debug_infs):
        with guard(True):
            for value in (np.abs(X) + 1, X, X * 0):
                try:
                    told.append(bits(f(value)))
                except FloatingPointError as error:
                    told.append(nameless(error).splitlines()[0])
    jax.config.update("jax_debug_nans", True)
    try:
        f(X)
    except FloatingPointError as error:
        told.append(nameless(error).splitlines()[0])
    finally:
        jax.config.update("jax_debug_nans", False)
    return [*told, bits(f(X))]


@case
def without_jit():
    with jax.disable_jit():
        return trained(jax.jit(descend), steps=2)


@case
def callbacks():
    heard = []

    @jax.jit
    def f(x):
        jax.debug.callback(lambda v: heard.append(float(v)), x.sum())
        return jax.pure_callback(lambda v: np.asarray(v) * 2, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    out = [bits(f(X)) for _ in range(3)]
    jax.effects_barrier()
    return out, heard


@case
def threads():
    step = jax.jit(descend)
    found = {}

    def work(number):
        found[number] = trained(step, steps=50)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [found[n] for n in range(4)]


@case
def errors():
    @jax.jit
    def branches(x):
        return 1 if x > 0 else 2

    @functools.partial(jax.jit, static_argnums=0)
    def unhashable(x):
        return 1

    def told(call):
        try:
            call()
        except Exception as error:
            return type(error).__name__, nameless(error).splitlines()[0]
        return None

    given_away = jnp.ones(3)
    jax.jit(lambda x: x + 1, donate_argnums=0)(given_away)
    return [
        told(lambda: branches(1.0)),
        told(lambda: unhashable([1])),
        told(lambda: jax.jit(descend)(fresh(), X, Y[:3])),
        told(lambda: jax.jit(loss_of)(fresh(), "x", Y)),
        told(lambda: jax.grad(jax.jit(descend))(fresh(), X, Y)),
        told(lambda: float(given_away[0])),
        told(lambda: given_away.block_until_ready()),
    ]


@case
def reading():
    a = jax.jit(lambda x: x * 2)(X)
    return [
        float(a[0, 0]), bool(a.sum() > 1e9), repr(a[0, :2]), a[0].tolist(), bits(jax.device_get(a)),
        bits(np.asarray(a)),
        a[0, 0].item(), a.block_until_ready() is a, jax.block_until_ready({"a": a, "b": [a, 3]})["b"][1],
        format(a[0, 0], ".3f"),
    ]  # fmt: skip


@case
def listeners():
    """A program's own listeners hear what they heard, and may clear them all."""
    heard = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, _, **__: heard.append(event.rpartition("/")[2]))
    jax.jit(lambda x: x * 5)(X)
    before = list(heard)
    jax.monitoring.clear_event_listeners()
    jax.jit(lambda x: x * 6)(X)
    return before, heard == before


main()
