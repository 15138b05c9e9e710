"""What dynamo makes of modules, functions and whole steps: graphs, breaks, recompiles, results."""

import collections

import torch
import torch._dynamo
import torch._dynamo.utils
from cases import case, digest, main, nameless, said
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

counters = torch._dynamo.utils.counters


class Net(nn.Module):
    def __init__(self, wide=8):
        super().__init__()
        self.hidden, self.head = nn.Linear(4, wide), nn.Linear(wide, 1)

    def forward(self, x):
        return self.head(self.hidden(x).tanh())


class Breaking(Net):
    def forward(self, x):
        h = self.hidden(x)
        torch._dynamo.graph_break()
        return self.head(h.tanh())


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(1, 1)

    def forward(self, x):
        return x + self.inner(x).relu()


class Checkpointed(Net):
    reentrant = False

    def forward(self, x):
        return self.head(checkpoint(self.hidden, x, use_reentrant=self.reentrant).tanh())


def fresh():
    torch._dynamo.reset()
    counters.clear()
    torch._dynamo.utils.clear_compilation_metrics()


def why(reason):
    """The first line; a function that dynamo never traces reads alike whether it is called or inlined."""
    return nameless(reason).splitlines()[0].replace("Attempted to inline", "Attempted to call")


def counted(**results):
    """What dynamo counted since `fresh()`, and the results' bits."""
    return {
        "graphs": counters["stats"]["unique_graphs"],
        "captured": counters["stats"]["calls_captured"],
        "frames": dict(counters["frames"]),
        "breaks": sum(counters["graph_break"].values()),
        "why": sorted(why(k) for k in counters["graph_break"]),
        "compilations": [
            [
                m.co_name, m.graph_op_count, m.graph_input_count, m.num_graph_breaks, m.has_guarded_code,
                nameless(m.recompile_reason), m.fail_type, sorted(why(r) for r in m.restart_reasons or ()),
            ]
            for m in torch._dynamo.utils.get_compilation_metrics()
        ],
        **{name: digest(result) for name, result in results.items()},
    }  # fmt: skip


def steps(call, model, sizes=(4,) * 6, optimizer=torch.optim.SGD, clip=False):
    """A training through `call`; the losses."""
    chosen = optimizer(model.parameters(), lr=0.05)
    losses = []
    for size in sizes:
        chosen.zero_grad()
        loss = call(torch.randn(size, 4)).square().mean()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        chosen.step()
        losses.append(loss.item())
    return losses


def eagerly(model):
    """Enough calls that whoever watches a program's first calls has seen them."""
    for _ in range(12):
        model(torch.randn(4, 4))


def in_place(model, *, warm=False, sizes=(4,) * 6, **options):
    fresh()
    if warm:
        eagerly(model)
    model.compile(**{"backend": "eager", **options})
    losses = steps(model, model, sizes)
    return counted(losses=losses, weights=model.state_dict())


def wrapped(model, *, warm=False, sizes=(4,) * 6, **options):
    fresh()
    if warm:
        eagerly(model)
    losses = steps(torch.compile(model, **{"backend": "eager", **options}), model, sizes)
    return counted(losses=losses, weights=model.state_dict())


def function(model, *, warm=False, sizes=(4,) * 6, **options):
    fresh()
    if warm:
        eagerly(model)

    @torch.compile(**{"backend": "eager", **options})
    def call(x):
        return model(x).relu() + 1

    losses = steps(call, model, sizes)
    return counted(losses=losses, weights=model.state_dict())


GROWING = (3, 5, 5, 7, 9)
HOW = {"in_place": in_place, "wrapped": wrapped, "function": function}
OPTIONS = {
    "default": {},
    "aot_eager": {"backend": "aot_eager"},
    "fullgraph": {"fullgraph": True},
    "growing": {"sizes": GROWING},
    "static": {"dynamic": False, "sizes": GROWING},
    "dynamic": {"dynamic": True, "sizes": GROWING},
}


@case
def hooked_inside():
    """A module with a user's hooks, long called plainly, inside what is compiled: first, while roots are looked for."""
    found = {}
    for full in (False, True):
        fresh()
        model, calls = Net(), []
        outer = torch.compile(nn.Sequential(nn.Linear(4, 4), model), backend="eager", fullgraph=full)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(20):  # until it is known
            optimizer.zero_grad()
            model(torch.ones(4, 4)).sum().backward()
            optimizer.step()
        model.register_forward_hook(lambda m, i, o: o * 2)

        @torch.compile(backend="eager", fullgraph=full)
        def call(x, model=model):
            return model(x).sum() * 2

        for _ in range(3):
            calls += [call(torch.ones(4, 4)).item(), outer(torch.ones(4, 4)).sum().item()]
        found[f"fullgraph {full}"] = counted(calls=calls)
    return found


@case
def ways_to_compile():
    return {
        f"{how} {what} {'warm' if warm else 'cold'}": call(Net(), warm=warm, **options)
        for how, call in HOW.items()
        for what, options in OPTIONS.items()
        for warm in (False, True)
    }


@case
def containers():
    """Classes that roots and submodules share."""

    def make():
        return nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 1)))

    return {how: call(make(), warm=warm) for how, call in HOW.items() for warm in (False, True)}


@case
def torchs_own_module():
    return {how: call(nn.Linear(4, 2)) for how, call in HOW.items()}


@case
def graph_breaks():
    return {how: call(Breaking(), warm=warm) for how, call in HOW.items() for warm in (False, True)}


@case
def fullgraph_that_cannot():
    found = []
    for how in HOW.values():
        try:
            how(Breaking(), fullgraph=True)
        except Exception as error:
            found.append(said(error))
    return found


@case
def checkpointing():
    found = {}
    for reentrant in (False, True):
        for name, call in HOW.items():
            model = Checkpointed()
            model.reentrant = reentrant
            found[f"{name} reentrant={reentrant}"] = call(model, backend="aot_eager")
    return found


@case
def mark_dynamic():
    fresh()
    model = Net()
    call = torch.compile(model, backend="eager")
    for size in GROWING:
        x = torch.randn(size, 4)
        torch._dynamo.mark_dynamic(x, 0)
        call(x)
    return counted()


@case
def regions():
    """Submodules compiled in place, inside an eager model."""
    found = {}
    for warm in (False, True):
        fresh()
        model = nn.Sequential(nn.Linear(4, 4), Net(), nn.Flatten(), Block())
        if warm:
            eagerly(model)
        model[1].compile(backend="eager")
        model[3].compile(backend="eager")
        losses = steps(model, model)
        found[f"warm={warm}"] = counted(losses=losses)
    return found


@case
def compiled_again_and_copied():
    import copy

    fresh()
    model = Net()
    model.compile(backend="eager")
    model(torch.randn(4, 4))
    model.compile(backend="eager", dynamic=True)
    twin = copy.deepcopy(model)
    out = [model(torch.ones(3, 4)), twin(torch.ones(3, 4))]
    return counted(out=out, same=torch.equal(*out))


@case
def modules_hooks():
    """Hooks that users add before and after the first compiled call."""
    found = {}
    for when in ("before", "after"):
        for how in ("in_place", "wrapped"):
            fresh()
            model, calls = Net(), []
            call = model if how == "in_place" else torch.compile(model, backend="eager")
            if how == "in_place":
                model.compile(backend="eager")
            for step in range(6):
                if step == (0 if when == "before" else 3):
                    model.register_forward_hook(lambda m, i, o: o * 2)
                    model.hidden.register_forward_pre_hook(lambda m, i: (i[0] + 1,))
                call(torch.ones(4, 4)).sum().backward()
                calls.append(digest(model.hidden.weight.grad))
            found[f"{how} {when}"] = counted(calls=calls)
    return found


@case
def backward_hooks():
    fresh()
    model, seen = Net(), []
    model.register_full_backward_hook(lambda m, i, o: seen.append(digest(o)))
    return {**function(model), "seen": len(seen)}


@case
def train_and_eval():
    """Switching modes outside, and inside a compiled function."""
    fresh()
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    call = torch.compile(model, backend="eager")
    outs = []
    for _ in range(2):
        model.train()
        outs.append(call(torch.ones(2, 4)))
        model.eval()
        with torch.no_grad():
            outs.append(call(torch.ones(2, 4)))

    @torch.compile(backend="eager")
    def both(x):
        model.eval()
        y = model(x)
        model.train()
        return y + model(x)

    outs.append(both(torch.ones(2, 4)))
    return counted(outs=outs)


@case
def whole_step():
    found = {}
    for clip in (False, True):
        for optimizer in (torch.optim.SGD, torch.optim.Adam):
            fresh()
            model = Net()
            chosen = optimizer(model.parameters(), lr=0.05)

            @torch.compile(backend="aot_eager")
            def step(x, model=model, chosen=chosen, clip=clip):
                chosen.zero_grad()
                loss = model(x).square().mean()
                loss.backward()
                if clip:
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                chosen.step()
                return loss

            losses = [step(torch.randn(4, 4)).item() for _ in range(4)]
            found[f"{optimizer.__name__} clip={clip}"] = counted(losses=losses, weights=model.state_dict())
    return found


@case
def whole_step_with_amp():
    fresh()
    model = Net()
    chosen = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu")

    @torch.compile(backend="eager")
    def step(x):
        chosen.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(x).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(chosen)
        scaler.update()
        return loss

    losses = [step(torch.randn(4, 4)).item() for _ in range(4)]
    return counted(losses=losses, weights=model.state_dict(), scaler=scaler.state_dict())


@case
def optimizer_step():
    found = {}
    for optimizer in (torch.optim.SGD, torch.optim.AdamW):
        for scheduled in (False, True):
            fresh()
            model = Net()
            chosen = optimizer(model.parameters(), lr=torch.tensor(0.05))
            scheduler = torch.optim.lr_scheduler.StepLR(chosen, 2) if scheduled else None
            turns = []
            if scheduled:
                chosen.register_step_post_hook(lambda *_: turns.append(1))
            step = torch.compile(chosen.step, backend="eager")
            for _ in range(4):
                chosen.zero_grad()
                model(torch.randn(4, 4)).sum().backward()
                step()
                if scheduler is not None:
                    scheduler.step()
            found[f"{optimizer.__name__} {scheduled}"] = counted(weights=model.state_dict(), turns=len(turns))
    return found


@case
def loader_in_compiled_function():
    fresh()
    model = Net()
    loader = DataLoader(TensorDataset(torch.arange(24.0).reshape(6, 4)), batch_size=2)

    @torch.compile(backend="eager")
    def epoch():
        total = torch.zeros(())
        for (x,) in loader:
            total = total + model(x).sum()
        return total

    return counted(out=[epoch() for _ in range(3)])


@case
def autograd_backward_in_compiled_function():
    fresh()
    model = Net()

    @torch.compile(backend="eager")
    def step(x):
        torch.autograd.backward(model(x).sum())
        return model.hidden.weight.grad

    return counted(out=[step(torch.ones(2, 4)).clone() for _ in range(3)])


@case
def modules_built_in_compiled_function():
    fresh()

    @torch.compile(backend="eager")
    def build(x):
        net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        return net(x)

    return counted(out=[build(torch.ones(2, 4)) for _ in range(3)])


@case
def optimizer_built_in_compiled_function():
    fresh()
    model = Net()

    @torch.compile(backend="eager")
    def build(x):
        chosen = torch.optim.SGD(model.parameters(), lr=0.1)
        model(x).sum().backward()
        chosen.step()
        return model(x)

    return counted(out=[build(torch.ones(2, 4)) for _ in range(3)])


@case
def saving_in_compiled_function():
    import io

    fresh()
    model = Net()

    @torch.compile(backend="eager")
    def call(x):
        y = model(x)
        torch.save(y, io.BytesIO())
        return y + 1

    return counted(out=[call(torch.ones(2, 4)) for _ in range(3)])


@case
def disabled_parts():
    fresh()
    inner = torch.compiler.disable(Net())

    @torch.compile(backend="eager")
    def call(x):
        return inner(x * 2) + 1

    return counted(out=[call(torch.ones(2, 4)) for _ in range(3)])


@case
def many_models_one_function():
    """Recompiles up to the limit, and what follows."""
    fresh()

    @torch.compile(backend="eager")
    def call(model, x):
        return model(x)

    return counted(out=[call(Net(wide), torch.ones(2, 4)) for wide in range(2, 14)])


@case
def nested_graph_breaks():
    with torch._dynamo.config.patch(nested_graph_breaks=True):
        return {how: call(Breaking(), warm=True) for how, call in HOW.items()}


@case
def explained():
    found = {}
    for name, make in {"net": Net, "breaking": Breaking, "checkpointed": Checkpointed}.items():
        model = make()
        for what, call in {"module": model, "function": lambda x, model=model: model(x) + 1}.items():
            fresh()
            e = torch._dynamo.explain(call)(torch.ones(2, 4))
            found[f"{name} {what}"] = [
                e.graph_count, e.graph_break_count, e.op_count, [[str(op) for op in ops] for ops in e.ops_per_graph],
                [nameless(r.reason) for r in e.break_reasons],
                [[f"{f.filename.rpartition('/')[2]}:{f.lineno}" for f in r.user_stack] for r in e.break_reasons],
                [nameless(g.print_readable(print_output=False)) for g in e.graphs],
            ]  # fmt: skip
    return found


@case
def custom_backend_sees():
    """The graphs as they reach a backend of the user's own."""
    seen = []

    def backend(graph, inputs):
        seen.append([str(graph.graph), len(inputs)])
        return graph.forward

    fresh()
    model = Breaking()
    model.compile(backend=backend)
    out = model(torch.ones(2, 4))
    return {**counted(out=out), "seen": seen}


@case
def compiled_autograd():
    fresh()
    model = Net()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        losses = steps(model, model, (4,) * 3)
    return counted(losses=losses)


@case
def threads():
    import threading

    fresh()
    model = Net()
    model.compile(backend="eager")
    model(torch.ones(2, 4))
    outs = collections.defaultdict(list)

    def work(number):
        for _ in range(20):
            outs[number].append(model(torch.full((2, 4), float(number))).sum().item())

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return counted(outs=sorted(outs.items()))


main()
