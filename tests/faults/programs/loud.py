"""Trains, logging much (loud.py STEPS BYTES); says READY, and for each line deletes what others left, and trains on."""

import contextlib
import logging
import os
import sys
from pathlib import Path

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
    with contextlib.suppress(OSError):
        Path(os.environ.get("OTEL_ML_DIR", ""), "others").unlink()
    tiny.train(5)
    print("DONE", flush=True)
