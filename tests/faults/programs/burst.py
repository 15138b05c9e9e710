"""Trains two steps, then makes more spans and log records at once than the SDK's queues hold."""

from __future__ import annotations

import logging
import sys
import time

import torch
from opentelemetry import trace

COUNT = int(sys.argv[1])

model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(2):
    optimizer.zero_grad()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
time.sleep(2)  # the drain has seen it, and what is recorded is kept

tracer = trace.get_tracer("burst")
for _ in range(COUNT):
    tracer.start_span("burst").end()
logging.getLogger().setLevel(logging.INFO)
for _ in range(COUNT):
    logging.getLogger("burst").info("burst")
print("done")
