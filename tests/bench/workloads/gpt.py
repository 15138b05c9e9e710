"""Train a small GPT from a DataLoader: a step of about 30 ms."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tests.bench.loops import Training, run, sized, stopwatch

VOCABULARY, LENGTH, WIDTH, BATCH = 96, 64, 96, 8


class Texts(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Sequences to continue, made up from their index."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        text = (torch.arange(LENGTH + 1) * (index % 7 + 1) + index) % VOCABULARY
        return text[:-1], text[1:]


class Gpt(nn.Module):
    """A decoder with learned positions."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        block = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Predict the next token's logits at every place."""
        hidden = self.tokens(tokens) + self.positions.weight
        logits: torch.Tensor = self.head(self.blocks(hidden, mask=self.mask, is_causal=True))
        return logits


def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy over all places."""
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main() -> None:
    """Train for one pass over the texts, loaded by a worker."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    watch = stopwatch(200, warmup=10)
    model = Gpt()
    batch = sized(BATCH)
    run(
        Training(
            model=model,
            optimizer=torch.optim.AdamW(model.parameters(), lr=3e-4),
            loss=loss,
            batches=DataLoader(Texts(watch.total * batch), batch_size=batch, shuffle=True, num_workers=1),
            batch_size=batch,
            watch=watch,
        )
    )


if __name__ == "__main__":
    main()
