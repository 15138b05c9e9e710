"""Trains ten steps for each line it is given, and says what time it is before and after."""

import sys
import time

from tiny import Tiny

tiny = Tiny()
print("READY", flush=True)
for _line in sys.stdin:
    before = time.time_ns()
    for _step in range(10):
        tiny.step()
        time.sleep(0.01)
    time.sleep(1.2)
    print("DONE", before, time.time_ns(), flush=True)
