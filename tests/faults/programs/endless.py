"""Trains about two hundred steps a second until it is killed, and says when each step had ended."""

import os
import time

from tiny import Tiny

tiny = Tiny()
print("READY", os.getpid(), flush=True)
while True:
    number = tiny.made
    tiny.step()
    print("step", number, time.time_ns(), flush=True)
    time.sleep(0.005)
