"""Every optimizer and scheduler of torch, and optimizers of the user's own."""

import copy
import io
import pickle

import torch
from cases import case, digest, main, said, train
from torch import nn, optim


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def batch():
    return (torch.randn(3, 4),)


CLASSES = [c for c in vars(optim).values() if isinstance(c, type) and issubclass(c, optim.Optimizer)]
ALL = sorted((c for c in CLASSES if c is not optim.Optimizer), key=lambda c: c.__name__)


@case
def all_of_torch():
    found = {}
    for kind in ALL:
        name = kind.__name__
        if name in ("LBFGS", "SparseAdam"):
            continue
        for options in ({}, {"foreach": False}, {"foreach": True}, {"fused": True}, {"maximize": True}):
            net = nn.Linear(4, 4, bias=False) if name == "Muon" else model()
            try:
                found[f"{name} {options}"] = train(net, lambda p, k=kind, o=options: k(p, lr=0.01, **o), batch)
            except Exception as error:
                found[f"{name} {options}"] = said(error)
    return found


@case
def sparse():
    embedding = nn.Embedding(10, 4, sparse=True)
    return train(embedding, lambda p: optim.SparseAdam(p), lambda: (torch.randint(0, 10, (2, 3)),))


@case
def lbfgs():
    net = model()
    x, y = torch.randn(8, 4), torch.randn(8, 1)
    optimizer = optim.LBFGS(net.parameters(), max_iter=4, line_search_fn="strong_wolfe")
    calls, losses = [], []

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(x), y)
        loss.backward()
        calls.append(1)
        return loss

    for _ in range(4):
        losses.append(optimizer.step(closure).item())
    return [len(calls), digest(losses), digest(net.state_dict())]


@case
def closures():
    """Any optimizer may be given a closure, and returns what it returned."""
    found = {}
    for kind in (optim.SGD, optim.Adam, optim.RMSprop):
        net = model()
        optimizer = kind(net.parameters(), lr=0.01)

        def closure(net=net, optimizer=optimizer):
            optimizer.zero_grad()
            loss = net(torch.ones(2, 4)).sum()
            loss.backward()
            return loss

        out = [optimizer.step(closure), optimizer.step(closure=closure), optimizer.step(None), optimizer.step()]
        found[kind.__name__] = [digest(o) for o in out]
    return found


@case
def schedulers():
    lrs = optim.lr_scheduler
    makes = {
        "step": lambda o: lrs.StepLR(o, 3),
        "cosine": lambda o: lrs.CosineAnnealingLR(o, 5),
        "one cycle": lambda o: lrs.OneCycleLR(o, 0.1, total_steps=13),
        "cyclic": lambda o: lrs.CyclicLR(o, 0.01, 0.1, 2, cycle_momentum=False),
        "plateau": lambda o: lrs.ReduceLROnPlateau(o, patience=1),
        "lambda": lambda o: lrs.LambdaLR(o, lambda e: 0.9**e),
        "chained": lambda o: lrs.ChainedScheduler([lrs.ExponentialLR(o, 0.9), lrs.ConstantLR(o, 0.5, 4)]),
        "sequential": lambda o: lrs.SequentialLR(o, [lrs.LinearLR(o, 0.1, 1.0, 3), lrs.ExponentialLR(o, 0.9)], [3]),
        "swa": lambda o: optim.swa_utils.SWALR(o, 0.05),
    }
    found = {}
    for name, make in makes.items():
        net = model()
        optimizer = optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        scheduler = make(optimizer)
        rates = []
        for _ in range(12):
            optimizer.zero_grad()
            net(torch.ones(2, 4)).sum().backward()
            optimizer.step()
            scheduler.step(1.0) if name == "plateau" else scheduler.step()
            rates.append(optimizer.param_groups[0]["lr"])
        found[name] = [repr(rates), digest(scheduler.state_dict())]
    return found


@case
def scheduler_out_of_order():
    """A warning of torch, when the scheduler steps first: it looks for a mark on `optimizer.step`."""
    net = model()
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    scheduler = optim.lr_scheduler.StepLR(optimizer, 1)
    scheduler.step()
    scheduler.step()
    optimizer.step()
    late = optim.SGD(net.parameters(), lr=0.1)
    late.step()
    optim.lr_scheduler.StepLR(late, 1).step()
    return [type(optimizer.step).__name__, hasattr(optimizer.step, "_wrapped_by_lr_sched"), sorted(vars(optimizer))]


@case
def state():
    found = {}
    for kind in (optim.SGD, optim.Adam, optim.Adagrad):
        net = model()
        optimizer = kind(net.parameters(), lr=0.1)
        for _ in range(3):
            net(torch.ones(2, 4)).sum().backward()
            optimizer.step()
        seen = []
        optimizer.register_state_dict_pre_hook(lambda o: seen.append("pre"))
        optimizer.register_load_state_dict_post_hook(lambda o: seen.append("post"))
        saved = optimizer.state_dict()
        out = io.BytesIO()
        torch.save(saved, out)
        out.seek(0)
        other = kind(net.parameters(), lr=0.5)
        other.load_state_dict(torch.load(out))
        optimizer.load_state_dict(saved)
        twin = pickle.loads(pickle.dumps(optimizer))
        twin.step()
        third = copy.deepcopy(optimizer)
        third.step()
        found[kind.__name__] = [
            digest(saved), digest(other.state_dict()), digest(twin.state_dict()), digest(third.state_dict()), seen,
            repr(optimizer), sorted(vars(optimizer)), sorted(vars(twin)), sorted(vars(kind)), sorted(dir(optimizer)),
        ]  # fmt: skip
    return found


@case
def user_hooks():
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    seen = []
    glob = [
        register_optimizer_step_pre_hook(lambda o, a, k: seen.append(["global pre", len(a), sorted(k)])),
        register_optimizer_step_post_hook(lambda o, a, k: seen.append(["global post", len(a), sorted(k)])),
    ]
    net = model()
    optimizer = optim.Adam(net.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda o, a, k: seen.append(["pre", len(a), sorted(k)]))
    optimizer.register_step_post_hook(lambda o, a, k: seen.append(["post", len(a), sorted(k)]))
    for _ in range(3):
        net(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        optimizer.step(closure=None)
    for handle in glob:
        handle.remove()

    def replace(o, a, k):
        return ((o, lambda: torch.tensor(7.0)), {})

    other = optim.SGD(net.parameters(), lr=0.1)
    other.register_step_pre_hook(replace)
    return [seen, digest(other.step()), digest(net.state_dict())]


class Own(optim.Optimizer):
    """An optimizer as people write them."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
        self.turns = 0

    @torch.no_grad()
    def step(self, closure=None, *, scale=1.0):
        """Take a turn."""
        self.turns += 1
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(scale * group["lr"] * p.grad.sign())
        return self.turns


class OnTop(Own):
    def step(self, closure=None):
        super().step(closure, scale=0.5)
        return super().step(closure)

    def zero_grad(self, set_to_none=False):
        super().zero_grad(set_to_none)


class OnAdam(optim.Adam):
    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] *= 0.9
        return super().step(closure)


class NoStep(optim.SGD):
    """Inherits step as it is."""


@case
def of_the_users_own():
    found = {}
    for kind in (Own, OnTop, OnAdam, NoStep):
        net = model()
        optimizer = kind(net.parameters(), lr=0.1)
        returned = []
        for _ in range(12):
            optimizer.zero_grad()
            net(torch.ones(2, 4)).sum().backward()
            returned.append(optimizer.step())
        found[kind.__name__] = [
            digest(net.state_dict()), digest(returned), kind.step.__name__, kind.step.__qualname__, kind.step.__doc__,
            getattr(kind.step, "hooked", None), "step" in vars(kind), sorted(vars(kind)), sorted(vars(optimizer)),
        ]  # fmt: skip
    return found


@case
def wrappers():
    """An optimizer that only holds another, a step put on the instance, a base class that was never initialised."""

    class Holding(optim.Optimizer):
        def __init__(self, inner):
            self.inner = inner

        @property
        def param_groups(self):
            return self.inner.param_groups

        @property
        def state(self):
            return self.inner.state

        def step(self, closure=None):
            return self.inner.step(closure)

        def zero_grad(self, set_to_none=True):
            return self.inner.zero_grad(set_to_none)

    class Plain:
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

    found = []
    for kind in (Holding, Plain):
        net = model()
        optimizer = kind(optim.SGD(net.parameters(), lr=0.1))
        for _ in range(12):
            optimizer.zero_grad()
            net(torch.ones(2, 4)).sum().backward()
            optimizer.step()
        found.append(digest(net.state_dict()))
    net, calls = model(), []
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    inner = optimizer.step
    optimizer.step = lambda *a, **k: (calls.append(1), inner(*a, **k))[1]
    for _ in range(3):
        net(torch.ones(2, 4)).sum().backward()
        optimizer.step()
    unbound = optim.SGD.step
    unbound(optimizer)
    return [*found, digest(net.state_dict()), len(calls), type(inner).__name__, inner.__self__ is optimizer]


@case
def in_backward():
    """An optimizer a parameter, stepping inside backward."""
    net = model()
    each = {p: optim.SGD([p], lr=0.1) for p in net.parameters()}

    def step(p):
        each[p].step()
        each[p].zero_grad()

    for p in net.parameters():
        p.register_post_accumulate_grad_hook(step)
    losses = []
    for _ in range(12):
        loss = net(torch.ones(2, 4)).sum()
        loss.backward()
        losses.append(loss.item())
    return [digest(losses), digest(net.state_dict())]


@case
def amp():
    found = {}
    for unscale in (False, True):
        net = model()
        optimizer = optim.SGD(net.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=2)
        losses, scales, returned = [], [], []
        for step in range(12):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = net(torch.ones(2, 4)).float().square().mean()
            if step == 5:
                loss = loss * float("inf")
            scaler.scale(loss).backward()
            if unscale:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            returned.append(scaler.step(optimizer))
            scaler.update()
            losses.append(loss.item())
            scales.append(scaler.get_scale())
        try:
            scaler.unscale_(optimizer)
            scaler.unscale_(optimizer)
        except RuntimeError as error:
            found[f"twice {unscale}"] = said(error)
        found[str(unscale)] = [digest(losses), scales, digest(returned), digest(net.state_dict()), scaler.state_dict()]
    twin = pickle.loads(pickle.dumps(torch.amp.GradScaler("cpu")))
    off = torch.amp.GradScaler("cpu", enabled=False)
    return [found, twin.state_dict(), off.state_dict(), off.step(optim.SGD(model().parameters()))]


@case
def clipping():
    found = []
    for options in ({}, {"norm_type": float("inf")}, {"foreach": False}, {"error_if_nonfinite": True}):
        net = model()
        net(torch.ones(2, 4)).sum().backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), 0.1, **options)
        found.append([digest(norm), type(norm).__name__, digest([p.grad for p in net.parameters()])])
    net = model()
    found.append(digest(nn.utils.clip_grad_norm_(net.parameters(), 1.0)))
    net(torch.ones(2, 4)).sum().backward()
    nn.utils.clip_grad_value_(net.parameters(), 0.01)
    total = nn.utils.get_total_norm([p.grad for p in net.parameters()])
    nn.utils.clip_grads_with_norm_(net.parameters(), 0.001, total)
    found.append(digest(total, [p.grad for p in net.parameters()]))
    net[0].weight.grad.fill_(float("nan"))
    try:
        nn.utils.clip_grad_norm_(net.parameters(), 1.0, error_if_nonfinite=True)
    except RuntimeError as error:
        found.append(said(error))
    return found


@case
def groups_and_errors():
    net = model()
    optimizer = optim.SGD([{"params": net[0].parameters(), "lr": 0.1}, {"params": net[2].parameters()}], lr=0.2)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": torch.tensor(0.3)})
    found = []
    for _ in range(3):
        net(torch.ones(2, 4)).sum().backward()
        optimizer.step()
    optimizer.param_groups[0]["lr"] = "fast"
    for wrong in (
        optimizer.step, lambda: optim.SGD([], lr=0.1), lambda: optim.SGD(net.parameters(), lr=-1),
        lambda: optim.SGD(net[0].weight, lr=0.1), lambda: optimizer.step(1, 2, 3),
        lambda: optim.Optimizer(net.parameters(), {}).step(),
    ):  # fmt: skip
        try:
            wrong()
        except Exception as error:
            found.append(said(error))
    return [found, digest(net.state_dict())]


main()
