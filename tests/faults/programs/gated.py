"""Trains as many steps as each line of its input says, and tells when they are made; ends with its input."""

import logging
import sys
import time

from tiny import Tiny

logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
tiny = Tiny()
for line in sys.stdin:
    for _ in range(int(line)):
        tiny.step()
        time.sleep(0.005)
    logging.getLogger("program").info("made %d", tiny.made)
    print("MADE", tiny.made, flush=True)
