"""Forks in the middle of training: each child trains, logs and opens a span, and says how many threads it has."""

import atexit
import logging
import os
import sys
from pathlib import Path

from opentelemetry import trace
from tiny import Tiny

atexit.register(lambda: print("LEAVING", flush=True))
logging.basicConfig(level=logging.INFO)
log = logging.getLogger("program")
tracer = trace.get_tracer("program")
tiny = Tiny()
tiny.train(5)
for number in range(12):
    child = os.fork()
    if child == 0:
        with tracer.start_as_current_span("in a child"):
            Tiny(number).train(3)
            log.info("in a child")
        print("threads", len(list(Path("/proc/self/task").iterdir())), flush=True)
        if number == 5:
            sys.exit(3)
        if number == 6:
            raise RuntimeError("in a child")
        os._exit(4)
    print("ended", os.waitpid(child, 0)[1], flush=True)
    tiny.train(1)
log.info("in the parent")
