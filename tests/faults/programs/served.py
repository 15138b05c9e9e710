"""Serves a model: answers as many requests as it is asked for, one of them with an exception."""

import contextlib
import sys

import torch

FAILS = 7  # of each ten, the one that does not fit the model


def serve(ask) -> None:
    model = torch.nn.Linear(8, 1).eval()
    for line in iter(ask, ""):
        for number in range(int(line)):
            with torch.no_grad(), contextlib.suppress(RuntimeError):
                model(torch.ones(2, 9 if number % 10 == FAILS else 8))
        print("ANSWERED", flush=True)


if __name__ == "__main__":
    print("READY", flush=True)
    serve(sys.stdin.readline)
