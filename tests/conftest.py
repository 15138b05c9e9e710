"""What every test may rely on."""

from __future__ import annotations

import compileall
import signal
from pathlib import Path


def pytest_configure() -> None:
    """Undo what `nohup` or a shell's `&` made this process, and so every program under test, ignore; and compile us.

    An installed package is compiled. Programs under test write no bytecode, so each would compile us for itself.
    """
    compileall.compile_dir(Path(__file__).resolve().parent.parent / "otel_ml", quiet=2)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
