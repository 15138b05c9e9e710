"""Takes from torch what the variable LACKING names, `module:attribute.attribute,…`: a version that never had it.

Loaded by OpenTelemetry's launcher before any instrumentation, as an entry point. What
LOADED names is imported first: those parts have what they need.
"""

import importlib
import os

from wrapt import register_post_import_hook


def remove(module):
    for name in filter(None, os.environ.get("LOADED", "").split(",")):
        importlib.import_module(name)
    for path in os.environ["LACKING"].split(","):
        home, _, attributes = path.partition(":")
        if home == module.__name__:
            owner = module
            *parts, name = attributes.split(".")
            for part in parts:
                owner = getattr(owner, part)
            delattr(owner, name)


def prepare():
    for home in {path.partition(":")[0] for path in os.environ["LACKING"].split(",")}:
        register_post_import_hook(remove, home)
