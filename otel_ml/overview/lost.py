"""What the endpoint, or the local store, lacks of a run: sentences for its end."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from otel_ml.overview.words import literal

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["undelivered_in", "unkept_in"]

_WORDS = {"spans": "span", "logs": "log record", "points": "metric point"}
_UNKEPT = {
    "queue_full": "which came faster than they could be written",
    "before_gate": "from before the first step or request was seen",
    "run_bytes": "the oldest, for the file had reached its size",
    "unsent": "the oldest, for the file had reached its size; the endpoint had not acknowledged them",
    "unencodable": "which OTLP cannot express",
    "write_failed": "which could not be written",
    "closed": "from after the end",
}


def undelivered_in(run_id: str, paths: Iterable[Path]) -> list[tuple[str, str]]:
    """What the endpoint lacks of a run whose processes have ended: sentences, each with the command to type."""
    from otel_ml.errors import StoreError
    from otel_ml.store.reader import undelivered

    left: dict[str, int] = {}
    refused: dict[str, int] = {}
    reasons: dict[str, str] = {}
    for path in paths:
        try:
            found = undelivered(path)
        except StoreError:  # what cannot be read, the reader tells of
            continue
        for counts, more in ((left, found.left), (refused, found.refused)):
            counts.update({signal: counts.get(signal, 0) + count for signal, count in more.items()})
        reasons.update(found.reasons)
    command = f"otel-ml replay {shlex.quote(literal(run_id))}"
    sentences: list[tuple[str, str]] = []
    if any(left.values()):
        sentences.append((f"The endpoint has not acknowledged {_counted(left)}. They are kept; to send them:", command))
    if any(refused.values()):
        reason = next(iter(reasons.values()), "")
        why = f" ({literal(reason)})" if reason else ""
        sentences.append((f"The endpoint refuses {_counted(refused)}{why}. To try again:", f"{command} --again"))
    return sentences


def unkept_in(paths: Iterable[Path]) -> list[tuple[str, str]]:
    """What the local store lacks of what these processes recorded, and why: sentences, without a command."""
    from otel_ml.errors import StoreError
    from otel_ml.store.runs import process_of

    lost: dict[str, dict[str, int]] = {}
    for path in paths:
        try:
            drops = process_of(path).drops
        except StoreError:  # as above
            continue
        for key, count in drops.items():
            signal, _, reason = key.partition(" ")
            if signal in _WORDS:
                counts = lost.setdefault(reason, {})
                counts[signal] = counts.get(signal, 0) + count
    return [
        (f"Not in the local store: {_counted(counts)}, {_UNKEPT.get(reason, reason)}.", "")
        for reason, counts in lost.items()
    ]


def _counted(counts: dict[str, int]) -> str:
    parts = [f"{count:,} {_WORDS[signal]}{'s' * (count != 1)}" for signal, count in counts.items() if count]
    return ", ".join(parts[:-1]) + (" and " if parts[1:] else "") + parts[-1]
