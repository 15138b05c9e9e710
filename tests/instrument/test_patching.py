"""Every original comes back, the very object, whatever happened in between."""

from __future__ import annotations

import functools
import gc
import logging
import weakref
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from otel_ml import errors
from otel_ml.instrument.patching import Patches

if TYPE_CHECKING:
    import pytest


class Base:
    """Has a method of its own."""

    def call(self) -> str:
        """Say who was called."""
        return "base"


def ours(self: Base) -> str:
    """Stand in for `call`."""
    return "ours"


def test_undo_restores_every_object_by_identity() -> None:
    """Functions, class and static methods, and plain values are the same objects again."""

    class Owner:
        value = 3
        original = Base.call
        kind = classmethod(lambda cls: "kind")
        still = staticmethod(lambda: "still")

    before = dict(vars(Owner))
    patches = Patches()
    for name in ("value", "original", "kind", "still"):
        patches.set(Owner, name, ours)
    patches.set(Owner, "value", 5)  # once more
    assert Owner.value == 5
    patches.undo()
    assert {name: vars(Owner)[name] for name in before if not name.startswith("__")} == {
        name: value for name, value in before.items() if not name.startswith("__")
    }
    assert all(vars(Owner)[name] is before[name] for name in ("value", "original", "kind", "still"))


def test_an_inherited_attribute_is_inherited_again() -> None:
    """Undoing what stood in for an inherited method leaves nothing on the class, not even a copy of it."""

    class Child(Base):
        pass

    patches = Patches()
    patches.set(Child, "call", ours)
    assert (Child().call(), Base().call()) == ("ours", "base")
    patches.undo()
    assert "call" not in vars(Child)
    assert Child().call() == "base"


def test_a_module_gets_its_function_back() -> None:
    """An attribute that was not there before is gone afterwards, on modules and instances alike."""
    module = SimpleNamespace(load=len)
    patches = Patches()
    patches.set(module, "load", sorted)
    patches.set(module, "extra", sorted)
    patches.undo()
    assert vars(module) == {"load": len}


def test_what_others_placed_over_ours_stays() -> None:
    """Somebody else's later patch is theirs to take back."""
    module = SimpleNamespace(load=len, save=len)
    patches = Patches()
    patches.set(module, "load", sorted)
    patches.set(module, "save", sorted)
    module.load = reversed
    patches.undo()
    assert vars(module) == {"load": reversed, "save": len}


def test_one_patch_can_be_taken_back_alone() -> None:
    """`remove()` undoes the last replacement of one attribute and leaves the others."""
    module = SimpleNamespace(load=len, save=len)
    patches = Patches()
    patches.set(module, "load", sorted)
    patches.set(module, "save", sorted)
    patches.remove(module, "load")
    patches.remove(module, "nothing")
    assert vars(module) == {"load": len, "save": sorted}
    patches.undo()
    assert vars(module) == {"load": len, "save": len}


def test_names_that_still_hold_what_was_replaced() -> None:
    """Only what was replaced is told of a program's namespace, under the program's names for it."""
    module = SimpleNamespace(load=len, save=None)
    patches = Patches()
    patches.set(module, "load", sorted)
    patches.set(module, "save", sorted)
    patches.set(module, "extra", sorted)
    assert patches.kept_in({"read": len, "write": sorted, "nothing": None, "number": 3}) == ["read"]


def test_a_class_dies_with_what_its_methods_hold() -> None:
    """What was replaced on a class is kept by that class alone, and given back to the classes that live."""
    patches = Patches()

    def made() -> type:
        class Own(Base):
            def call(self) -> str:
                return f"own {super().call()}"

        return Own

    def around(original: Any) -> Any:
        @functools.wraps(original)
        def call(self: Base) -> str:
            return f"around {original(self)}"

        return call

    one, other = made(), made()
    before = vars(other)["call"]
    for owner in (one, other):
        patches.set(owner, "call", around(vars(owner)["call"]))
        patches.set(owner, "extra", ours)
    assert (one().call(), patches.holds(one, "call"), patches.holds(one, "more")) == ("around own base", True, False)
    gone = weakref.ref(one)
    del one, owner
    gc.collect()
    assert gone() is None
    patches.set(other, "nothing", None)
    assert vars(other)["nothing"] is None
    patches.undo()
    assert vars(other)["call"] is before
    assert not {"extra", "nothing"} & set(vars(other))


def test_what_a_framework_registered_is_removed_too() -> None:
    """Hooks registered with the framework are removed once, with the rest."""
    removed: list[str] = []
    patches = Patches()
    patches.undo_with(lambda: removed.append("hook"))
    patches.undo()
    patches.undo()
    assert removed == ["hook"]


def test_a_hook_that_is_missing_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A version that lacks one hook point is said once, counted and reported; the other hooks work."""
    monkeypatch.setattr(errors, "strict", False)
    monkeypatch.setattr(errors.swallowed, "counts", {})
    module: Any = SimpleNamespace(load=len)
    patches = Patches()

    def install() -> None:
        patches.set(module, "load", module.no_such_function)

    with caplog.at_level(logging.WARNING, "otel_ml"):
        patches.attempt("saving", install)
        patches.attempt("loading", lambda: patches.set(module, "load", sorted))
    assert module.load is sorted
    assert errors.swallowed.counts == {"hook saving": 1}
    assert [record.getMessage() for record in caplog.records] == [
        "otel-ml: error in hook saving; the program is not affected"
    ]
    assert patches.report == {
        "saving": "missing: AttributeError: 'types.SimpleNamespace' object has no attribute 'no_such_function'",
        "loading": "hooked",
    }
    patches.undo()
    assert vars(module) == {"load": len}
    assert not patches.report
