"""What a batch is told to hold: what its shapes say, or that they do not."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from otel_ml import names
from otel_ml.instrument.torch.values import shape
from otel_ml.testing import capture

if TYPE_CHECKING:
    from collections.abc import Callable

UNKNOWN = (-1, -1)
Pair = namedtuple("Pair", "x y")  # noqa: PYI024 - as programs have them
x, y, ids = torch.ones(8, 4), torch.ones(8), torch.ones(8, 5, dtype=torch.long)
image = torch.ones(3, 4, 5)


class Encoding(UserDict):  # type: ignore[type-arg]
    """As transformers' BatchEncoding is one."""

    def __getattr__(self, name: str) -> Any:
        return self.data[name]


@dataclass
class Held:
    """A batch of a program's own kind."""

    x: torch.Tensor


class Rows(list[Any]):
    """A list of a program's own kind."""


BATCHES: dict[str, tuple[Any, tuple[int, int]]] = {
    "a tensor": (x, (8, -1)),
    "a number": (torch.tensor(1.0), (1, -1)),
    "x and y": ([x, y], (8, -1)),
    "a named tuple": (Pair(x, 1), (8, -1)),
    "a list of a class of its own": (Rows([x, y]), (8, -1)),
    "two views and y": ([[x, x], y], (8, -1)),
    "input and target": ((ids, ids), (8, 40)),
    "input and target of floats": ((x, x), (8, -1)),
    "a dict": ({"meta": torch.tensor(2), "x": x, "y": y}, (8, -1)),
    "ids": ({"labels": y, "input_ids": ids}, (8, 40)),
    "an ordered dict of ids": (OrderedDict(input_ids=ids), (8, 40)),
    "an encoding": (Encoding(input_ids=ids, attention_mask=ids), (8, 40)),
    "an encoding of images": (Encoding(pixel_values=torch.ones(2, 3, 4, 4), labels=[{}, {}]), (2, -1)),
    "sequences": (nn.utils.rnn.pack_sequence([torch.ones(5, 2), torch.ones(3, 2)]), (2, -1)),
    "sequences in any order": (
        nn.utils.rnn.pack_sequence([torch.ones(2, 2), torch.ones(3, 2)], enforce_sorted=False),
        (2, -1),
    ),
    "images and their masks": ([torch.ones(8, 3, 4, 4), torch.ones(8, 1, 4, 4)], (8, -1)),
    "series": ([torch.ones(8, 24, 2), torch.ones(8, 12, 2)], (8, -1)),
    "rows of images and boxes": (tuple(zip((image, {}), (image[:, 1:], {}), strict=True)), (2, -1)),
    "rows of images and labels": (tuple(zip((image, torch.tensor(1)), (image, torch.tensor(2)), strict=True)), (2, -1)),
    "images": ([image, image], UNKNOWN),
    "images of several sizes": ([image, image[:, 1:]], UNKNOWN),
    "a graph": ((torch.ones(2, 9, dtype=torch.long), x), UNKNOWN),
    "a graph by name": ({"edge_index": torch.ones(2, 9, dtype=torch.long), "x": x}, UNKNOWN),
    "a scale and x": ([torch.ones(1), x], UNKNOWN),
    "rows": ([(torch.ones(4), 1), (torch.ones(4), 2)], UNKNOWN),
    "a batch of its own kind": (Held(x), UNKNOWN),
    "words": (["a", "b"], UNKNOWN),
    "nothing": (None, UNKNOWN),
    "an empty list": ([], UNKNOWN),
    "an empty tuple": ((), UNKNOWN),
    "empty tuples": (((), ()), UNKNOWN),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_samples_and_tokens(kind: str) -> None:
    """A batch is as many samples and tokens as its shapes say, and where they say several things, unknown."""
    batch, told = BATCHES[kind]
    assert shape(batch) == told


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_nested_tensors_tell_nothing() -> None:
    """A batch of nested tensors, which have no shape, is of unknown size, and that is no error."""
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    assert [shape(nested), shape([nested, y]), shape({"x": nested})] == [UNKNOWN] * 3


COLLATED: dict[str, Callable[[list[torch.Tensor]], Any]] = {
    "of its own kind": lambda rows: Held(torch.stack(rows)),
    "a graph": lambda rows: Pair(torch.stack(rows), torch.zeros(2, 9, dtype=torch.long)),
    "a scale": lambda rows: Pair(torch.stack(rows), torch.ones(1)),
}


@pytest.mark.parametrize("kind", COLLATED)
@pytest.mark.parametrize("steps", [3, 300])
def test_the_roots_batch_tells_where_the_loaders_does_not(kind: str, steps: int) -> None:
    """A step whose loader gave what tells no samples has those that its only root was given, in a steady loop too."""
    with capture() as seen:
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        rows: Any = [torch.ones(4)] * 2 * steps
        for batch in DataLoader(rows, batch_size=2, collate_fn=COLLATED[kind]):
            optimizer.zero_grad()
            model(batch.x).mean().backward()
            optimizer.step()
    assert [step.get(names.STEP_SAMPLES) for step in seen.steps()] == [2] * steps
