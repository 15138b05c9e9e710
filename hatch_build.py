"""Compiles what is written in C, where there is a compiler; without one the package is Python alone, and works."""

from __future__ import annotations

import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext

MODULES = (
    "otel_ml.core._recorder",
    "otel_ml.instrument.torch._hooks",
    "otel_ml.pipeline._columns",
    "otel_ml.store._packed",
)


class Compiled(BuildHookInterface[Any]):
    """Puts each module beside its source, and into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's signature
        """Compile, before it looks which files there are."""
        if self.target_name != "wheel" or not _can_be_compiled():
            return
        made = _compiled(Path(self.root))
        if made:
            build_data["artifacts"] += made
            build_data["pure_python"] = False
            build_data["infer_tag"] = True
        else:
            self.app.display_warning("otel-ml: nothing was compiled; its hooks cost twice as much a step")


def _can_be_compiled() -> bool:
    """The clock that they read is Linux's, and they count on the interpreter lock."""
    free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    return sys.platform == "linux" and sys.implementation.name == "cpython" and not free_threaded


def _compiled(root: Path) -> list[str]:
    """Compile each module; the paths of all, or of none where one could not be."""
    extensions = [
        Extension(name, [f"{name.replace('.', '/')}.c"], depends=["otel_ml/core/recorder.h"], optional=True)
        for name in MODULES
    ]
    with tempfile.TemporaryDirectory() as folder:
        distribution = Distribution({"name": "otel-ml", "ext_modules": extensions, "script_name": "hatch_build.py"})
        command = build_ext(distribution)
        command.ensure_finalized()
        command.inplace, command.build_temp, command.build_lib = True, folder, folder
        made = [Path(command.get_ext_fullpath(extension.name)) for extension in extensions]
        for path in made:
            path.unlink(missing_ok=True)  # what cannot be compiled any more is not there
        command.run()
    if not all(path.exists() for path in made):
        for path in made:
            path.unlink(missing_ok=True)
        return []
    return [str(path.relative_to(root)) for path in made]
