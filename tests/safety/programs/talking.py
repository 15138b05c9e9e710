"""Says things on both streams in every way, and ends with an exception inside a model."""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import warnings

import torch
from torch import nn, optim

print("first line")
sys.stdout.write("no newline, ")
sys.stdout.flush()
os.write(1, b"by number\n")
print("on stderr", file=sys.stderr)
ctypes.CDLL(None).puts(b"from C")
ctypes.CDLL(None).fflush(None)
subprocess.run([sys.executable, "-c", "import sys; print('a child'); print('its error', file=sys.stderr)"], check=True)
print({number: str(signal.getsignal(number)) for number in sorted(signal.valid_signals())})
print(sys.argv[1:], __name__, sys.flags.optimize, len(sys.path) > 0)

logging.warning("before anything is configured")
logging.getLogger("mine").error("a logger with no handler")
logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(name)s %(message)s", force=True)
logging.getLogger("mine").debug("configured: %s", logging.getLogger().handlers[0].__class__.__name__)
logging.captureWarnings(True)
warnings.warn("captured", stacklevel=1)
logging.captureWarnings(False)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        warnings.warn("from a model, told once", stacklevel=1)
        if x.sum() < 0:
            raise FloatingPointError("the end") from ValueError("its cause")
        return self.head(x)


torch.manual_seed(0)
model = Net()
optimizer = optim.SGD(model.parameters(), lr=0.1)
scheduler = optim.lr_scheduler.StepLR(optimizer, 2)
scheduler.step()
for step in range(12):
    optimizer.zero_grad()
    loss = model(torch.ones(2, 4)).sum()
    loss.backward()
    optimizer.step()
    print(step, repr(loss.item()))
model(torch.ones(2, 4)).sum().backward(create_graph=True)
print("last line, without its end", end="")
model(-torch.ones(2, 4))
