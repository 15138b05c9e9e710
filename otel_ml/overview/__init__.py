"""A run in one screen of text, or as JSON: what happened, where the time went, what to try next.

Exists so that the end of a program, the launcher and `otel-ml report` say the same thing in
the same words. It only reads totals (`otel_ml/totals.py`): called at exit in the user's
process (`print_totals`), by the launcher once the child is gone and by the report
(`print_run`), each time on the main thread. rich is imported only when something is drawn.

Whatever comes from the user's program (names, errors) is shown literally: no markup is
read, characters that would steer a terminal are written as escapes, and what the stream's
encoding lacks as well. A stream that is not Unicode gets plain ASCII; one without colour
gets bars in patterns.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TextIO

from otel_ml.overview.lost import undelivered_in, unkept_in
from otel_ml.overview.merged import diagnosis, merged, over, while_training
from otel_ml.overview.page import Page
from otel_ml.overview.sections import draw
from otel_ml.overview.words import console_for

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from otel_ml.overview.merged import Merged
    from otel_ml.store.ending import Ending
    from otel_ml.totals import RunTotals

__all__ = ["print_run", "print_totals", "to_json"]


def print_run(directory: Path, run_id: str, *, ending: Ending, file: TextIO | None = None) -> None:
    """Print what the store holds of a run, or nothing where it holds no such run.

    `ending` is what the launcher saw of its child; it overrules what the program could say of its own end.
    """
    from otel_ml.store.reader import RunReader
    from otel_ml.store.runs import read_run
    from otel_ml.store.schema import run_folder

    run = read_run(run_folder(directory, run_id))
    if run is not None:
        ended = [process.path for process in run.processes if process.state != "running"]
        also = [*unkept_in(ended), *undelivered_in(run.id, ended)]
        _print(merged(RunReader(run).totals(), ending), file, whole=True, also=also)


def print_totals(
    totals: Sequence[RunTotals],
    file: TextIO | None = None,
    *,
    whole: bool = False,
    ending: Ending | None = None,
    also: Sequence[tuple[str, str]] = (),
) -> None:
    """Print the totals of a run's processes, to stderr unless told otherwise; nothing where there are none.

    `ending` is what the launcher saw of the program's end, if it had one; `also` are sentences that
    the reader should not miss, each with a command to type, or none.

    `whole` says that `totals` are all that is to be had, so that a rank that is not among them is missing;
    a process that prints its own at exit knows nothing of the others.
    """
    _print(merged(totals, ending), file, whole=whole, also=also)


def to_json(totals: Sequence[RunTotals], ending: Ending | None = None) -> str:
    """A run as JSON text. The keys are stable; a new one may come, none goes or changes its meaning.

    `schema`: 1.
    `run`: `id`, `name`, `outcome` (running, finished, failed, interrupted, killed), `exit_code`, `signal`, `error`,
    `started_unix_ns`, `ended_unix_ns`, `duration_s`: of the whole run.
    `rates`: `samples_per_s` and `tokens_per_s` while training, `requests_per_s` over the process's life, `overhead`
    (the background thread's CPU time as a share of the duration): of the process that the summary shows.
    `diagnosis`: `verdict`, `evidence`, `advice`: of that process.
    `processes`: one object a process, the one that the summary shows first; keys in `otel_ml/totals.py`.
    What is not known is null.
    """
    run = merged(totals, ending)
    if run is None:
        return json.dumps({"schema": 1, "run": None, "rates": None, "diagnosis": None, "processes": []}, indent=2)
    shown = run.shown
    data = {
        "schema": 1,
        "run": {
            "id": shown.run_id,
            "name": shown.run_name,
            "outcome": run.outcome,
            "exit_code": run.exit_code,
            "signal": run.signal,
            "error": run.error,
            "started_unix_ns": run.started_unix_ns,
            "ended_unix_ns": run.ended_unix_ns,
            "duration_s": run.duration_s,
        },
        "rates": {
            "samples_per_s": while_training(shown, shown.samples, shown.samples_time_s),
            "tokens_per_s": while_training(shown, shown.tokens, shown.tokens_time_s),
            "requests_per_s": over(shown.inference.count or None, shown.duration_s),
            "overhead": over(shown.drain_cpu_s, shown.duration_s),
        },
        "diagnosis": asdict(diagnosis(shown)),
        "processes": [each.to_dict() for each in (shown, *run.others)],
    }
    return json.dumps(_finite(data), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print(run: Merged | None, file: TextIO | None, *, whole: bool, also: Sequence[tuple[str, str]] = ()) -> None:
    file = file or sys.stderr
    if run is None or file is None:  # a program without a console has no stderr
        return
    console = console_for(file)
    page = Page(console)
    draw(page, run, whole=whole, also=also)
    with console.capture() as capture:
        for line in page.lines:
            console.print(line)
    file.write(capture.get())  # one write: other processes print to the same terminal
    file.flush()
