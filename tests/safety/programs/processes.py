"""Children by fork, spawn and forkserver, and what is sent to them."""

import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import torch
from cases import case, digest, main, train
from torch import nn, optim


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.hidden(x).tanh())


def sgd(parameters):
    return optim.SGD(parameters, lr=0.05)


def trained(model):
    torch.manual_seed(1)
    return train(model, sgd, lambda: (torch.randn(3, 4),))


def work(model, weight, optimizer, queue):
    """In the child: go on with what came, and send tensors back."""
    before = digest(model(torch.ones(1, 4)), weight, optimizer.state_dict())
    queue.put([before, trained(model), multiprocessing.current_process().name, model.hidden.weight.detach().clone()])
    queue.join()
    sys.exit(3)


def failing(model):
    model(torch.ones(1, 4))
    raise SystemExit("a message on stderr")


def _with(method):
    context = torch.multiprocessing.get_context(method)
    model = Net()
    optimizer = sgd(model.parameters())
    for _ in range(12):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
    queue = context.JoinableQueue()
    child = context.Process(target=work, args=(model, torch.ones(3).share_memory_(), optimizer, queue), name="child")
    child.start()
    before, learned, name, weight = queue.get(timeout=120)
    weight = digest(weight)
    queue.task_done()
    child.join(120)
    return [before, learned, name, weight, child.exitcode, digest(model.state_dict())]


@case
def fork():
    return _with("fork")


@case
def spawn():
    return _with("spawn")


@case
def forkserver():
    return _with("forkserver")


@case
def fork_and_wait():
    """A fork without multiprocessing: the child trains on and leaves at once."""
    model = Net()
    first = trained(model)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        with os.fdopen(write, "w") as out:
            out.write(digest(trained(model)))
        os._exit(7)
    os.close(write)
    with os.fdopen(read) as said:
        theirs = said.read()
    _, status = os.waitpid(child, 0)
    return [first, theirs, digest(trained(model)), os.waitstatus_to_exitcode(status)]


@case
def pools():
    batch = [torch.full((2, 2), float(n)) for n in range(4)]
    found = []
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found.append(digest(pool.map(torch.sum, batch)))
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        found.append(digest(list(pool.map(torch.exp, batch))))
    return found


@case
def failing_child():
    child = multiprocessing.get_context("fork").Process(target=failing, args=(Net(),))
    child.start()
    child.join()
    return child.exitcode


@case
def subprocesses():
    """A Python without torch, one that trains, and one that asks for nothing of the environment."""
    quick = "import sys; print(sorted(sys.argv), sys.flags.isolated); sys.exit(4)"
    slow = "import torch; m = torch.nn.Linear(2, 1); print(m(torch.ones(1, 2)).shape)"
    found = []
    for arguments in (["-c", quick], ["-I", "-c", quick], ["-c", slow]):
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
        found.append([done.stdout, done.stderr, done.returncode])
    return found


@case
def distributed():
    """One process with gloo: DistributedDataParallel and what it averages."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = DistributedDataParallel(Net())
        found = [trained(model), sorted(model.state_dict()), type(model.module).__name__]
        with model.no_sync():
            model(torch.ones(1, 4)).sum().backward()
        found.append(digest([p.grad for p in model.parameters()]))
        static = DistributedDataParallel(Net(), static_graph=True)
        return [*found, trained(static)]
    finally:
        # Gloo's threads let go of what they did under the interpreter lock. Where the group goes before they have,
        # torch waits for them with that lock in its hand: alone, too.
        time.sleep(0.5)
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
