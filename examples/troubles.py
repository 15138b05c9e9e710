"""Train a tiny character model with one trouble of your choice, and see what your alerts and dashboards make of it.

An ordinary program; what goes wrong in it goes wrong in real ones. The text is the one behind `help("if")`.

    python examples/troubles.py nan
    python examples/troubles.py slow-data --steps 2000
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

if TYPE_CHECKING:
    from collections.abc import Callable

TROUBLES = {
    "none": "all is well",
    "nan": "from the middle on the loss is NaN: a logarithm of zero, and then the weights are",
    "spike": "an eighth of the steps have a loss four times as high",
    "skipped": "every other step's gradients overflow, so the gradient scaler skips it",
    "slow-data": "the data set takes longer than the model",
    "slowdown": "from the middle on, every step takes 50 ms longer",
    "recompiles": "a compiled model meets a new batch size again and again",
    "checkpoint-failed": "a checkpoint is saved into a folder that is not there",
    "stall": "the program sleeps in the middle of a step, for --stall seconds",
    "crash": "an exception ends the program",
}


class Text(Dataset[tuple[Tensor, Tensor]]):
    """Windows of characters, each with the one that follows; `delay_s` is what fetching one costs."""

    def __init__(self, context: int, delay_s: float) -> None:
        text = "\n".join(topics.values())[:50_000]
        self.vocabulary = sorted(set(text))
        code_of = {character: code for code, character in enumerate(self.vocabulary)}
        self.codes = torch.tensor([code_of[character] for character in text])
        self.context = context
        self.delay_s = delay_s

    def __len__(self) -> int:
        return len(self.codes) - self.context

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.delay_s:
            time.sleep(self.delay_s)
        return self.codes[index : index + self.context], self.codes[index + self.context]


class Model(nn.Module):
    """Two layers over embedded characters."""

    def __init__(self, vocabulary: int, context: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, 16)
        self.mix = nn.Linear(16 * context, width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.mix(self.embed(x).flatten(1))))


def trouble(name: str, step: int, steps: int, loss: Tensor, stall_s: float, out: Path) -> Tensor:
    """What goes wrong inside this step; the loss to go on with."""
    middle = steps // 2
    if name == "spike" and middle <= step < middle + steps // 8:
        return loss * 4
    if name == "slowdown" and step >= middle:
        time.sleep(0.05)
    if step == middle:
        if name == "nan":
            return loss * torch.zeros(()).log()
        if name == "stall":
            time.sleep(stall_s)
        elif name == "crash":
            message = f"step {step} met a batch that it cannot learn from"
            raise RuntimeError(message)
        elif name == "checkpoint-failed":
            try:
                torch.save({"step": step}, out / "missing" / "model.pt")
            except RuntimeError as error:
                print(f"not saved: {error}")
    return loss


def train(name: str, steps: int, pause_s: float, stall_s: float, out: Path) -> None:
    torch.manual_seed(0)
    context, batch = 32, 32
    data = Text(context, delay_s=0.001 if name == "slow-data" else 0.0)
    loader = DataLoader(data, batch_size=batch, shuffle=True, drop_last=True)
    model: nn.Module = Model(len(data.vocabulary), context, width=1024)
    called: Callable[[Tensor], Tensor] = model
    if name == "recompiles":
        called = torch.compile(model, backend="eager", dynamic=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1, enabled=name == "skipped")
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    for step in range(steps):
        x, y = next(batches)
        if name == "recompiles":
            x, y = x[: batch - step % 16], y[: batch - step % 16]
        loss = nn.functional.cross_entropy(called(x), y)
        loss = trouble(name, step, steps, loss, stall_s, out)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        if name == "skipped" and step % 2:
            next(model.parameters()).grad.view(-1)[0] = torch.inf  # type: ignore[union-attr]
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
        time.sleep(pause_s)
    torch.save(model.state_dict(), out / "model.pt")


def main() -> None:
    told = "\n".join(f"  {name:18} {what}" for name, what in TROUBLES.items())
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=f"troubles:\n{told}", formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("trouble", choices=TROUBLES)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--pause", type=float, default=0.0, metavar="SECONDS", help="after each step, to last longer")
    parser.add_argument("--stall", type=float, default=1200.0, metavar="SECONDS", help="default: %(default)s")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as out:
        train(arguments.trouble, arguments.steps, arguments.pause, arguments.stall, Path(out))


if __name__ == "__main__":
    main()
