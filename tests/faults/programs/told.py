"""Trains, says READY, and does what it is told on stdin: each line is a word and perhaps a number.

train N, busy (one multiplication of many seconds), _exit, segfault, abort, raise, exit
"""

import ctypes
import os
import sys

import torch
from tiny import Tiny

tiny = Tiny()
tiny.train(20)
print("READY", os.getpid(), flush=True)
for line in sys.stdin:
    word, _, number = line.strip().partition(" ")
    if word == "train":
        tiny.train(int(number))
    elif word == "busy":
        huge = torch.zeros(10_000, 10_000)
        print("BUSY", flush=True)
        print("finished", (huge @ huge)[0, 0].item(), flush=True)
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
