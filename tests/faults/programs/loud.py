"""Trains, logging much (loud.py STEPS BYTES); says READY, and trains five steps more for each line it is given."""

import logging
import sys

from tiny import Tiny

log = logging.getLogger("program")
log.setLevel(logging.INFO)
log.addHandler(logging.NullHandler())
log.propagate = False
tiny = Tiny()
for _step in range(int(sys.argv[1])):
    tiny.train(1)
    log.info("x" * int(sys.argv[2]))
print("READY", flush=True)
for _line in sys.stdin:
    tiny.train(5)
    print("DONE", flush=True)
