"""Trains in multiprocessing children, then itself: children.py fork|spawn|forkserver."""

import multiprocessing
import sys

from tiny import Tiny


def train(number: int, steps: int) -> None:
    Tiny(number).train(steps)
    if number == 1:
        raise ValueError("in a child")


if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    for number in range(2):
        child = context.Process(target=train, args=(number, 5 + number))
        child.start()
        child.join()
        print("ended", child.exitcode, flush=True)
    Tiny().train(3)
