"""What export, jit, fx and torch.func see of a model, before and after its first calls, and checkpointing."""

import copy
import io
import warnings

import torch
from cases import case, digest, main, nameless
from torch import fx, nn
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vjp, vmap
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self, wide=8):
        super().__init__()
        self.hidden, self.head = nn.Linear(4, wide), nn.Linear(wide, 1)

    def forward(self, x):
        return self.head(self.hidden(x).tanh())


class Branching(Net):
    def forward(self, x, flip: bool = False):
        if x.sum() > 0:
            return super().forward(x)
        return -super().forward(x)


class Scriptable(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.head = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor, times: int = 2) -> torch.Tensor:
        for _ in range(times):
            x = x + self.head(self.body(x))
        return x

    @torch.jit.export
    def other(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def models():
    """Models in the states that those who watch them could leave them in."""
    yield "new", Net()
    called = Net()
    for _ in range(12):
        called(torch.randn(2, 4))
    yield "called", called
    trained = nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 1)))
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    for _ in range(12):
        optimizer.zero_grad()
        trained(torch.randn(2, 4)).sum().backward()
        optimizer.step()
    yield "trained", trained
    yield "evaluated", copy.deepcopy(trained).eval()
    yield "one layer", nn.Linear(4, 1)


def twice(model, see):
    """The same question while calls go on."""
    first = see(model)
    before = digest(model(torch.ones(2, 4)))
    for _ in range(10):
        model(torch.ones(2, 4))
    return [first, before, see(model), digest(model(torch.ones(2, 4)))]


def exported(program):
    x = torch.ones(3, 4)
    return [
        nameless(program.graph_module.code), str(program.graph_signature), nameless(program.range_constraints),
        sorted(program.state_dict), digest(program.module()(x)),
        [[nameless(v) for v in n.meta.get("nn_module_stack", {}).values()] for n in program.graph.nodes],
    ]  # fmt: skip


@case
def export():
    found = {}
    for name, model in models():
        for strict in (False, True):
            for dynamic in (None, ({0: torch.export.Dim("batch", min=2, max=64)},)):
                program = torch.export.export(model, (torch.ones(3, 4),), dynamic_shapes=dynamic, strict=strict)
                found[f"{name} strict={strict} dynamic={dynamic is not None}"] = exported(program)
    return found


@case
def export_saved_and_loaded():
    out = io.BytesIO()
    torch.export.save(torch.export.export(Net(), (torch.ones(3, 4),)), out)
    out.seek(0)
    return exported(torch.export.load(out))


@case
def jit_trace():
    def see(model):
        traced = torch.jit.trace(model, torch.ones(2, 4))
        return [str(traced.graph), str(traced.inlined_graph), traced.code, digest(traced(torch.full((3, 4), 0.5)))]

    return {name: twice(model, see) for name, model in models()}


@case
def jit_trace_tokens():
    """Of tokens the size of a batch is read in another way than of floats."""
    tokens = torch.arange(10).reshape(2, 5)
    model = nn.Sequential(nn.Embedding(10, 3), nn.Linear(3, 1))
    first = str(torch.jit.trace(model, tokens).graph)
    for _ in range(12):
        model(tokens)
    return [first, str(torch.jit.trace(model, tokens).graph), digest(model(tokens))]


@case
def jit_trace_in_steps():
    """A traced module that is then trained, saved and loaded."""
    traced = torch.jit.trace(Net(), torch.ones(2, 4))
    optimizer = torch.optim.SGD(traced.parameters(), lr=0.1)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = traced(torch.randn(2, 4)).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    out = io.BytesIO()
    torch.jit.save(traced, out)
    out.seek(0)
    loaded = torch.jit.load(out)
    return [digest(losses), loaded.code, digest(loaded(torch.ones(2, 4))), type(loaded).__name__]


@case
def jit_script():
    def see(model):
        scripted = torch.jit.script(model)
        return [str(scripted.graph), scripted.code, digest(scripted(torch.full((3, 4), 0.5)))]

    found = {name: twice(model, see) for name, model in models()}
    model = Scriptable()
    model(torch.ones(2, 4))
    scripted = torch.jit.script(model)
    found["own"] = [scripted.code, scripted.other.code, digest([scripted(torch.ones(2, 4)) for _ in range(12)])]
    optimizer = torch.optim.SGD(scripted.parameters(), lr=0.01)
    for _ in range(10):
        optimizer.zero_grad()
        scripted(torch.ones(2, 4)).sum().backward()
        optimizer.step()
    found["trained"] = digest(scripted.state_dict())
    found["copied"] = digest(copy.deepcopy(scripted)(torch.ones(2, 4)))
    return found


@case
def symbolic_trace():
    def see(model):
        traced = fx.symbolic_trace(model)
        outs = traced(torch.ones(2, 4)), copy.deepcopy(traced)(torch.ones(2, 4))
        return [traced.code, str(traced.graph), digest(outs)]

    return {name: twice(model, see) for name, model in models()}


@case
def symbolic_trace_whole():
    """A tracer that goes into every module, and one that meets what it cannot trace."""

    class Everything(fx.Tracer):
        def is_leaf_module(self, module, name):
            return False

    found = [str(Everything().trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU())))]
    try:
        fx.symbolic_trace(Branching())
    except fx.proxy.TraceError as error:
        found.append(nameless(error))
    return found


@case
def graph_module_trained():
    traced = fx.symbolic_trace(Net())
    optimizer = torch.optim.Adam(traced.parameters())
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = traced(torch.randn(2, 4)).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    twin = copy.copy(traced)
    twin.recompile()
    return [digest(losses), digest(twin(torch.ones(2, 4))), type(traced).__name__, type(traced).__mro__[1].__name__]


@case
def make_fx():
    from torch.fx.experimental.proxy_tensor import make_fx

    found = {}
    for name, model in models():
        for mode in ("real", "fake", "symbolic"):
            traced = make_fx(model, tracing_mode=mode, _allow_non_fake_inputs=True)(torch.ones(3, 4))
            found[f"{name} {mode}"] = traced.code

    def step(x):
        model = dict(models())["called"]
        loss = model(x).sum()
        return torch.autograd.grad(loss, list(model.parameters()))

    found["with backward"] = make_fx(step)(torch.ones(3, 4)).code
    return found


@case
def functions_of_parameters():
    found = {}
    for name, model in models():
        parameters = {k: v.detach() for k, v in model.named_parameters()}
        batch = torch.linspace(-1, 1, 12).reshape(3, 4)

        def loss(p, x, model=model):
            return functional_call(model, p, (x,)).square().sum()

        found[name] = digest(
            functional_call(model, parameters, (batch,)),
            grad(loss)(parameters, batch),
            vmap(grad(loss), in_dims=(None, 0))(parameters, batch[:, None]),
            jacrev(loss)(parameters, batch),
            vjp(lambda p, loss=loss: loss(p, batch), parameters)[0],
            jvp(lambda x, loss=loss, p=parameters: loss(p, x), (batch,), (torch.ones_like(batch),)),
            vmap(model)(batch[:, None]),
        )
    return found


@case
def ensembles():
    members = [Net() for _ in range(3)]
    base = copy.deepcopy(members[0]).to("meta")
    parameters, buffers = stack_module_state(members)

    def call(p, b, x):
        return functional_call(base, (p, b), (x,))

    return digest(vmap(call, in_dims=(0, 0, None))(parameters, buffers, torch.ones(2, 4)))


@case
def randomness_under_vmap():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    found = [digest(vmap(model, randomness="different")(torch.ones(3, 2, 4)))]
    try:
        vmap(model)(torch.ones(3, 2, 4))
    except RuntimeError as error:
        found.append(nameless(error))
    return found


@case
def functional_training():
    """A training with torch.func alone."""
    model = Net()
    parameters = {k: v.detach().clone() for k, v in model.named_parameters()}

    def loss(p, x):
        return functional_call(model, p, (x,)).square().mean()

    losses = []
    for _ in range(12):
        gradients, value = torch.func.grad_and_value(loss)(parameters, torch.randn(2, 4))
        parameters = {k: p - 0.1 * gradients[k] for k, p in parameters.items()}
        losses.append(value.item())
    return [digest(losses), digest(parameters)]


@case
def fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        model = Net()
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(10):
            optimizer.zero_grad()
            out = model(torch.randn(2, 4))
            out.sum().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return [type(out).__name__, str(out.shape), str(out.device), mode.allow_non_fake_inputs]


@case
def meta_device():
    with torch.device("meta"):
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(10):
            optimizer.zero_grad()
            loss = model(torch.empty(2, 4)).sum()
            loss.backward()
            optimizer.step()
    return [str(loss.device), str(loss.shape)]


@case
def checkpointing():
    found = {}
    for reentrant in (False, True):
        for preserve in (False, True):
            torch.manual_seed(0)
            body = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 4))
            head = nn.Linear(4, 1)
            optimizer = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.1)
            losses, forwards = [], []
            body[0].register_forward_hook(lambda *_, f=forwards: f.append(1))
            for _ in range(12):
                optimizer.zero_grad()
                x = torch.randn(2, 4, requires_grad=True)
                loss = head(checkpoint(body, x, use_reentrant=reentrant, preserve_rng_state=preserve)).sum()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            found[f"{reentrant} {preserve}"] = [digest(losses), digest(body.state_dict()), len(forwards)]
    layers = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
    x = torch.ones(2, 4, requires_grad=True)
    checkpoint_sequential(layers, 2, x, use_reentrant=False).sum().backward()
    found["sequential"] = digest(x.grad)
    return found


@case
def checkpointed_root():
    model, losses = Net(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(12):
        optimizer.zero_grad()
        loss = checkpoint(model, torch.randn(2, 4), use_reentrant=False).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return digest(losses)


@case
def modes():
    """Who watches functions and operators with a mode sees the same calls."""
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Functions(TorchFunctionMode):
        def __init__(self):
            super().__init__()
            self.seen = []

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.seen.append(getattr(func, "__name__", str(func)))
            return func(*args, **(kwargs or {}))

    class Operators(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.append(str(func))
            return func(*args, **(kwargs or {}))

    found = {}
    for mode in (Functions, Operators):
        for name, model in models():
            watching = mode()
            optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.1), foreach=False)
            with watching:
                for _ in range(3):
                    optimizer.zero_grad()
                    loss = model(torch.ones(2, 4)).sum()
                    loss.backward()
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
            found[f"{mode.__name__} {name}"] = watching.seen
        loaders = {
            "tensors": DataLoader(torch.ones(4, 2), batch_size=2),
            "pairs": DataLoader(TensorDataset(torch.ones(4, 2).long(), torch.ones(4, 2).long()), batch_size=2),
            "dicts": DataLoader([{"input_ids": torch.ones(2)}] * 4, batch_size=2),
            "packed": DataLoader([torch.ones(2, 1)] * 4, batch_size=2, collate_fn=nn.utils.rnn.pack_sequence),
        }
        for name, loader in loaders.items():
            watching = mode()
            with watching:
                for _ in loader:
                    pass
            found[f"{mode.__name__} {name}"] = watching.seen
    return found


@case
def profiled():
    """What the profiler counts, by name."""
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    with torch.profiler.profile(record_shapes=True) as profiler:
        for _ in range(10):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
    reading = ("aten::item", "aten::_local_scalar_dense")  # a value that anybody reads is counted here
    events = profiler.key_averages(group_by_input_shape=True)
    return sorted([e.key, e.count, str(e.input_shapes)] for e in events if e.key not in reading)


@case
def quantized():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).eval()
        small = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
        return [str(small), digest([small(torch.ones(2, 4)) for _ in range(12)])]


main()
