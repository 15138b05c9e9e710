"""From runs to figures: each run against the plain run of its own round, medians and quartiles over rounds.

Pure functions over `rounds.Run`; `show` and `picture` draw what they return.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import comb
from typing import TYPE_CHECKING

from tests.bench.rounds import Run, quantile
from tests.bench.workloads import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tests.bench.conditions import Condition

__all__ = ["ENOUGH", "TOO_FEW", "Row", "Spread", "Target", "resolution", "rows", "targets"]


ENOUGH = 6  # runs, of which something can be told with 95 % confidence
TOO_FEW = "too few rounds to tell (six at least)"


@dataclass(frozen=True)
class Spread:
    """A figure over rounds: its median, its quartiles, and the median's 95 % confidence interval where it is known."""

    median: float
    q1: float
    q3: float
    ci_low: float | None
    ci_high: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Take the spread of some values."""
        ordered = sorted(values)
        quartiles = (quantile(ordered, 0.25), quantile(ordered, 0.75))
        return cls(quantile(ordered, 0.5), *quartiles, *(_confidence(ordered) or (None, None)))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Between what the median is with 95 % confidence; nothing where too few values tell."""
        return None if self.ci_low is None or self.ci_high is None else (self.ci_low, self.ci_high)


def _confidence(ordered: Sequence[float]) -> tuple[float, float] | None:
    """Bound the median of what sorted values are a sample of; nothing where they are fewer than six.

    The interval between the k-th least and the k-th largest misses it with the probability that a fair coin shows
    heads fewer than k times, or tails (the sign test's interval: it asks nothing of the distribution).
    """
    count, missed, k = len(ordered), 0.0, 0
    while missed + 2 * comb(count, k) / 2**count <= 0.05:
        missed += 2 * comb(count, k) / 2**count
        k += 1
    return (ordered[k - 1], ordered[-k]) if k else None


@dataclass
class Row:
    """What one condition did to one workload. `added_*`, `even_*` and `ratio` are against plain, same round.

    So are `of_by_hand`, the share of what OpenTelemetry written by hand adds to a step, and `after_stock_ms`, the
    start-up against that of OpenTelemetry's own distro with the same exporters.

    `even_*` are what is left of a difference when the machine's own speed is taken out of it (a control variate): the
    two runs' probes differ, too, and a plain step goes with its probe.
    """

    workload: str
    condition: str
    title: str
    asks: str
    ours: bool
    blind: bool
    against: str | None
    rounds: int
    asked: float | None
    """Steps a second, where a rate was given."""
    failed: list[str]
    figures: dict[str, Spread] = field(default_factory=dict)
    p999_pooled_us: float = 0.0
    max_pooled_us: float = 0.0
    same_work: bool = True
    dropped: int | None = None
    recorded: dict[str, float] = field(default_factory=dict)
    """What the sink got of each kind a step, the first ones included; empty where it is no evidence."""
    lingered: int = 0
    """How many processes outlived the program, at most."""


ADDED: dict[str, Callable[[Run], float]] = {
    "added_wall_us": lambda r: r.wall_us,
    "added_probe_us": lambda r: r.probe_us,
    "added_median_us": lambda r: r.median_us,
    "added_cpu_us": lambda r: r.cpu_us,
    "added_main_cpu_us": lambda r: r.main_cpu_us,
    "added_wait_us": lambda r: r.wall_us - r.main_cpu_us,
    "added_rss_mb": lambda r: r.rss_mb,
    "added_startup_ms": lambda r: r.startup_ms,
    "added_exit_ms": lambda r: r.exit_ms,
    "added_gen2": lambda r: r.gen2,
    "added_bytes": lambda r: (r.written_bytes + r.sink["bytes"]) / r.steps,
}
ABSOLUTE: dict[str, Callable[[Run], float]] = {
    "wall_us": lambda r: r.wall_us,
    "probe_us": lambda r: r.probe_us,
    "p99_us": lambda r: r.p99_us,
    "rate": lambda r: r.rate,
    "background": lambda r: r.background,
    "sent_bytes_per_s": lambda r: r.sink["bytes"] * r.rate / r.steps,
    "left_bytes_per_s": lambda r: r.left_bytes * r.rate / r.steps,
    "spans_per_s": lambda r: r.sink["spans"] * r.rate / r.steps,
}


def rows(runs: Sequence[Run], conditions: Sequence[Condition], asked: float | None = None) -> list[Row]:
    """Make a row a condition, in their order, for one workload."""
    plain = _good(runs, "plain")
    slope = _slope([run for run in runs if run.condition in ("plain", "plain2") and not run.failed])
    return [_row(condition, runs, plain, slope, asked) for condition in conditions]


def _good(runs: Sequence[Run], condition: str) -> dict[int, Run]:
    return {run.round: run for run in runs if run.condition == condition and not run.failed}


def _slope(plain: Sequence[Run]) -> float:
    """By how much a plain step becomes longer as the probe does, by least squares; 0 where too few could tell."""
    if len(plain) < ENOUGH:
        return 0.0
    (wall, probe), count = (zip(*((run.wall_us, run.probe_us) for run in plain), strict=True)), len(plain)
    wall_mean, probe_mean = sum(wall) / count, sum(probe) / count
    varied = sum((p - probe_mean) ** 2 for p in probe)
    return sum((w - wall_mean) * (p - probe_mean) for w, p in zip(wall, probe, strict=True)) / varied if varied else 0.0


def _row(condition: Condition, every: Sequence[Run], plain: dict[int, Run], slope: float, asked: float | None) -> Row:
    runs = [run for run in every if run.condition == condition.name]
    good = [run for run in runs if not run.failed and run.round in plain]
    row = Row(
        workload=runs[0].workload,
        condition=condition.name,
        title=condition.title,
        asks=condition.asks,
        ours=condition.ours,
        blind=condition.blind,
        against=condition.against,
        rounds=len(good),
        asked=asked,
        failed=[run.failed or "the plain run of its round failed" for run in runs if run not in good],
    )
    if not good:
        return row
    pairs = [(run, plain[run.round]) for run in good]
    row.figures = {key: Spread.of(get(run) for run in good) for key, get in ABSOLUTE.items()}
    row.figures |= {key: Spread.of(get(run) - get(base) for run, base in pairs) for key, get in ADDED.items()}
    row.figures["ratio"] = Spread.of(run.wall_us / base.wall_us for run, base in pairs)
    even = [run.wall_us - base.wall_us - slope * (run.probe_us - base.probe_us) for run, base in pairs]
    row.figures["even_wall_us"] = Spread.of(even)
    if condition.ours:
        stock = _good(every, condition.against) if condition.against else {}
        hand = _good(every, "by-hand")
        after = [run.startup_ms - stock[run.round].startup_ms for run in good if run.round in stock]
        shares = [
            (run.wall_us - base.wall_us) / (hand[run.round].wall_us - base.wall_us)
            for run, base in pairs
            if run.round in hand
        ]
        row.figures |= {
            key: Spread.of(values) for key, values in (("after_stock_ms", after), ("of_by_hand", shares)) if values
        }
    pooled = sorted(ns for run in good for ns in run.durations_ns)
    row.p999_pooled_us, row.max_pooled_us = quantile(pooled, 0.999) / 1e3, pooled[-1] / 1e3
    row.same_work = all(run.check == base.check for run, base in pairs)
    dropped = [run.dropped for run in good if run.dropped is not None]
    row.dropped = sum(dropped) if dropped else None
    if condition.evidence == "sink":
        made = sum(run.made for run in good)
        row.recorded = {key: sum(run.sink[key] for run in good) / made for key in ("spans", "points", "logs")}
    row.lingered = max(run.lingered for run in good)
    return row


@dataclass(frozen=True)
class Target:
    """A promise about the overhead, what was measured, and whether it holds: nothing where that was not decided."""

    promise: str
    measured: str
    verdict: str
    holds: bool | None


def resolution(control: Row, key: str) -> float:
    """Tell what two plain processes of a round differ by: the larger quartile of the control."""
    return max(abs(control.figures[key].q1), abs(control.figures[key].q3))


def _exactly(promise: str, value: float, limit: float, unit: str) -> Target:
    """Judge a value as it is."""
    holds = value <= limit
    return Target(promise, f"{value:.4g}{unit}", "met" if holds else "NOT met", holds)


def _surely(promise: str, figure: Spread, limit: float, unit: str) -> Target:
    """Judge a median by its interval: undecided where the limit lies within, or where there is none."""
    measured = f"{figure.median:.4g}{unit}"
    if figure.interval is None:
        return Target(promise, measured, TOO_FEW, None)
    low, high = figure.interval
    measured += f" [{low:.4g} to {high:.4g}]"
    if low <= limit < high:
        return Target(promise, measured, "undecided: too noisy here", None)
    return Target(promise, measured, "met" if high <= limit else "NOT met", high <= limit)


def targets(workload: str, found: Sequence[Row]) -> list[Target]:
    """Hold the promises about a workload against its rows; those that cannot be judged are absent."""
    by = {row.condition: row for row in found if row.figures}
    ours, plain = by.get("ours-local"), by.get("plain")
    if ours is None or plain is None:
        return []
    limit = WORKLOADS[workload].limit
    judged = _of_the_fastest(ours, by) if workload == "mlp" else []
    judged.append(_surely(f"at most {limit} times plain", ours.figures["ratio"], limit, " times"))
    over = (ours.p999_pooled_us - plain.p999_pooled_us) / 1e3
    judged.append(_exactly("p99.9 at most 1 ms over plain's", over, 1, f" ms over {ours.rounds} processes"))
    for row in by.values():
        if after := row.figures.get("after_stock_ms"):
            promise = f"{row.condition} starts at most 60 ms after {row.against}"
            judged.append(_surely(promise, after, 60, " ms"))
    return judged


def _of_the_fastest(ours: Row, by: Mapping[str, Row]) -> list[Target]:
    """Judge what is promised of the tiny MLP alone, where overhead shows most."""
    figures = ours.figures
    judged = [
        _surely("at most 10 µs a step", figures["added_wall_us"], 10, " µs"),
        _exactly("background at most 5 % of a core", figures["background"].median * 100, 5, " %"),
    ]
    if stock := by.get("stock-none"):
        over = figures["added_rss_mb"].median - stock.figures["added_rss_mb"].median
        judged.append(_exactly("at most 20 MB over a process that has the SDK", over, 20, " MB"))
    judged.append(_exactly("no full collection that plain has not", figures["added_gen2"].median, 0, ""))
    if share := figures.get("of_by_hand"):
        judged.append(_surely("at most 1/20 of OpenTelemetry by hand", share, 1 / 20, " of it"))
    return judged
