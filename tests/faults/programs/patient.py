"""Trains until Ctrl-C, then tidies up until another one; a line tells of each."""

import atexit
import signal
import sys

from tiny import Tiny

# A shell that starts a job in the background has it ignore Ctrl-C; this program must not.
signal.signal(signal.SIGINT, signal.default_int_handler)
atexit.register(print, "LEAVING", flush=True)
tiny = Tiny()
tiny.train(20)
try:
    print("READY", flush=True)
    while True:
        tiny.step()
finally:
    if sys.argv[1:] == ["tidy"]:
        print("TIDYING", flush=True)
        while True:
            signal.pause()
