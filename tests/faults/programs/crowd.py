"""Two hundred threads that train at once, then an event loop with fifty tasks that ask a model."""

import asyncio
import logging
import threading

import torch
from opentelemetry import trace
from tiny import Tiny

THREADS, TASKS = 200, 50
tracer = trace.get_tracer("program")
log = logging.getLogger("program")
log.setLevel(logging.INFO)
barrier = threading.Barrier(THREADS)
losses: dict[int, list[float]] = {}


def train(number: int) -> None:
    tiny = Tiny(number)
    barrier.wait()
    losses[number] = [tiny.step() for _ in range(3)]
    log.info("in a thread")


async def ask(model: torch.nn.Module, number: int) -> float:
    with tracer.start_as_current_span("in a task"):
        await asyncio.sleep(0)
        with torch.no_grad():
            answer = model(torch.full((1, 8), float(number))).item()
        await asyncio.sleep(0)
        log.info("in a task")
        return answer


async def serve() -> None:
    model = torch.nn.Linear(8, 1).eval()
    with torch.no_grad():
        model.weight.fill_(0.5)
        model.bias.zero_()
    print("answers", await asyncio.gather(*(ask(model, number) for number in range(TASKS))))
    tiny = Tiny()
    print("in another thread", await asyncio.to_thread(tiny.step))


threads = [threading.Thread(target=train, args=(number,)) for number in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for number in sorted(losses):
    print("losses", number, losses[number])
asyncio.run(serve())
