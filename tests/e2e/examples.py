"""The examples, each run once a session as a user would: kept here, and sent to the stack where there is one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.launching import BIN, RUN, launch

if TYPE_CHECKING:
    from tests.e2e.launching import Outcome

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "examples"
DDP = ROOT / "tests" / "faults" / "programs" / "ddp.py"
STEPS = 60  # of a program in trouble
TROUBLES = (
    "none", "nan", "spike", "skipped", "slow-data", "slowdown", "recompiles", "checkpoint-failed", "stall", "crash",
)  # fmt: skip
REQUESTS, EMPTY = 40, 10  # of the one that serves

# By the run's id and the service's name; those that take longest first.
RUNS: dict[str, tuple[Path, tuple[str, ...]]] = {
    "ranks": (BIN / "torchrun", ("--standalone", "--nproc-per-node=2", str(DDP))),
    "jax": (EXAMPLES / "jax_train.py", ("--epochs=1", "--width=32", "--batch-size=512")),
    "char-gpt": (
        EXAMPLES / "torch_train.py",
        ("--steps=100", "--workers=1", "--layers=1", "--width=32", "--context=32"),
    ),
    "next-character": (EXAMPLES / "torch_serve.py", (f"--requests={REQUESTS}", f"--empty={EMPTY}")),
    "by-hand": (EXAMPLES / "custom_loop.py", ("--steps=20",)),
    **{name: (EXAMPLES / "troubles.py", (name, f"--steps={STEPS}", "--stall=0.1")) for name in TROUBLES},
}


@dataclass(frozen=True)
class Example:
    """How a run ended, and the folder where its telemetry is kept."""

    outcome: Outcome
    runs: Path


class Examples:
    """Runs of the examples, made when they are asked for."""

    def __init__(self, folder: Path, endpoint: str | None) -> None:
        self._folder = folder
        self._endpoint = endpoint
        self._made: dict[str, Example] = {}

    def all(self) -> dict[str, Example]:
        """All of them; what is missing runs two at a time."""
        with ThreadPoolExecutor(2) as pool:
            return dict(zip(RUNS, pool.map(self.__getitem__, RUNS), strict=True))

    def __getitem__(self, name: str) -> Example:
        if name not in self._made:
            program, words = RUNS[name]
            folder = self._folder / name
            folder.mkdir()
            # Every second: a run of seconds is to have rates, too.
            sent = {} if self._endpoint is None else {
                "OTEL_EXPORTER_OTLP_ENDPOINT": self._endpoint, "OTEL_METRIC_EXPORT_INTERVAL": "1000",
            }  # fmt: skip
            variables = {"OTEL_ML_DIR": str(folder / "runs"), "OTEL_ML_RUN_ID": name, "OTEL_SERVICE_NAME": name, **sent}
            ended = launch(RUN, program, *words, cwd=folder, timeout=300, **variables)
            self._made[name] = Example(ended, folder / "runs")
        return self._made[name]
