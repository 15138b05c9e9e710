"""Modules of every kind, trained, copied, changed, called in unusual ways."""

import asyncio
import copy
import gc
import threading
import weakref

import torch
from cases import case, digest, main, own, said, train
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05)


def floats(*shape):
    return lambda: (torch.randn(*shape),)


def tokens(*shape):
    return lambda: (torch.randint(0, 10, shape),)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.hidden(x).tanh())


@case
def kinds():
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    several = {
        "linear": (nn.Linear(4, 2), floats(3, 4)),
        "sequential": (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)), floats(3, 4)),
        "conv": (nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten()), floats(2, 1, 6, 6)),
        "dropout": (nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5)), floats(3, 4)),
        "embedding": (nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2)), tokens(2, 5)),
        "embedding bag": (nn.EmbeddingBag(10, 4), tokens(2, 5)),
        "transformer": (nn.TransformerEncoder(encoder, 2, enable_nested_tensor=False), floats(2, 5, 8)),
        "normalized": (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.GroupNorm(2, 4)), floats(3, 4)),
        "bilinear": (nn.Bilinear(4, 4, 2), lambda: (torch.randn(3, 4), torch.randn(3, 4))),
        "lazy": (nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(1)), floats(3, 4)),
    }
    found = {}
    for name, (model, batch) in several.items():
        if name == "lazy":
            model(*batch())
        found[name] = train(model, sgd, batch)
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        found[kind.__name__] = train(kind(4, 8, 2), sgd, floats(5, 3, 4), loss=lambda out: out[0].square().mean())
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    out, weights = attention(*(torch.ones(2, 3, 8),) * 3)
    found["attention"] = digest(out, weights)
    whole = nn.Transformer(8, 2, 1, 1, 16)
    found["whole transformer"] = train(whole, sgd, lambda: (torch.randn(4, 2, 8),) * 2, steps=3)
    return found


@case
def lazily():
    """A lazy module is what it becomes, also when the optimizer waits for it."""
    model = nn.LazyLinear(3)
    before = [type(model).__name__, isinstance(model.weight, nn.UninitializedParameter)]
    outs = [model(torch.ones(2, 4)) for _ in range(12)]
    return [before, type(model).__name__, str(model), digest(outs), list(vars(model))]


@case
def containers():
    body = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
    found = [digest(body[1:3](torch.ones(1, 4))), digest(body[-1](torch.ones(1, 4))), str(body[:2]), len(body)]
    body.append(nn.ReLU())
    body.insert(0, nn.Tanh())
    del body[1]
    found += [str(body), digest(body(torch.ones(1, 4))), type(body + body[:1]).__name__]
    listed = nn.ModuleList([nn.Linear(4, 4), nn.ReLU()])
    listed += [nn.Linear(4, 1)]
    mapped = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.ReLU()})
    x = torch.ones(1, 4)
    for layer in listed:
        x = layer(x)
    for layer in mapped.values():
        x = layer(torch.ones(1, 4))
    parameters = nn.ParameterList([nn.Parameter(torch.ones(1))]), nn.ParameterDict({"w": torch.ones(1)})
    return [*found, digest(x), str(listed), str(mapped), [str(p) for p in parameters]]


@case
def parametrized():
    class Symmetric(nn.Module):
        def forward(self, w):
            return w.triu() + w.triu(1).T

    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    found = [train(layer, sgd, floats(3, 4)), type(layer).__name__, type(layer).__mro__[1].__name__]
    twin = copy.deepcopy(layer)
    found.append(digest(twin(torch.ones(1, 4)), layer(torch.ones(1, 4))))
    with parametrize.cached():
        found.append(digest(layer(torch.ones(1, 4))))
    parametrize.remove_parametrizations(layer, "weight")
    found += [type(layer).__name__, str(layer)]
    normed = parametrizations.weight_norm(nn.Linear(4, 2)), parametrizations.spectral_norm(nn.Linear(4, 2))
    found += [train(m, sgd, floats(3, 4)) for m in normed]
    pruned = prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5)
    found.append(train(pruned, sgd, floats(3, 4)))
    return found


@case
def scripted():
    model = torch.jit.script(Net())
    found = [train(model, sgd, floats(3, 4)), type(model).__name__, model.original_name]
    frozen = torch.jit.freeze(model.eval())
    x = torch.ones(1, 4)
    return [*found, digest([frozen(x) for _ in range(10)]), digest(copy.deepcopy(model)(x))]


@case
def called_otherwise():
    """By forward, by the class, through children, with keywords only, with none, with many results."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x=None, *, scale=1.0, **more):
            x = torch.ones(2, 4) if x is None else x
            return {"out": self.inner(x) * scale, "more": sorted(more)}

    class OwnCall(Net):
        def __call__(self, x, again=False):
            out = super().__call__(x)
            return out if again else self(x, again=True) + out

    odd, own, net = Odd(), OwnCall(), Net()
    x = torch.ones(2, 4)
    found = []
    for _ in range(12):
        found += [
            odd(), odd(x, scale=2.0), odd(x=x, self_=1, other=2), odd.forward(x), Odd.__call__(odd, x),
            own(x), net.forward(x), net.head(net.hidden(x)), nn.Module.__call__(net, x),
        ]  # fmt: skip
    return digest(found)


@case
def mixed_in():
    """Several inheritance, slots, own attribute access, own __init_subclass__ and metaclass."""
    built = []

    class Registering:
        def __init_subclass__(cls, **more):
            super().__init_subclass__(**more)
            built.append(cls.__name__)

    class Mixed(Registering, Net):
        __slots__ = ("extra",)

        def __getattribute__(self, name):
            if name == "secret":
                return "open"
            return super().__getattribute__(name)

    class Asking(Net):
        def __getattr__(self, name):
            if name.startswith("magic"):
                return name
            return super().__getattr__(name)

        def __setattr__(self, name, value):
            super().__setattr__(name, value)

    class Meta(type):
        def __call__(cls, *args, **kwargs):
            made = super().__call__(*args, **kwargs)
            made.by_meta = True
            return made

    class ByMeta(Net, metaclass=Meta):
        pass

    found = []
    for kind in (Mixed, Asking, ByMeta):
        torch.manual_seed(0)
        model = kind()
        found.append([train(model, sgd, floats(3, 4)), sorted(vars(model)), own(kind)])
    model = Asking()
    found.append([model.magic_word, Mixed().secret, getattr(model, "missing", "absent"), built])
    try:
        model.missing  # noqa: B018
    except AttributeError as error:
        found.append(said(error))
    return found


@case
def own_ways_to_ask():
    """What torch asks a module for is the program's own: it tells who asks, is a list, or raises."""
    asked = []

    class Telling(Net):
        def named_parameters(self, *args, **kwargs):
            asked.append("named_parameters")
            return super().named_parameters(*args, **kwargs)

        def parameters(self, recurse=True):
            asked.append("parameters")
            return super().parameters(recurse)

        def named_modules(self, *args, **kwargs):
            asked.append("named_modules")
            return super().named_modules(*args, **kwargs)

        def __getattr__(self, name):
            asked.append(name)
            return super().__getattr__(name)

    class Listed(Net):
        def __init__(self):
            super().__init__()
            self.parameters = [self.head.weight]

    class Refusing(Net):
        def parameters(self):
            raise NotImplementedError("use trainable()")

    class Weight(nn.Parameter):
        def numel(self):
            asked.append("numel")
            return super().numel()

    class Weighted(Net):
        def __init__(self):
            super().__init__()
            self.weight = Weight(torch.ones(1))

    for kind in (Telling, Listed, Refusing, Weighted):
        model = kind()
        optimizer = sgd([model.hidden.weight])
        for _ in range(12):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
        asked.append(digest(model.state_dict()))
    return asked


@case
def own_train_and_eval():
    class Frozen(Net):
        def train(self, mode=True):
            super().train(mode)
            self.hidden.training = False
            return self

    model = Frozen()
    found = []
    for _ in range(3):
        found += [model.train() is model, model.training, model.hidden.training]
        found += [model.eval() is model, model.training, model.hidden.training]
        found.append(digest(model(torch.ones(1, 4))))
    return found


@case
def attributes():
    """What a module, its class and its copies hold, before and after the first calls."""
    model = Net()
    before = [sorted(vars(model)), sorted(dir(model))]
    for _ in range(12):
        model(torch.ones(1, 4))
    twin = copy.deepcopy(model)
    thin = copy.copy(model)
    return [
        before, sorted(vars(model)), sorted(dir(model)), sorted(vars(twin)), sorted(vars(thin)), own(Net),
        str(model), repr(Net), Net.__name__, Net.__qualname__, sorted(model.__dict__), list(model.state_dict()),
        [n for n, _ in model.named_modules()], model._version, sorted(model.__annotations__),
    ]  # fmt: skip


@case
def user_hooks():
    """Hooks of the user's, global and a module's own, added and removed while the model is in use."""
    seen = []

    def note(name):
        def hook(module, *values):
            seen.append([name, type(module).__name__, len(values)])

        return hook

    model = Net()
    optimizer = sgd(model.parameters())
    glob = nn.modules.module
    handles = []
    for step in range(14):
        if step == 3:
            handles = [
                model.register_forward_pre_hook(note("pre")), model.register_forward_hook(note("post")),
                model.hidden.register_full_backward_hook(note("backward")),
                model.register_full_backward_pre_hook(note("pre backward")),
                model.register_forward_hook(note("keywords"), with_kwargs=True, always_call=True),
            ]  # fmt: skip
        if step == 6:
            handles += [
                glob.register_module_forward_hook(note("global")),
                glob.register_module_forward_pre_hook(note("global pre")),
                glob.register_module_module_registration_hook(lambda m, n, s: seen.append(["module", n])),
                glob.register_module_parameter_registration_hook(lambda m, n, p: seen.append(["parameter", n])),
            ]
        if step == 9:
            model.extra = nn.Linear(2, 2)
        if step == 11:
            for handle in handles:
                handle.remove()
        optimizer.zero_grad()
        model(torch.randn(2, 4, requires_grad=True)).sum().backward()
        optimizer.step()
    return [seen, digest(model.state_dict()), len(model._forward_hooks)]


@case
def state():
    """State dicts, their hooks, strictness and metadata."""
    model = Net()
    for _ in range(10):
        model(torch.ones(1, 4))
    seen = []
    model.register_state_dict_post_hook(lambda m, s, p, d: seen.append("saved"))
    model.register_load_state_dict_post_hook(lambda m, k: seen.append(str(k)))
    weights = model.state_dict()
    other = Net()
    result = other.load_state_dict(weights)
    found = [digest(weights), str(result), dict(weights._metadata), digest(other(torch.ones(1, 4)))]
    try:
        other.load_state_dict({"nothing": torch.ones(1)})
    except RuntimeError as error:
        found.append(str(error))
    found.append(str(other.load_state_dict({"nothing": torch.ones(1)}, strict=False)))
    assigned = Net()
    assigned.load_state_dict(weights, assign=True)
    return [*found, seen, assigned.hidden.weight.data_ptr() == weights["hidden.weight"].data_ptr()]


@case
def copies():
    """Copies stand on their own: what one learns the other does not."""
    model = Net()
    for _ in range(12):
        model(torch.ones(1, 4))
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    optimizer = sgd(model.parameters())
    twin = copy.deepcopy(model)
    raw = Net.__new__(Net)
    raw.__dict__ = model.__dict__.copy()
    raw._parameters, raw._modules = dict(model._parameters), {k: copy.deepcopy(m) for k, m in model._modules.items()}
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        average.update_parameters(model)
    x = torch.ones(1, 4)
    lstm = nn.LSTM(4, 4)
    lstm(torch.ones(1, 1, 4))
    return [digest(m(x)) for m in (model, twin, raw, average)] + [digest(copy.copy(lstm)(torch.ones(1, 1, 4)))]


@case
def errors():
    """The user's exception is the same object, with the same relations."""
    mine = ValueError("mine")

    class Failing(Net):
        def forward(self, x):
            if x.sum() < 0:
                raise mine
            return super().forward(x)

    model, found = Failing(), []
    for _ in range(12):
        model(torch.ones(1, 4))
        try:
            model(-torch.ones(1, 4))
        except ValueError as error:
            found.append([error is mine, said(error)])
    for wrong in (lambda: model(), lambda: model(1, 2, 3), lambda: model(torch.ones(1, 3)), lambda: model("x")):
        try:
            wrong()
        except Exception as error:
            found.append(said(error))

    class Stopping(nn.Module):
        def forward(self, x):
            raise StopIteration

    try:
        Stopping()(1)
    except StopIteration as error:
        found.append(said(error))
    return found


@case
def recursive():
    class Deep(Net):
        def forward(self, x, depth=3):
            return super().forward(x) if not depth else self(x, depth - 1) + 1

    model = Deep()
    return train(model, sgd, floats(2, 4))


@case
def several_threads():
    model = Net()
    outs = {}

    def work(number):
        outs[number] = [digest(model(torch.full((2, 4), float(number)))) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def both():
        return await asyncio.gather(*[asyncio.to_thread(model, torch.full((2, 4), float(n))) for n in range(4)])

    return [[outs[n] for n in range(4)], digest(asyncio.run(both()))]


@case
def lifetimes():
    """Models, optimizers and what they hold die when their last user lets go."""
    gc.collect()
    gc.disable()
    found = []
    for _ in range(3):
        model = Net()
        optimizer = sgd(model.parameters())
        for _ in range(12):
            optimizer.zero_grad()
            out = model(torch.ones(1, 4))
            out.sum().backward()
            optimizer.step()
        last = weakref.ref(out)
        refs = [weakref.ref(t) for t in (model, model.hidden, model.hidden.weight, optimizer)]
        del out
        found.append(last() is None)
        del model
        found.append([r() is None for r in refs])
        del optimizer
        found.append([r() is None for r in refs])
    gc.enable()
    return found


@case
def lifetimes_of_classes():
    """A model's and an optimizer's class, made for one trial, die with all that they close over."""
    alive = []

    def trial():
        data = torch.ones(3)

        class Trial(Net):
            def forward(self, x):
                return super().forward(x) + data.mean()

        class Own(torch.optim.SGD):
            def step(self, closure=None):
                data.add_(0)
                return super().step(closure)

        model = Trial()
        optimizer = Own(model.parameters(), lr=0.1)
        for _ in range(12):
            optimizer.zero_grad()
            model(torch.ones(1, 4)).sum().backward()
            optimizer.step()
        alive.extend(weakref.ref(thing) for thing in (data, Trial, Own))

    found = []
    for _ in range(3):
        trial()
        gc.collect()
        found.append([ref() is not None for ref in alive])
    return found


@case
def data_parallel():
    model = nn.DataParallel(Net())
    found = [train(model, sgd, floats(4, 4)), type(model.module).__name__, sorted(model.state_dict())]
    replica = model.module._replicate_for_data_parallel()
    replica._parameters = dict(model.module._parameters)
    return [*found, digest(replica.hidden(torch.ones(1, 4))), sorted(vars(replica))]


@case
def moved_and_cast():
    model = Net()
    found = []
    for change in (lambda m: m.double(), lambda m: m.bfloat16(), lambda m: m.float(), lambda m: m.to("cpu")):
        model = change(model)
        found.append(digest([model(torch.ones(1, 4, dtype=model.hidden.weight.dtype)) for _ in range(5)]))
    model.requires_grad_(False).share_memory()
    found += [digest(model(torch.ones(1, 4))), model.hidden.weight.is_shared()]
    model.apply(lambda m: found.append(type(m).__name__))
    return found


@case
def without_grad():
    model = Net().eval()
    found = []
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        for _ in range(12):
            with mode():
                out = model(torch.ones(2, 4))
            found.append([out.requires_grad, out.is_inference(), digest(out)])
    return digest(found)


@case
def inputs_of_every_kind():
    class Whatever(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, *values, **named):
            return self.weight.sum()

    class Own(torch.Tensor):
        pass

    model = Whatever()
    given = [
        torch.ones(()), torch.ones(0, 4), torch.ones(2, 4).to_sparse(),
        torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8), torch.tensor([1, 2]),
        torch.ones(2, 4).as_subclass(Own), torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)]),
        None, 3, "text", {"x": torch.ones(1)}, [torch.ones(1)], object, torch.ones(2, 4, device="meta"),
        torch.complex(torch.ones(2), torch.ones(2)), torch.ones(2, 3, dtype=torch.bool),
        torch.zeros(2**20).expand(64, -1),
    ]  # fmt: skip
    found = []
    for value in given:
        found += [digest(model(value)), digest(model(value, value)), digest(model(x=value))]
    return found


main()
