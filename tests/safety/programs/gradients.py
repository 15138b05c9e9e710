"""Autograd: custom functions, higher derivatives, hooks, graphs kept and freed, anomaly mode, odd arguments."""

import threading
import weakref

import torch
from cases import case, digest, main, nameless, said
from torch import nn
from torch.autograd import Function, forward_ad, functional


class Cube(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, out):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * out


class Twice(Function):
    """The new style, with a context set up apart."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x * 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, out):
        return out * 2


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def grads(model):
    return digest([p.grad for p in model.parameters()])


@case
def ways_to_call_backward():
    found = []
    x = torch.ones(3, requires_grad=True)
    for call in (
        lambda: (x * 2).sum().backward(),
        lambda: (x * 2).backward(torch.ones(3)),
        lambda: (x * 2).backward(gradient=torch.ones(3)),
        lambda: torch.autograd.backward((x * 2).sum()),
        lambda: torch.autograd.backward([x.sum(), (x * 3).sum()]),
        lambda: torch.autograd.backward((x.sum(), x * 3), (None, torch.ones(3))),
        lambda: torch.autograd.backward(tensors=(x * 2).sum(), grad_tensors=torch.tensor(2.0)),
        lambda: torch.autograd.backward((x * 2).sum(), inputs=[x]),
        lambda: (x * 2).sum().backward(inputs=x, retain_graph=True, create_graph=False),
        lambda: torch.autograd.backward([]),
        lambda: torch.autograd.backward(iter([x.sum()])),
        lambda: torch.autograd.backward(x * 2, torch.ones(3), None, False),
        lambda: (x * 2).backward(),
        lambda: torch.ones(1).backward(),
        lambda: torch.autograd.backward("x"),
        lambda: torch.autograd.backward(),
        lambda: (x * 2).sum().backward(torch.ones(5)),
        lambda: torch.autograd.backward(x.sum(), grad_variables=torch.tensor(1.0)),
    ):
        x.grad = None
        try:
            found.append([call(), digest(x.grad)])
        except Exception as error:
            found.append(said(error))
    return found


@case
def own_functions():
    x = torch.linspace(-1, 1, 5, requires_grad=True)
    Cube.apply(x).sum().backward()
    first = torch.autograd.grad(Cube.apply(x).sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), x)[0]
    mapped = torch.func.vmap(Twice.apply)(x)
    right = torch.autograd.gradcheck(Cube.apply, x.double().detach().requires_grad_())
    return [digest(x.grad, first, second, mapped), right]


@case
def double_backward():
    model, found = net(), []
    for _ in range(10):
        x = torch.randn(4, 3, requires_grad=True)
        out = model(x).sum()
        (slope,) = torch.autograd.grad(out, x, create_graph=True)
        penalty = slope.norm(2, dim=1).sub(1).square().mean()
        penalty.backward()
        found.append(penalty.item())
    y = net()(torch.ones(1, 3)).sum()
    y.backward(create_graph=True)
    return [digest(found), grads(model)]


@case
def higher_order():
    def f(x):
        return (x**4).sum()

    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y = f(x)
    for _ in range(3):
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    found = [digest(y, functional.hessian(f, x), functional.jacobian(lambda v: v**2, x), functional.vhp(f, x, x)[1])]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones(3), torch.full((3,), 2.0))
        found.append(digest(forward_ad.unpack_dual(net()(dual)).tangent))
    return found


@case
def kept_graphs():
    x = torch.ones(3, requires_grad=True)
    loss = (x * x).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    found = [digest(x.grad)]
    try:
        loss.backward()
    except RuntimeError as error:
        found.append(said(error))
    return found


@case
def nothing_is_kept():
    """What a graph held is gone once the graph is."""

    class Marker:
        pass

    class Holding(Function):
        @staticmethod
        def forward(ctx, x, marker):
            ctx.marker = marker
            return x * 1

        @staticmethod
        def backward(ctx, out):
            return out, None

    found = []
    x = torch.ones(3, requires_grad=True)
    for _ in range(3):
        marker = Marker()
        ref = weakref.ref(marker)
        loss = Holding.apply(x, marker).sum()
        loss.backward()
        del marker, loss
        found.append(ref() is None)
    return found


@case
def tensor_hooks():
    seen = []
    x = torch.ones(3, requires_grad=True)
    h = x * 2
    h.retain_grad()
    x.register_hook(lambda g: g * 2)
    h.register_hook(lambda g: seen.append(digest(g)))
    x.register_post_accumulate_grad_hook(lambda t: seen.append(digest(t.grad)))
    h.grad_fn.register_hook(lambda i, o: seen.append(["node", len(i), len(o)]))
    h.grad_fn.register_prehook(lambda o: seen.append(["before", len(o)]))
    h.sum().backward()
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    torch.autograd.graph.register_multi_grad_hook((a, b), lambda gs: seen.append([g is None for g in gs]))
    (a * b).sum().backward()

    def note(word):
        return lambda t: (seen.append(word), t)[1]

    with torch.autograd.graph.saved_tensors_hooks(note("pack"), note("unpack")):
        (a * b).sum().backward()
    with torch.autograd.graph.save_on_cpu():
        (a * b).sum().backward()
    return [seen, digest(x.grad, h.grad, a.grad, b.grad)]


@case
def failing_hooks():
    mine = ValueError("mine")

    def fail(grad):
        raise mine

    x = torch.ones(3, requires_grad=True)
    y = x * 2
    y.register_hook(fail)
    found = []
    for _ in range(3):
        try:
            y.sum().backward(retain_graph=True)
        except ValueError as error:
            found.append([error is mine, said(error)])
    return found


@case
def anomalies():
    found = []
    with torch.autograd.detect_anomaly():
        x = torch.zeros(2, requires_grad=True)
        try:
            torch.sqrt(x).mul(0).sum().backward()
        except RuntimeError as error:
            found.append(said(error))
        model = net()
        model(torch.ones(2, 3)).sum().backward()
        found.append(grads(model))
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        torch.sqrt(x).sum().backward()
    return [*found, digest(x.grad)]


@case
def switched_off():
    found = []
    x = torch.ones(3, requires_grad=True)
    with torch.no_grad():
        with torch.enable_grad():
            (x * 2).sum().backward()
        found.append((x * 2).requires_grad)
    with torch.autograd.set_grad_enabled(False):
        found.append((x * 2).requires_grad)
    with torch.inference_mode():
        y = x * 2
    try:
        (y * x).sum().backward()
    except RuntimeError as error:
        found.append(said(error))
    leaf = torch.ones(3, requires_grad=True)
    try:
        leaf.add_(1)
    except RuntimeError as error:
        found.append(said(error))
    return [*found, digest(x.grad)]


@case
def odd_losses():
    """Losses of every type and shape, non-finite ones, subclasses."""

    class Own(torch.Tensor):
        pass

    found = []
    for loss in (
        lambda x: x.sum().double(), lambda x: x.sum().bfloat16(), lambda x: x.sum().half(), lambda x: x.sum()[None],
        lambda x: x.sum().reshape(1, 1, 1), lambda x: x.sum() * float("nan"), lambda x: x.sum() / 0,
        lambda x: x.as_subclass(Own).sum(), lambda x: torch.complex(x, x).abs().sum(), lambda x: x[:0].sum(),
        lambda x: x.sum() * 0 + 3e38 * 10,
    ):  # fmt: skip
        x = torch.ones(3, requires_grad=True)
        value = loss(x)
        value.backward()
        found.append([type(value).__name__, str(value.dtype), digest(value, x.grad)])
    return found


@case
def inside_transforms():
    """A backward under vmap and grad of torch.func."""
    found = []

    def per_sample(x):
        return torch.func.grad(lambda v: (v**2).sum())(x)

    found.append(digest(torch.func.vmap(per_sample)(torch.ones(3, 2))))

    def backward_inside(x):
        y = (x * 2).sum()
        y.backward()
        return y

    for transform in (torch.func.vmap, torch.func.grad):
        try:
            found.append(digest(transform(backward_inside)(torch.ones(3, 2, requires_grad=True))))
        except Exception as error:
            found.append(said(error))
    return found


@case
def accumulation():
    model, found = net(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(12):
        (model(torch.ones(2, 3)).sum() / 3).backward()
        if step % 3 == 2:
            found.append(grads(model))
            optimizer.step()
            optimizer.zero_grad(set_to_none=step % 2 == 0)
    return [found, digest(model.state_dict())]


@case
def in_backward_of_a_backward():
    """A backward that runs inside another's node."""

    class Inner(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.clone()

        @staticmethod
        def backward(ctx, out):
            (x,) = ctx.saved_tensors
            with torch.enable_grad():
                y = x.detach().requires_grad_()
                (y**2).sum().backward()
            return out * y.grad

    x = torch.arange(3.0, requires_grad=True)
    Inner.apply(x).sum().backward()
    return digest(x.grad)


@case
def several_threads():
    model, models, outs = net(), [net() for _ in range(4)], {}

    def work(number):
        mine = models[number]
        for _ in range(10):
            mine(torch.full((2, 3), float(number))).sum().backward()
        outs[number] = grads(mine)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [[outs[n] for n in range(4)], grads(model)]


@case
def graph_of_a_loss():
    """The graph that autograd built, node by node."""
    model = net()
    for _ in range(10):
        loss = model(torch.ones(2, 3)).sum()
    nodes, todo = [], [loss.grad_fn]
    while todo:
        node = todo.pop()
        nodes.append(type(node).__name__)
        todo += [n for n, _ in node.next_functions if n is not None]
    return [nodes, nameless(loss), loss.is_leaf, loss._version]


@case
def losses_that_tell():
    """A loss whose class sees every function and has methods of its own, and a list of such that tells who reads it."""
    asked = []

    class Telling(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            asked.append(getattr(func, "__name__", str(func)))
            return super().__torch_function__(func, types, args, kwargs or {})

        def item(self):
            asked.append("item")
            return super().item()

    class Losses(list):
        def __iter__(self):
            asked.append("iter")
            return super().__iter__()

    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for kind in ("one", "several"):
        for _ in range(6):
            optimizer.zero_grad()
            loss = model(torch.ones(2, 4).as_subclass(Telling)).square().mean()
            if kind == "one":
                loss.backward()
            else:
                torch.autograd.backward(Losses([loss, loss * 2]))
            optimizer.step()
    return [asked, digest(model.state_dict())]


main()
