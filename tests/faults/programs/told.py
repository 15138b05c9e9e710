"""Trains, says READY, and does what it is told on stdin: each line is a word and perhaps a number.

train N, busy (a C call that never ends), _exit, segfault, abort, raise, exit
"""

import ctypes
import os
import sys

from tiny import Tiny

tiny = Tiny()
tiny.train(20)
print("READY", os.getpid(), flush=True)
for line in sys.stdin:
    word, _, number = line.strip().partition(" ")
    if word == "train":
        tiny.train(int(number))
    elif word == "busy":
        library, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
        library.pthread_mutex_lock(mutex)
        print("BUSY", flush=True)
        library.pthread_mutex_lock(mutex)  # no signal interrupts it, and the interpreter's lock is held meanwhile
    elif word == "_exit":
        os._exit(int(number))
    elif word == "segfault":
        ctypes.string_at(0)
    elif word == "abort":
        os.abort()
    elif word == "raise":
        raise ValueError("told to")
    elif word == "exit":
        sys.exit(int(number))
    print("DONE", word, flush=True)
