"""Gives spans and logs, in steps, what no telemetry can hold; an ordinary one follows each."""

import logging

import torch
from opentelemetry import trace
from tiny import Tiny

ODD = {
    "nan": float("nan"),
    "infinite": float("inf"),
    "negative": float("-inf"),
    "huge": 2**80,
    "hugely negative": -(2**80),
    "just too large": 2**63,
    "long": "x" * 10_000_000,
    "bytes": b"\xff\x00\xfe",
    "surrogate": "a\ud800z",
    "mixed": [1, "a", None],
    "huge ones": [2**80, 1],
    "nested": {"a": {"b": [2**80, float("nan"), "\udfff"]}},
    "tensor": torch.ones(3),
    "object": object(),
    "class": Tiny,
}
ODD["itself"] = [1]
ODD["itself"].append(ODD["itself"])

log = logging.getLogger("program")
log.setLevel(logging.INFO)
log.addHandler(logging.NullHandler())
log.propagate = False
tracer = trace.get_tracer("program")
tiny = Tiny()
for name, value in ODD.items():
    tiny.optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(tiny.model(tiny.x), tiny.y)
    with tracer.start_as_current_span(f"odd {name}") as span:
        if name != "itself":  # no tracer's attributes can hold that, with or without us
            span.set_attribute("value", value)
            span.add_event("event", value if isinstance(value, dict) else {"value": value})
        span.set_attribute("ordinary", 1)
        log.info("odd %s", name, extra={"value": value, "ordinary": 1})
    with tracer.start_as_current_span(f"ordinary {name}"):
        log.info("ordinary %s", name)
    loss.backward()
    tiny.optimizer.step()
    print("loss", name, repr(loss.item()))
with tracer.start_as_current_span("odd name \ud800") as span:
    span.set_attribute("key \ud800", "value")
    span.set_status(trace.StatusCode.ERROR, "\ud800")
    try:
        raise ValueError("\ud800" * 10)
    except ValueError as error:
        span.record_exception(error)
        log.exception("odd \ud800 %s", 2**5000)
    log.info("odd body", extra={"key \ud800": 1})
    log.info({"odd": [b"\xff", float("nan"), 2**80]})
with tracer.start_as_current_span("ordinary end"):
    log.info("ordinary end")
print("done")
