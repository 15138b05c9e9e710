"""A program with spans and logs of its own: in steps, in their phases, in evaluations and between steps.

It uses the OpenTelemetry API alone. The truth names each span and log with its step, or null where
there is none, and for each span the name of the program's own span around it.
"""

import json
import logging
import sys

import torch
from opentelemetry import trace
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
log = logging.getLogger("program")
tracer = trace.get_tracer("program")


class Net(nn.Module):
    """A linear model whose forward pass has a span."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        with tracer.start_as_current_span("in_forward"):
            return self.layer(x)


torch.manual_seed(0)
train_loader = DataLoader(TensorDataset(torch.randn(96, 8), torch.randn(96, 1)), batch_size=8)
test_loader = DataLoader(TensorDataset(torch.randn(16, 8), torch.randn(16, 1)), batch_size=8)
model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
spans: list[tuple[str, int | None, str | None]] = [("before_training", None, None)]
logs: list[tuple[str, int | None]] = [("starting", None)]
with tracer.start_as_current_span("before_training"):
    log.info("starting")
for step, (x, y) in enumerate(train_loader):
    with tracer.start_as_current_span("batch"):
        log.info("step %d begins", step)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        with tracer.start_as_current_span("in_backward"):
            loss.backward()
    optimizer.step()
    with tracer.start_as_current_span("bookkeeping", attributes={"program.step": step}):
        log.warning("step %d ends", step)
    print("loss", step, repr(loss.item()))
    spans += [("batch", step, None), ("in_forward", step, "batch"), ("in_backward", step, "batch")]
    spans += [("bookkeeping", step, None)]
    logs += [(f"step {step} begins", step), (f"step {step} ends", step)]
    if step % 4 == 3:
        with torch.no_grad():
            losses = [nn.functional.mse_loss(model(x), y).item() for x, y in test_loader]
        with tracer.start_as_current_span("after_evaluation"):
            log.info("evaluated after %d", step)
        spans += [("in_forward", None, None)] * len(losses) + [("after_evaluation", None, None)]
        logs += [(f"evaluated after {step}", None)]
truth = {"steps": 12, "skipped": 0, "failed": 0, "evaluations": 3, "inference": 0, "micro_batches": 12}
print("truth", json.dumps({**truth, "samples": 96, "exit": 0, "spans": spans, "logs": logs}))
