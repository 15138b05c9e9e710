"""What the tests of whole processes share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.backends import located
from tests.e2e.examples import Examples
from tests.e2e.stack import BINARIES, running_stack, sooner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.stack import Stack


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what the plain runs write."""
    return tmp_path_factory.mktemp("plain")


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The real stack, started once for all tests of this folder that ask it, by the shipped configurations."""
    folder = tmp_path_factory.mktemp("stack")
    with running_stack(folder / "data", sooner(folder / "config")) as stack:
        yield stack


@pytest.fixture(scope="package")
def examples(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    """The examples' runs; they are sent to the stack where its programs are there."""
    endpoint: str | None = request.getfixturevalue("stack").endpoint if all(map(located, BINARIES)) else None
    return Examples(tmp_path_factory.mktemp("examples"), endpoint)
