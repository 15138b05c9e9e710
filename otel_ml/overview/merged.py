"""Many processes as one run: the one that is shown, and how the run as a whole ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from otel_ml.store.ending import how_it_ended
from otel_ml.watch.diagnosis import Diagnosis, diagnose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_ml.store.ending import Ending
    from otel_ml.totals import RunTotals

__all__ = ["Merged", "diagnosis", "merged", "over", "while_training"]


@dataclass(frozen=True)
class Merged:
    """A run's processes, the one that is shown apart, and how the run as a whole ended."""

    shown: RunTotals
    others: tuple[RunTotals, ...]
    started_unix_ns: int  # of the last attempt, as the three that follow
    ended_unix_ns: int | None
    duration_s: float
    outcome: str
    exit_code: int | None
    signal: int | None
    culprit: RunTotals | None  # another process, that the run failed by
    error: str | None
    error_from: RunTotals | None  # where it is another process's


def merged(totals: Sequence[RunTotals], ending: Ending | None = None) -> Merged | None:
    """Choose the process to show: the last attempt's lowest rank; of several, see `_foremost`."""
    if not totals:
        return None
    shown, *rest = sorted(totals, key=lambda t: (-t.attempt, t.rank or 0, *_foremost(t, ending)))
    rest.sort(key=lambda t: (-t.attempt, t.rank or 0, t.started_unix_ns, t.pid))
    now = [t for t in (shown, *rest) if t.attempt == shown.attempt]
    started, ended, took = _lasted(now, ending)
    by_start = sorted(now, key=lambda t: t.started_unix_ns)
    outcome, culprit = how_it_ended([(t.rank, t.outcome) for t in by_start], ending), None
    if ending is not None:
        exit_code, signal = ending.exit_code, ending.signal
    elif outcome == shown.outcome:
        exit_code, signal = shown.exit_code, shown.signal
    else:
        exit_code = signal = None
        if outcome in ("failed", "killed"):
            culprit = next((t for t in now if t.rank is not None and t.outcome == outcome), None)
    failed = next((t for t in now if t.error), None)
    return Merged(
        shown=shown,
        others=tuple(rest),
        started_unix_ns=started,
        ended_unix_ns=ended,
        duration_s=took,
        outcome=outcome,
        exit_code=exit_code,
        signal=signal,
        culprit=culprit,
        error=failed.error if failed else None,
        error_from=failed if failed is not shown else None,
    )


def _foremost(totals: RunTotals, ending: Ending | None) -> tuple[bool, int, int, int, int]:
    """The order of processes without ranks: the one that was launched, if it did anything, then by what they did."""
    steps, requests = totals.steps + totals.steps_skipped + totals.steps_failed, totals.inference.count
    launched = ending is not None and totals.pid == ending.pid and bool(steps or requests)
    return (not launched, -steps, -requests, totals.started_unix_ns, totals.pid)


def _lasted(now: Sequence[RunTotals], ending: Ending | None) -> tuple[int, int | None, float]:
    """When these began and ended, and how long it took; a process alone that said goodbye knows it best."""
    shown = now[0]
    if len(now) == 1 and shown.ended_unix_ns is not None:
        return shown.started_unix_ns, shown.ended_unix_ns, shown.duration_s
    started = min(t.started_unix_ns for t in now)
    last = max(t.ended_unix_ns or t.started_unix_ns + round(t.duration_s * 1e9) for t in now)
    if ending is not None:
        last = max(last, ending.at_unix_ns)
    known = ending is not None or all(t.ended_unix_ns is not None for t in now)
    return started, last if known else None, max(shown.duration_s, (last - started) / 1e9)


def diagnosis(totals: RunTotals) -> Diagnosis:
    """The verdict that was recorded, else one made now (a killed process recorded none)."""
    if totals.verdict is not None:
        return Diagnosis(totals.verdict, totals.evidence or "", totals.advice or "")
    return diagnose(totals)


def over(amount: float | None, duration_s: float) -> float | None:
    """An amount a second, or a share of the time; None where either is not known."""
    return None if amount is None or duration_s <= 0 else amount / duration_s


def while_training(totals: RunTotals, amount: int | None, time_s: float | None) -> float | None:
    """An amount a second of the time of the steps that it is of; where that was not told, of all."""
    return over(amount, totals.step_time.total_s if time_s is None else time_s)
