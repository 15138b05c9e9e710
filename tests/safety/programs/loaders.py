"""DataLoaders of every kind, and what their iterators are."""

import collections
import copy
import pickle
import random

import torch
from cases import case, digest, main, said
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    ChainDataset,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    dataloader,
    default_collate,
    get_worker_info,
    random_split,
)


class Numbers(Dataset):
    def __init__(self, count=20):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, at):
        info = get_worker_info()
        return {"x": torch.full((4,), float(at)), "at": at, "worker": -1 if info is None else info.id}


class Transformed(Numbers):
    """Calls modules and an optimizer inside the dataset."""

    def __getitem__(self, at):
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        with torch.no_grad():
            return model(torch.ones(4)) * at + random.random()


class Stream(IterableDataset):
    def __init__(self, count=10):
        self.count = count

    def __iter__(self):
        info = get_worker_info()
        start, step = (0, 1) if info is None else (info.id, info.num_workers)
        for at in range(start, self.count, step):
            yield torch.full((2,), float(at))


class Pairs(Sampler):
    def __init__(self, count):
        self.count = count

    def __iter__(self):
        for at in range(0, self.count, 2):
            yield [at, at + 1]

    def __len__(self):
        return self.count // 2


Point = collections.namedtuple("Point", "x y")  # noqa: PYI024


def collate(items):
    return Point(default_collate([item["x"] for item in items]), [item["at"] for item in items])


def all_of(loader):
    """Two epochs, and what kind of things came."""
    return [[[type(b).__name__, digest(b)] for b in loader] for _ in range(2)]


@case
def in_this_process():
    data = Numbers()
    loaders = {
        "plain": DataLoader(data),
        "batches": DataLoader(data, batch_size=3, drop_last=True),
        "shuffled": DataLoader(data, batch_size=4, shuffle=True),
        "generator": DataLoader(data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(3)),
        "unbatched": DataLoader(data, batch_size=None),
        "collated": DataLoader(data, batch_size=4, collate_fn=collate),
        "sampler": DataLoader(data, batch_size=4, sampler=SequentialSampler(range(6))),
        "random": DataLoader(data, batch_size=4, sampler=RandomSampler(data, replacement=True, num_samples=8)),
        "weighted": DataLoader(data, batch_size=4, sampler=WeightedRandomSampler([1.0] * 20, 8)),
        "batch sampler": DataLoader(data, batch_sampler=BatchSampler(SequentialSampler(data), 5, drop_last=False)),
        "own sampler": DataLoader(data, batch_sampler=Pairs(10)),
        "stream": DataLoader(Stream(), batch_size=3),
        "chained": DataLoader(ChainDataset([Stream(3), Stream(4)]), batch_size=2),
        "joined": DataLoader(ConcatDataset([Numbers(3), Subset(data, [5, 7])]), batch_size=2),
        "split": DataLoader(random_split(data, [15, 5])[1], batch_size=2),
        "tensors": DataLoader(TensorDataset(torch.arange(6.0), torch.arange(6)), batch_size=4),
        "strings": DataLoader(["a", "b", "c"], batch_size=2),
        "empty": DataLoader([], batch_size=2),
        "lists": DataLoader([[1, torch.ones(2)], [2, torch.ones(2)]], batch_size=2, collate_fn=lambda b: b),
        "odd": DataLoader(range(3), collate_fn=lambda b: object),
        "nothing": DataLoader(range(3), collate_fn=lambda b: None),
        "modules": DataLoader(Transformed(6), batch_size=2),
    }
    return {name: [all_of(loader), _length(loader)] for name, loader in loaders.items()}


def _length(loader):
    try:
        return len(loader)
    except TypeError as error:
        return said(error)


def in_worker(worker):
    random.seed(worker)


@case
def with_workers():
    generator = torch.Generator().manual_seed(1)
    loaders = {
        "shuffled": DataLoader(Numbers(), batch_size=4, shuffle=True, num_workers=2, generator=generator),
        "kept": DataLoader(Numbers(), batch_size=4, num_workers=2, persistent_workers=True, prefetch_factor=3),
        "stream": DataLoader(Stream(), batch_size=2, num_workers=2),
        "modules": DataLoader(Transformed(8), batch_size=2, num_workers=2, worker_init_fn=in_worker),
    }
    return {name: all_of(loader) for name, loader in loaders.items()}


@case
def iterators():
    """Types, protocols, names and copies."""
    found = []
    for workers in (0, 1):
        loader = DataLoader(Numbers(6), batch_size=2, num_workers=workers)
        each = iter(loader)
        found += [
            type(each).__name__, type(each).__qualname__, type(each).__module__,
            [c.__name__ for c in type(each).__mro__], sorted(vars(type(each))),
            isinstance(each, dataloader._BaseDataLoaderIter), isinstance(each, collections.abc.Iterator), len(each),
            iter(each) is each, sorted(vars(dataloader._BaseDataLoaderIter)), each._num_yielded,
            digest(next(each)), each._num_yielded, digest(each.__next__()), digest(type(each).__next__(each)),
            next(each, "end"), sorted(vars(each)),
        ]  # fmt: skip
        try:
            next(each)
        except StopIteration as error:
            found.append(said(error))
        try:
            pickle.dumps(each)
        except Exception as error:
            found.append(said(error))
    twin = pickle.loads(pickle.dumps(DataLoader(Numbers(6), batch_size=2)))
    found += [all_of(twin), all_of(copy.deepcopy(twin)), repr(type(twin)), sorted(vars(twin))]
    return found


@case
def own_iterators():
    class Iter(dataloader._SingleProcessDataLoaderIter):
        def __next__(self):
            batch = super().__next__()
            batch["x"] += 1
            return batch

    class Loader(DataLoader):
        def _get_iterator(self):
            return Iter(self)

    class Around(DataLoader):
        def __iter__(self):
            for batch in super().__iter__():
                yield batch["x"] * 2

    return [all_of(Loader(Numbers(), batch_size=4)), all_of(Around(Numbers(), batch_size=4, num_workers=1))]


@case
def batches_that_tell():
    """Batches whose class says who asked it for what."""
    asked = []

    def telling(base, *names):
        def method(name):
            def tell(self, *args):
                asked.append([base.__name__, name])
                return getattr(base, name)(self, *args)

            return tell

        return type(f"Telling{base.__name__}", (base,), {name: method(name) for name in names})

    of_dicts = ("get", "values", "items", "keys", "__iter__", "__getitem__", "__len__", "__contains__")
    of_lists = ("__iter__", "__getitem__", "__len__", "__getattribute__")
    kinds = [telling(dict, *of_dicts, "__getattribute__"), telling(collections.UserDict, *of_dicts)]
    rows = [telling(list, *of_lists), telling(tuple, *of_lists), telling(Tensor, "__len__", "numel", "size")]

    class Proxy:
        @property
        def __class__(self):
            asked.append("class")
            return tuple

    makers = [lambda items, kind=kind: kind({"x": torch.stack(items)}) for kind in kinds]
    makers += [lambda items, kind=kind: kind([torch.stack(items)]) for kind in rows[:2]]
    makers += [lambda items: torch.stack(items).as_subclass(rows[2]), lambda items: Proxy()]
    for make in makers:
        asked.append("next")
        for _ in DataLoader(torch.ones(4, 3), batch_size=2, collate_fn=make):
            pass
    return asked


@case
def errors():
    class Broken(Numbers):
        def __getitem__(self, at):
            if at == 3:
                raise KeyError("three")
            return super().__getitem__(at)

    found = []
    for workers in (0, 1):
        seen = []
        try:
            for batch in DataLoader(Broken(), num_workers=workers):
                seen.append(digest(batch))
        except KeyError as error:
            found.append([seen, type(error).__name__, str(error).splitlines()[-1]])
    mine = RuntimeError("mine")

    def failing(items):
        raise mine

    try:
        next(iter(DataLoader(Numbers(), collate_fn=failing)))
    except RuntimeError as error:
        found.append([error is mine, said(error)])
    loader = DataLoader(Numbers())
    for wrong in (lambda: DataLoader(Numbers(), num_workers=-1), lambda: setattr(loader, "batch_size", 3)):
        try:
            wrong()
        except ValueError as error:
            found.append(said(error))
    return found


@case
def left_early():
    found = []
    for workers in (0, 2):
        loader = DataLoader(Numbers(), batch_size=2, shuffle=True, num_workers=workers)
        for batch in loader:
            found.append(digest(batch))
            break
        two = iter(loader), iter(loader)
        found += [digest(next(two[0]), next(two[1]), next(two[0]))]
    return found


@case
def training():
    """Epochs with evaluation between them."""
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    train = DataLoader(Numbers(), batch_size=4, shuffle=True, num_workers=2, persistent_workers=True)
    test = DataLoader(Numbers(8), batch_size=4)
    losses = []
    for _ in range(3):
        model.train()
        for batch in train:
            optimizer.zero_grad()
            loss = model(batch["x"]).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            losses.append(sum(model(batch["x"]).sum().item() for batch in test))
    return [digest(losses), digest(model.state_dict())]


main()
