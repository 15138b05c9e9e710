"""What every test may rely on."""

from __future__ import annotations

import os
import signal

import pytest


def pytest_configure() -> None:
    """Undo what `nohup` or a shell's `&` made this process, and so every program under test, ignore."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests stay together when several processes share them: those of a file, a program, or the stack."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    for item in items:
        known = getattr(item, "callspec", None)
        group = item.nodeid.partition("::")[0]
        if "stack" in getattr(item, "fixturenames", ()):
            group = "stack"
        elif known is not None and "program" in known.params:
            group = f"{group} {known.params['program']}"
        item.add_marker(pytest.mark.xdist_group(group))
