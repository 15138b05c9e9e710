"""The host's memory: what this process holds of it, and what it may hold at most.

Read from /proc and /sys; what a system does not tell is None. `resident()` is called by the drain at each turn and
reads one small file; `limit()` reads a handful of small files, once a run.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path, PurePosixPath

__all__ = ["limit", "resident"]

_ROOT = Path("/")


def resident(root: Path = _ROOT) -> int | None:
    """The process's resident memory in bytes, now."""
    try:
        pages = (root / "proc/self/statm").read_bytes().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def limit(root: Path = _ROOT) -> int | None:
    """What the process may hold at most, in bytes: the least that control groups, RLIMIT_AS and the machine allow."""
    known = [*_of_groups(root), *_of_process(), *_of_machine(root)]
    return min(known, default=None)


def _of_groups(root: Path) -> list[int]:
    """The limits of the process's control group and of those around it, of version 1 and 2."""
    found = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            mount, file = "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            mount, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = PurePosixPath("/", path)
        # In a container the path may be the host's, which is not there: the mount itself is then the own group.
        for around in (group, *group.parents):
            found += [int(text) for text in _lines(root / mount / str(around).lstrip("/") / file) if text.isdigit()]
    return found


def _of_process() -> list[int]:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return [] if soft == resource.RLIM_INFINITY else [soft]


def _of_machine(root: Path) -> list[int]:
    for line in _lines(root / "proc/meminfo"):
        name, _, amount = line.partition(":")
        if name == "MemTotal":
            return [int(amount.split()[0]) * 1024]
    return []


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
