"""Trains, and says when the program itself is done: what follows is the interpreter's, and ours."""

import atexit
import logging
import sys
import time

from tiny import Tiny

logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
atexit.register(lambda: print("LEAVING", flush=True))
tiny = Tiny()
tiny.train(10)
logging.getLogger("program").info("half way")
time.sleep(1.5)  # work elsewhere: meanwhile the first half is sent
tiny.train(10)
if sys.argv[1:] == ["fail"]:
    raise ValueError("on purpose")
