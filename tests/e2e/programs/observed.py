"""A training loop that its author watches too: spans around loading, batches and evaluation, and in threads.

It uses the OpenTelemetry API alone. The truth names each span and log with the step it was opened in, or null
where there is none, and for each span the name of the program's own span around it. The loader's span is opened
before the fetch ends a step, and so in the step before. With the word `wait` it ends when a line comes on stdin.
"""

import contextvars
import json
import logging
import sys
import threading

import torch
from opentelemetry import trace
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
log = logging.getLogger("program")
tracer = trace.get_tracer("program")

torch.manual_seed(0)
train_loader = DataLoader(TensorDataset(torch.randn(120, 8), torch.randn(120, 1)), batch_size=8)
test_loader = DataLoader(TensorDataset(torch.randn(16, 8), torch.randn(16, 1)), batch_size=8)
model = nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
spans: list[tuple[str, int | None, str | None]] = []
logs: list[tuple[str, int | None]] = []


def work(name: str) -> None:
    with tracer.start_as_current_span(name):
        log.info("%s works", name)


def in_thread(name: str, context: contextvars.Context) -> None:
    thread = threading.Thread(target=context.run, args=(work, name))
    thread.start()
    thread.join()


step = 0
batches = iter(train_loader)
while True:
    before = step - 1 if step % 5 else None
    with tracer.start_as_current_span("load"):
        batch = next(batches, None)
    spans.append(("load", before, None))
    if batch is None:
        break
    x, y = batch
    with tracer.start_as_current_span("batch"):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        in_thread(f"inner {step}", contextvars.copy_context())
        optimizer.step()
    in_thread(f"outer {step}", contextvars.copy_context())
    log.info("step %d done", step)
    print("loss", step, repr(loss.item()))
    spans += [("batch", step, None), (f"inner {step}", step, "batch"), (f"outer {step}", step, None)]
    logs += [(f"inner {step} works", step), (f"outer {step} works", step), (f"step {step} done", step)]
    if step == 7:
        in_thread("alone", contextvars.Context())
        spans.append(("alone", None, None))
        logs.append(("alone works", None))
    if step % 5 == 4:
        with torch.no_grad():
            losses = [nn.functional.mse_loss(model(x), y).item() for x, y in test_loader]
        with tracer.start_as_current_span("evaluated"):
            log.info("evaluated after %d", step)
        spans.append(("evaluated", None, None))
        logs.append((f"evaluated after {step}", None))
    step += 1
truth = {"steps": 15, "skipped": 0, "failed": 0, "evaluations": 3, "inference": 0, "micro_batches": 15}
print("truth", json.dumps({**truth, "samples": 120, "exit": 0, "spans": spans, "logs": logs}), flush=True)
if sys.argv[1:] == ["wait"]:
    sys.stdin.readline()
