"""Makes the SDK Views that a user asked for in our settings: drop a metric, keep few attributes, exponential buckets.

Opt-in, and only for our own metrics: buckets are advice on the instruments, so without
these settings there is no View of ours and a user's Views simply win. `distro.py` calls
`views()` once, before it builds the meter provider. A metric gets one View whatever was
asked for it, since a second View that matches makes a second stream.
"""

from __future__ import annotations

from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from opentelemetry.sdk.metrics.view import DropAggregation, ExponentialBucketHistogramAggregation, View

from otel_ml import names
from otel_ml.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["views"]

HISTOGRAMS = tuple(metric.name for metric in names.METRICS.values() if metric.kind == "histogram")


def views(
    drop: tuple[str, ...], keep_attributes: Mapping[str, tuple[str, ...]], exponential: tuple[str, ...]
) -> list[View]:
    """Return one View for each of our metrics that is asked about, by name or wildcard (`ml.training.*`).

    A dropped metric needs nothing else; a metric that several patterns of
    `keep_attributes` match keeps the attributes of all of them. A pattern that matches
    nothing, or an attribute that no matched metric has, is a SettingsError.
    """
    dropped = {name for pattern in drop for name in _matching(pattern, names.METRICS, "metric")}
    spread = {name for pattern in exponential for name in _matching(pattern, HISTOGRAMS, "histogram")}
    kept: dict[str, set[str]] = {}
    for pattern, keys in keep_attributes.items():
        matched = _matching(pattern, names.METRICS, "metric")
        known = {key for name in matched for key in names.METRICS[name].attributes}
        for key in keys:
            if key not in known:
                message = f"no metric that matches {pattern!r} has an attribute {key!r}" + _suggest(key, known)
                raise SettingsError(message)
        for name in matched:
            kept.setdefault(name, set()).update(keys)
    made = []
    for name in names.METRICS:
        if name in dropped:
            made.append(View(instrument_name=name, meter_name=names.SCOPE, aggregation=DropAggregation()))
        elif name in kept or name in spread:
            buckets = ExponentialBucketHistogramAggregation() if name in spread else None
            keys_kept = kept.get(name)
            made.append(
                View(instrument_name=name, meter_name=names.SCOPE, attribute_keys=keys_kept, aggregation=buckets)
            )
    return made


def _matching(pattern: str, candidates: Iterable[str], what: str) -> list[str]:
    """Return the candidates that a pattern matches; refuse a pattern that matches none."""
    every = list(candidates)
    matched = [name for name in every if fnmatchcase(name, pattern)]
    if not matched:
        groups = {name.rsplit(".", depth)[0] + ".*" for name in every for depth in range(1, name.count(".") + 1)}
        message = f"no {what} of ours matches {pattern!r}" + _suggest(pattern, [*every, *sorted(groups)])
        raise SettingsError(message)
    return matched


def _suggest(word: str, candidates: Iterable[str]) -> str:
    """Return the end of a message that says what was probably meant, or what there is."""
    every = sorted(candidates)
    near = get_close_matches(word, every)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; there is {', '.join(every)}" if every else "; there is none"
