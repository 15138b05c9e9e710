"""Train a small character-level GPT on the Python language reference, in about twenty seconds on two cores.

The text is the one behind `help("if")`, which ships with every CPython, so nothing is
downloaded. Run it as it is, or look for another size:

    python examples/torch_train.py
    python examples/torch_train.py --epochs 4 --layers 4 --width 128 --out checkpoints
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everybody knows it by
from torch.utils.data import DataLoader, Dataset

if TYPE_CHECKING:
    from collections.abc import Callable


class Text(Dataset[tuple[Tensor, Tensor]]):
    """Windows of `context` characters, each with the same window one character later."""

    def __init__(self, encoded: Tensor, context: int) -> None:
        self.encoded = encoded
        self.context = context

    def __len__(self) -> int:
        return (len(self.encoded) - 1) // self.context

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = index * self.context
        window = self.encoded[start : start + self.context + 1]
        return window[:-1], window[1:]


class Block(nn.Module):
    """Causal self-attention and a two-layer perceptron, each added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.projection(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(x)


class CharGPT(nn.Module):
    """A decoder-only transformer over characters."""

    def __init__(self, vocabulary: int, context: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device)
        return self.head(self.norm(self.blocks(self.characters(x) + self.positions(positions))))


def cross_entropy(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """How surprised the model is by the next character, in nats, averaged over the batch."""
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader[tuple[Tensor, Tensor]]) -> float:
    """The model's mean loss over the validation text."""
    model.eval()
    losses = [cross_entropy(model, inputs, targets).item() for inputs, targets in loader]
    model.train()
    return sum(losses) / len(losses)


def warmup_then_cosine(warmup: int, total: int) -> Callable[[int], float]:
    """A learning-rate factor that rises to 1 over `warmup` steps and falls to 0.1 at `total`."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))

    return factor


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2, help="passes over the text (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="stop after so many steps, whatever the epochs")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--context", type=int, default=64, help="characters that the model sees")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--workers", type=int, default=2, help="processes that load batches")
    parser.add_argument("--evaluate-every", type=int, default=100, metavar="STEPS")
    parser.add_argument("--out", type=Path, help="folder for the checkpoint (default: a temporary one)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def train(args: argparse.Namespace, out: Path) -> None:
    torch.manual_seed(args.seed)
    text = "\n".join(topics.values())
    characters = sorted(set(text))
    code_of = {character: code for code, character in enumerate(characters)}
    encoded = torch.tensor([code_of[character] for character in text])
    split = int(0.95 * len(encoded))
    train_loader = DataLoader(
        Text(encoded[:split], args.context),
        batch_size=args.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=args.workers,
    )
    validation_loader = DataLoader(Text(encoded[split:], args.context), batch_size=4 * args.batch_size)

    model = CharGPT(len(characters), args.context, args.width, args.heads, args.layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    total = args.steps or args.epochs * len(train_loader)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_then_cosine(min(40, total), total))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters:,} parameters, {len(text):,} characters, {total} steps")

    step = 0
    while step < total:
        for inputs, targets in train_loader:
            loss = cross_entropy(model, inputs, targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            step += 1
            if step % 20 == 0 or step == total:
                print(f"step {step:4d}  loss {loss.item():.4f}  lr {scheduler.get_last_lr()[0]:.5f}")
            if step % args.evaluate_every == 0 or step == total:
                print(f"step {step:4d}  validation loss {evaluate(model, validation_loader):.4f}")
            if step == total:
                break

    checkpoint = out / "char_gpt.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, checkpoint)
    print(f"saved {checkpoint.name}, {checkpoint.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    args = arguments()
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        train(args, args.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        train(args, Path(folder))


if __name__ == "__main__":
    main()
