"""What `opentelemetry-instrument` learns of us before it starts the program.

It imports this module (entry point `opentelemetry_environment_variables`) in its own
process, takes every name that begins with `OTEL_` as a command line flag
(`OTEL_ML_RUN_NAME` becomes `--ml_run_name`) and then replaces itself with the program.
Three things happen here, since later is too late: our distro and configurator are chosen
where the user chose none (else the first one installed wins, by luck); settings that
cannot be are refused before the program starts; and our flags get their names. Nothing
here imports the SDK or a framework.
"""

from __future__ import annotations

import os
import sys
from pathlib import PurePath
from typing import TYPE_CHECKING

from otel_ml.configuration import apply_file
from otel_ml.errors import SettingsError, say
from otel_ml.settings import SETTINGS, Settings

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping, Sequence

DISTRO = "otel_ml"
_DETECTORS = "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS"

vars().update({name: name for name in SETTINGS})


def choose_distro(environ: MutableMapping[str, str]) -> None:
    """Make ours the distro and the configurator, unless the user chose others; have every resource name the run."""
    environ.setdefault("OTEL_PYTHON_DISTRO", DISTRO)
    environ.setdefault("OTEL_PYTHON_CONFIGURATOR", DISTRO)
    detectors = [d.strip() for d in environ.get(_DETECTORS, "otel").split(",")]
    if not {DISTRO, "*"} & set(detectors):
        environ[_DETECTORS] = ",".join([*detectors, DISTRO])


def with_flags(environ: Mapping[str, str], argv: Sequence[str]) -> dict[str, str]:
    """The environment as the launcher will set it: with our flags before the program's name applied."""
    merged = dict(environ)
    words = iter(argv[1:])
    for word in words:
        if not word.startswith("--"):
            break
        flag, given, value = word[2:].partition("=")
        name = f"OTEL_{flag.upper()}"
        if not given:
            value = next(words, "")
        if name in SETTINGS:
            merged[name] = value
    return merged


def prepare(environ: MutableMapping[str, str], argv: Sequence[str]) -> None:
    """Choose our distro where we are wanted; end the launcher, with what to type, where settings are wrong."""
    try:
        flagged = with_flags(environ, argv)
        before = dict(flagged)
        apply_file(flagged)
        environ.update((name, value) for name, value in flagged.items() if before.get(name) != value)
        settings = Settings.from_env(flagged)
    except SettingsError as error:
        say(str(error))
        raise SystemExit(2) from None
    if settings.enabled:
        choose_distro(environ)


# Others may import this module to read the names; only the launcher is to be prepared.
if PurePath("".join(sys.argv[:1])).stem == "opentelemetry-instrument":
    prepare(os.environ, sys.argv)
