"""Many processes as one run: the one that is shown, and how the run as a whole ended."""

from __future__ import annotations

import signal as signals
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    outcome: str
    exit_code: int | None
    signal: int | None
    culprit: RunTotals | None  # another process, that the run failed by
    error: str | None
    error_from: RunTotals | None  # where it is another process's


def merged(totals: Sequence[RunTotals], ending: Ending | None = None) -> Merged | None:
    """Choose the process to show: the last attempt's lowest rank; of several, the last one that trained or served."""
    if not totals:
        return None
    shown, *rest = sorted(
        totals,
        key=lambda t: (-t.attempt, t.rank or 0, not t.steps, not t.inference.count, -t.started_unix_ns, t.pid),
    )
    rest.sort(key=lambda t: (-t.attempt, t.rank or 0, t.started_unix_ns, t.pid))
    now = [t for t in (shown, *rest) if t.attempt == shown.attempt]
    outcome, culprit = shown.outcome, None
    exit_code, signal = (ending.exit_code, ending.signal) if ending is not None else (None, None)
    if signal is not None:
        outcome, exit_code = "interrupted" if signal == signals.SIGINT else "killed", None
    elif exit_code is not None:
        # Alone, a process without a goodbye that has an exit code left by `os._exit`: nobody killed it.
        ended_badly = outcome in ("failed", "interrupted") or (outcome == "killed" and bool(rest))
        outcome = "finished" if exit_code == 0 else outcome if ended_badly else "failed"
    else:
        exit_code, signal = shown.exit_code, shown.signal
        if outcome == "finished":  # but a job is as good as its worst rank
            culprit = next((t for t in now if t.rank is not None and t.outcome in ("failed", "killed")), None)
    if culprit is not None:
        outcome, exit_code = "failed", None
    failed = next((t for t in now if t.error), None)
    return Merged(
        shown=shown,
        others=tuple(rest),
        outcome=outcome,
        exit_code=exit_code,
        signal=signal,
        culprit=culprit,
        error=failed.error if failed else None,
        error_from=failed if failed is not shown else None,
    )


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
