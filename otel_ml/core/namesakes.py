"""The program's own modules come first: `calendar.py` beside its script is what its `import calendar` means.

At start a launcher's set-up imports much before the program's folder is on the path. What of
that has a namesake there leaves `sys.modules` again: we keep our references, and from then
on each import finds what it would have found without us.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    FrozenImporter,
    SourceFileLoader,
    SourcelessFileLoader,
)
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["give_way", "shadowed"]

_START_UP = "sitecustomize"
# Python itself looks these up at exit or in every import, or they are us.
_KEPT = {"importlib", "logging", "opentelemetry", "otel_ml", "threading", "wrapt"}


def shadowed() -> list[str]:
    """Modules that only our set-up has imported and that the program has, too; none but while Python starts."""
    folder = _folder()
    if folder is None:
        return []
    finder = FileFinder(
        folder,
        (ExtensionFileLoader, EXTENSION_SUFFIXES),
        (SourceFileLoader, SOURCE_SUFFIXES),
        (SourcelessFileLoader, BYTECODE_SUFFIXES),
    )
    return [name for name in _imported() if _has(finder, name)]


def give_way(names: Iterable[str]) -> None:
    """Forget these modules, with all that is in them."""
    gone = set(names)
    for name in list(sys.modules):
        if name.partition(".")[0] in gone:
            del sys.modules[name]


def _folder() -> str | None:
    """The folder that will be first on the path, as Python finds it out once the set-up is over."""
    if sys.flags.isolated or getattr(sys.flags, "safe_path", False):
        return None
    script = sys.argv[0] if sys.argv else ""
    try:
        if script in ("", "-", "-c", "-m"):
            return os.getcwd()  # noqa: PTH109 - what Python asks
        if os.path.isdir(script):  # noqa: PTH112
            return os.path.realpath(script)
        return os.path.dirname(os.path.realpath(script))  # noqa: PTH120
    except OSError:
        return None


def _imported() -> list[str]:
    """The packages and modules that came since the start-up module began, which is where the launcher comes in."""
    start_up = sys.modules.get(_START_UP)
    if not getattr(getattr(start_up, "__spec__", None), "_initializing", False):
        return []
    # A module's place in this table is where it was when its import ended; ours has not ended yet.
    names = list(sys.modules)
    at = names.index(_START_UP)
    before = {name.partition(".")[0] for name in names[: at + 1]}
    since = dict.fromkeys(name.partition(".")[0] for name in names[at + 1 :])
    apart = before | _KEPT | {"__main__"} | set(sys.builtin_module_names)
    return [name for name in since if name not in apart and FrozenImporter.find_spec(name) is None]


def _has(finder: FileFinder, name: str) -> bool:
    found = finder.find_spec(name)
    if found is None or found.loader is None or found.origin is None:
        return False
    loaded = getattr(sys.modules.get(name), "__file__", None)
    return loaded is None or os.path.realpath(loaded) != os.path.realpath(found.origin)
