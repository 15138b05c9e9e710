"""A run's aggregates as plain data: what the pipeline counts, and the summary and the report show.

The pipeline fills one `RunTotals` a process, the `ml.run.finished` event carries it as
JSON, and the store's reader gives it back; `otel-ml report --json` prints these keys.
Times are seconds by the host's monotonic clock, instants are Unix nanoseconds. What is
not known is None or absent, never guessed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

__all__ = ["Distribution", "LossCurve", "RunTotals", "ScalarCurve"]


@dataclass
class Distribution:
    """How a duration spread: `count` values, their total and quantiles, in seconds."""

    count: int = 0
    total_s: float = 0.0
    p50_s: float | None = None
    p95_s: float | None = None
    max_s: float | None = None


@dataclass
class LossCurve:
    """A loss's first, last and lowest finite value, and the step the lowest was in."""

    first: float | None = None
    last: float | None = None
    best: float | None = None
    best_step: int | None = None


@dataclass
class ScalarCurve:
    """What became of a value that the program recorded: how often, the last one, the lowest and highest finite one."""

    count: int = 0
    last: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass
class RunTotals:
    """Everything the summary says about one process of a run."""

    run_id: str = ""
    run_name: str = ""
    attempt: int = 0
    rank: int | None = None
    world_size: int | None = None
    host: str = ""
    pid: int = 0
    framework: str = ""
    started_unix_ns: int = 0
    ended_unix_ns: int | None = None
    outcome: str = "running"  # running | finished | failed | interrupted | killed
    exit_code: int | None = None
    signal: int | None = None
    error: str | None = None  # "ValueError: message", redacted
    duration_s: float = 0.0
    steps: int = 0  # outcome ok
    steps_skipped: int = 0
    steps_failed: int = 0
    samples: int | None = None
    samples_time_s: float | None = None  # of the steps whose samples are known; None of runs that did not tell
    tokens: int | None = None
    tokens_time_s: float | None = None  # likewise
    micro_batches: int = 0
    losses: dict[str, LossCurve] = field(default_factory=dict)  # by optimizer; "" where there is one
    scalars: dict[str, ScalarCurve] = field(default_factory=dict)  # by name, "split/name" where of a split
    epochs: int = 0  # those that the program said, and ended
    step_time: Distribution = field(default_factory=Distribution)
    phases: dict[str, float] = field(default_factory=dict)  # seconds over all steps, "residual" included
    time: dict[str, float] = field(default_factory=dict)  # ml.run.time by category; sums to duration_s
    evaluations: int = 0
    inference: Distribution = field(default_factory=Distribution)
    inference_samples: int | None = None  # of those that did not fail
    inference_failed: int = 0  # of the requests, those that an exception ended
    compiles: int = 0
    recompiles: int = 0
    cache_hits: int = 0  # of the persistent cache; those are no compiles
    cache_misses: int = 0
    checkpoints_saved: int = 0
    checkpoints_loaded: int = 0
    nonfinite: dict[str, int] = field(default_factory=dict)  # by value: "loss", "grad_norm"
    memory_peak_by: int | None = None
    records: int = 0
    records_dropped: int = 0
    left_out: dict[str, int] = field(default_factory=dict)  # what limits of ours left out, by kind
    errors: int = 0
    drain_cpu_s: float | None = 0.0  # None: killed before it was first told, with `records`
    thinned: bool = False  # the step curve was thinned; counters and histograms are exact
    verdict: str | None = None
    evidence: str | None = None
    advice: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The totals as JSON-ready data, keys as above."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RunTotals:
        """The totals back from `to_dict()`; keys it does not know are left out."""
        known = {f.name for f in fields(cls)}
        kept = {k: v for k, v in data.items() if k in known}
        kept["losses"] = {k: LossCurve(**v) for k, v in kept.get("losses", {}).items()}
        kept["scalars"] = {k: ScalarCurve(**v) for k, v in kept.get("scalars", {}).items()}
        for key in ("step_time", "inference"):
            kept[key] = Distribution(**kept.get(key, {}))
        return cls(**kept)
