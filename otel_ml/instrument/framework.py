"""What the frameworks' instrumentors share: hooks that wait until the program has imported what they hook."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any, ClassVar

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor
from wrapt import register_post_import_hook

from otel_ml.core import runtime
from otel_ml.instrument.patching import Patches

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["FrameworkInstrumentor"]


class FrameworkInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """One framework: `awaited` says what to install, given each module, once the program has imported it."""

    awaited: ClassVar[Mapping[str, Callable[[Any], None]]]
    patches: ClassVar[Patches]
    _on: ClassVar[bool]
    _installed: ClassVar[set[str]]
    _waits: ClassVar[bool]

    def __init_subclass__(cls, **about: Any) -> None:
        """Each framework has a state of its own."""
        super().__init_subclass__(**about)
        cls.patches, cls._on, cls._installed, cls._waits = Patches(), False, set(), False

    @classmethod
    def report(cls) -> dict[str, str]:
        """Each hook by name: "hooked", or "missing: why"."""
        return dict(cls.patches.report)

    def instrumentation_dependencies(self) -> tuple[str, ...]:
        """Checked by our own hooks: one distribution holds several frameworks."""
        return ()

    def _instrument(self, **_: Any) -> None:
        cls = type(self)
        if not runtime.enabled():
            return
        cls._on = True
        for name in cls.awaited:
            if not cls._waits:
                register_post_import_hook(functools.partial(cls._imported, name), name)
            elif name in sys.modules:
                cls._imported(name, sys.modules[name])
        cls._waits = True

    def _uninstrument(self, **_: Any) -> None:
        cls = type(self)
        cls._on = False
        cls._installed = set()
        cls.patches.undo()

    @classmethod
    def _imported(cls, name: str, module: Any) -> None:
        if not cls._on or name in cls._installed:
            return
        cls._installed.add(name)
        try:
            cls.awaited[name](module)
        except Exception as error:  # noqa: BLE001 - or it would come out of the program's import
            cls.patches.failed(name, error)
