"""Trains, waits for a line, takes all the memory it may have, and goes on or gives up: memory.py caught|uncaught."""

import resource
import sys
import time
from pathlib import Path

from tiny import Tiny

tiny = Tiny()
tiny.train(10)
print("READY", flush=True)
sys.stdin.readline()
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (96 << 20),) * 2)
hoard = []
for size in (1 << 20, 1 << 14, 1 << 10, 1 << 6):
    try:
        while True:
            hoard.append(bytearray(size))
    except MemoryError:
        if size == 1 << 6 and sys.argv[1] == "uncaught":
            raise
time.sleep(2.5)
hoard.clear()
print("freed", flush=True)
tiny.train(10)
