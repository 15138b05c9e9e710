"""Dice of the SDK's own: it draws from `random`, whose seed and state are the program's.

Which of many measurements is kept as an exemplar, and how long to wait before sending
again: the SDK asks Python's one global generator, on its own threads. A program that
seeded it would draw other numbers with us than without. Ids are seen to in `ids`.
"""

from __future__ import annotations

import random
import sys
from typing import Any

from wrapt import register_post_import_hook

__all__ = ["install", "uninstall"]

# Modules that draw, and the name by which each knows `random` or a function of it.
_DRAWING = {
    "opentelemetry.sdk.metrics._internal.exemplar.exemplar_reservoir": "randrange",
    "opentelemetry.exporter.otlp.common.http": "random",
    "opentelemetry.exporter.otlp.proto.grpc.exporter": "random",
}
_own = random.Random()  # noqa: S311 - nothing is kept secret by it
_state = {"on": False, "registered": False}


def install() -> None:
    """Give each of them the generator of ours, now or once it is imported."""
    _state["on"] = True
    if not _state["registered"]:
        _state["registered"] = True
        for module in _DRAWING:
            register_post_import_hook(_replace, module)
        return
    for module in _DRAWING:
        if module in sys.modules:
            _replace(sys.modules[module])


def uninstall() -> None:
    """Give them back the program's."""
    _state["on"] = False
    for module, name in _DRAWING.items():
        found = sys.modules.get(module)
        if found is not None and vars(found).get(name) == _ours(name):
            setattr(found, name, _theirs(name))


def _replace(module: Any) -> None:
    name = _DRAWING[module.__name__]
    if _state["on"] and vars(module).get(name) == _theirs(name):
        setattr(module, name, _ours(name))


def _ours(name: str) -> Any:
    return _own if name == "random" else getattr(_own, name)


def _theirs(name: str) -> Any:
    return random if name == "random" else getattr(random, name)
