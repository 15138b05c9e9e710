"""Ties a child to the process that starts it: whatever ends the one, SIGKILL as well, ends the other.

The call is made in the child, between fork and exec. The kernel minds the *thread* that
forked: only one that lives as long as its process, the main thread, may use this.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["tie"]

_SET_PDEATHSIG = 1


def tie(number: int) -> Callable[[], None] | None:
    """What a child calls so that it gets this signal when we die; None where the kernel has no such thing."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        import ctypes

        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (ImportError, OSError, AttributeError):  # a Python that was built without it
        return None
    parent = os.getpid()

    def die_with_parent() -> None:
        prctl(_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return die_with_parent
