"""How large a workload's batches are to be, so that a plain step lasts as long here as its name promises.

Promises are about steps of a given length (3 % of 0.35 ms is something else than 3 % of 0.1 ms),
and machines differ by a factor of four.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from tests.bench.processes import environment, script
from tests.bench.workloads import WORKLOADS

__all__ = ["fitting"]

_LOOKS = 5
_NEAR = 0.1
_LOOK_US = 1_500_000.0
_LEAST, _MOST = 1 / 8, 1024.0


def fitting(workload: str) -> float:
    """Measure plain steps of some batch sizes; the factor on the batch at which one is within a tenth of what is meant.

    Where a step does not come near (the least batch is still too long), the nearest factor that was tried.
    """
    meant = WORKLOADS[workload].meant_us
    tried: list[tuple[float, float]] = []
    load = 1.0
    for _ in range(_LOOKS):
        tried.append((load, _step_us(workload, load)))
        _, took = tried[-1]
        if abs(took / meant - 1) < _NEAR:
            break
        if len(tried) == 1 or took == tried[-2][1]:
            load *= meant / took
        else:  # a step takes about so long for itself, and so long for each sample
            (a, a_us), (b, b_us) = sorted(tried, key=lambda one: abs(one[1] - meant))[:2]
            each = (b_us - a_us) / (b - a)
            load = a + (meant - a_us) / each if each > 0 else load * meant / took
        load = min(max(load, _LEAST), _MOST)
        if load in (one for one, _ in tried):  # at one of the ends
            break
    return min(tried, key=lambda one: abs(one[1] - meant))[0]


def _step_us(workload: str, load: float) -> float:
    """The median of a plain step, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result"
        steps = max(20, int(_LOOK_US / WORKLOADS[workload].meant_us))
        told = {"BENCH_LOAD": str(load), "BENCH_STEPS": str(steps), "BENCH_RESULT": str(result)}
        subprocess.run([sys.executable, str(script(workload))], env=environment(told), check=True)
        took: list[int] = json.loads(result.read_text(encoding="utf-8"))["durations_ns"]
        return median(took) / 1e3
