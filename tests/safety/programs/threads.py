"""Programs that look at the threads there are: they join them all, wait until they are alone, name and number them."""

import inspect
import logging.config
import os
import pickle
import sys
import threading
import time

import torch
from cases import case, digest, main
from torch import nn

LONG_S = 20  # more than any thread of the program's takes


def trained():
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(12):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
    return digest(model.state_dict())


def work(seconds=0.05):
    time.sleep(seconds)


def started(count=2):
    found = [threading.Thread(target=work, name=f"the program's {number}") for number in range(count)]
    for thread in found:
        thread.start()
    return found


def alone():
    """Whether the program is, or comes to be, the only thread that it finds."""
    until = time.monotonic() + LONG_S
    while threading.active_count() > 1 and time.monotonic() < until:
        time.sleep(0.01)
    return threading.active_count()


@case
def join_them_all():
    found = [trained()]
    started()
    for thread in threading.enumerate():
        if thread is not threading.main_thread():
            thread.join(LONG_S)
            found.append([thread.name, thread.is_alive()])
    return found


@case
def wait_until_alone():
    started()
    return [threading.active_count(), alone(), [thread.name for thread in threading.enumerate()]]


@case
def in_children():
    """A forked child finds itself, then what it starts."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        first = [thread.name for thread in threading.enumerate()]
        started()
        with os.fdopen(write, "w") as out:
            out.write(f"{first} {threading.active_count()} {alone()} {trained()}")
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as said:
        theirs = said.read()
    return [theirs, os.waitpid(child, 0)[1]]


@case
def stacks():
    """Where each thread is, by name."""
    running = started()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    found = sorted((names[ident], frame.f_globals["__name__"]) for ident, frame in sys._current_frames().items())
    me = sys._current_frames()[threading.get_ident()].f_code.co_name
    for thread in running:
        thread.join()
    return [found, me]


@case
def numbers():
    """What was configured anew has started no thread: the program's first is the first."""
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
    logging.shutdown()
    return threading.Thread(target=work).name


@case
def looks():
    found = []
    for function in (threading.enumerate, threading.active_count):
        found.append([
            function.__name__, function.__qualname__, function.__module__, function.__doc__,
            str(inspect.signature(function)), inspect.getsource(function),
            pickle.loads(pickle.dumps(function)) is function,
        ])  # fmt: skip
    return [*found, sys._current_frames.__name__, sys._current_frames.__doc__]


if __name__ == "__main__":
    main()
