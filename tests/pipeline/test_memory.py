"""What a process holds of the host's memory, and what it may hold: read as real systems write it."""

from __future__ import annotations

import resource
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from otel_ml.pipeline import memory

if TYPE_CHECKING:
    from pathlib import Path

GIB = 2**30
MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1048576 kB\n"  # 16 GiB
NO_LIMIT_V1 = str(2**63 - 4096)  # what version 1 says where there is none

SYSTEMS: dict[str, tuple[dict[str, str], int | None]] = {
    "no control group": ({"proc/meminfo": MEMINFO}, 16 * GIB),
    "version 2, in a container": (
        {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{4 * GIB}\n"},
        4 * GIB,
    ),
    "version 2, where the group around is tighter": (
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/user.slice/job.scope\n",
            "sys/fs/cgroup/user.slice/job.scope/memory.max": "max\n",
            "sys/fs/cgroup/user.slice/memory.max": f"{2 * GIB}\n",
        },
        2 * GIB,
    ),
    "version 1, a job of SLURM": (
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "9:cpu,cpuacct:/\n5:memory:/slurm/uid_1000/job_7\n1:name=systemd:/\n",
            "sys/fs/cgroup/memory/slurm/uid_1000/job_7/memory.limit_in_bytes": f"{3 * GIB}\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{NO_LIMIT_V1}\n",
        },
        3 * GIB,
    ),
    "version 1, a container that sees the host's path": (
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "5:memory:/docker/0123abcd\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB}\n",
        },
        GIB,
    ),
    "version 1 without a limit": (
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "5:memory:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{NO_LIMIT_V1}\n",
        },
        16 * GIB,
    ),
    "a system that tells nothing": ({}, None),
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_limit(system: str, tmp_path: Path) -> None:
    """The least of what control groups and machine allow is the limit; what is not told is not guessed."""
    files, expected = SYSTEMS[system]
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="ascii")
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    assert memory.limit(tmp_path) == expected


def test_limit_of_the_process() -> None:
    """A process that may map less than the machine has is limited by that."""
    program = (
        "import resource; from otel_ml.pipeline import memory; "
        f"resource.setrlimit(resource.RLIMIT_AS, ({GIB}, {GIB})); print(memory.limit())"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(said) == GIB


def test_resident() -> None:
    """What is resident grows with what the program holds, and falls when it lets go; the peak would not."""
    before = memory.resident()
    held = bytearray(b"x" * (64 * 2**20))
    during = memory.resident()
    del held
    after = memory.resident()
    assert before is not None
    assert during is not None
    assert after is not None
    assert during - before > 60 * 2**20
    assert during - after > 60 * 2**20


def test_resident_where_nothing_is_told(tmp_path: Path) -> None:
    """A system without /proc has no such figure."""
    assert memory.resident(tmp_path) is None
