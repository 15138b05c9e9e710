"""Turns numbers into OpenTelemetry instruments: pends them, and feeds them in bulk at each flush.

Why: an instrument call costs microseconds, so a step must not make one. The drain thread
hands in values as it finds them; `flush()`, once a tick, sends what came together. A
reader that collects in between flushes as well: the callback of our one observable gauge
runs on the reader's thread before anything is collected, so no collection misses a value.

All state is guarded by `bulk.gate`. The gate is never held while an observable instrument
is registered: registering waits for a running collection, which waits for the gate.
"""

from __future__ import annotations

import os
import weakref
from array import array
from math import isfinite
from typing import TYPE_CHECKING, Any

from opentelemetry.metrics import CallbackOptions, Observation

from otel_ml import errors, names
from otel_ml.pipeline import bulk
from otel_ml.pipeline.columns import AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from opentelemetry.context import Context
    from opentelemetry.metrics import Meter

    from otel_ml.names import Attribute, Metric

    Value = str | bool | int | float
    Attributes = Mapping[str, Value] | Mapping[Attribute, Value] | None
    Items = frozenset[tuple[str, Value]]
    Series = tuple[str, Items]

__all__ = ["Instruments"]

# A flush of this many values takes about a millisecond, which the program may have to wait for.
FLUSH_AT = max(2048, 4 * AT_ONCE)
_KNOWN = 1000  # attribute sets whose series is remembered


class Instruments:
    """Every instrument of `names.METRICS`, made on first use from one meter and fed by `flush()`."""

    def __init__(self, meter: Meter, store_size: Callable[[], int | None]) -> None:
        """Use `meter`; `store_size` answers, on readers' threads, with the store's bytes or None without a store."""
        self.refused = 0
        """How many values were not recorded because they were NaN, infinite, or negative where that means nothing."""
        self._store_size = store_size
        self._instruments: dict[str, Any] = {}
        self._values: dict[Series, array[float]] = {}
        self._totals: dict[Series, float] = {}
        self._last: dict[Series, float] = {}
        self._known: dict[tuple[Any, ...], Series] = {}
        self._pending = 0
        self._meter: Meter | None = None
        _alive.add(self)
        self.use(meter)

    def use(self, meter: Meter) -> None:
        """Record with another provider's meter from now on; what is pending goes there."""
        with bulk.gate:
            if meter is self._meter:
                return
            self._meter = meter
            self._instruments.clear()
            for name, _ in (*self._values, *self._totals, *self._last):
                self._make(names.METRICS[name])

        def flush_and_observe(_options: CallbackOptions) -> Iterable[Observation]:
            if self._meter is not meter:
                return []
            with errors.guard("instruments.flush_and_observe"):
                self.flush()
                size = self._store_size()
                return [] if size is None else [Observation(size)]
            return []

        gauge = names.STORE_SIZE
        meter.create_observable_gauge(gauge.name, [flush_and_observe], gauge.unit, gauge.doc)

    def observe(self, metric: Metric, values: Sequence[float], attributes: Attributes = None) -> None:
        """Pend values of a histogram."""
        with bulk.gate:
            series = self._series(metric, attributes)
            if series not in self._values:
                self._values[series] = array("d")
            self._values[series].extend(values)
            self._pending += len(values)
            if self._pending >= FLUSH_AT:
                self.flush()

    def add(self, metric: Metric, amount: float, attributes: Attributes = None) -> None:
        """Pend an amount to be added to a counter."""
        with bulk.gate:
            if not isfinite(amount) or (amount < 0 and metric.kind == "counter"):
                self.refused += 1
                return
            series = self._series(metric, attributes)
            self._totals[series] = self._totals.get(series, 0) + amount

    def set(self, metric: Metric, value: float, attributes: Attributes = None) -> None:
        """Pend a gauge's value; the last one wins."""
        with bulk.gate:
            if not isfinite(value):
                self.refused += 1
                return
            self._last[self._series(metric, attributes)] = value

    def record_kept(self, metric: Metric, value: float, attributes: Attributes, context: Context) -> None:
        """Record one histogram value at once, in the context of a kept step: it may become an exemplar."""
        with bulk.gate:
            if not isfinite(value) or value < 0:
                self.refused += 1
                return
            name, items = self._series(metric, attributes)
            self._instruments[name].record(value, dict(items), context=context or bulk.NOWHERE)

    def flush(self) -> None:
        """Send everything pending; called by the drain, and by each reader just before it collects."""
        with bulk.gate:
            values, self._values = self._values, {}
            totals, self._totals = self._totals, {}
            last, self._last = self._last, {}
            self._pending = 0
            for (name, items), several in values.items():
                with errors.guard(f"recording {name}"):
                    self.refused += bulk.feed(self._instruments[name], several, dict(items))
            for (name, items), total in totals.items():
                with errors.guard(f"recording {name}"):
                    self._instruments[name].add(total, dict(items), context=bulk.NOWHERE)
            for (name, items), value in last.items():
                with errors.guard(f"recording {name}"):
                    self._instruments[name].set(value, dict(items), context=bulk.NOWHERE)

    def forget(self) -> None:
        """Drop what is pending; a forked child must not count its parent's values again."""
        with bulk.gate:
            self._values.clear()
            self._totals.clear()
            self._last.clear()
            self._pending = 0

    def _series(self, metric: Metric, attributes: Attributes) -> Series:
        """Return the key of a metric's series; makes the instrument, so that a flush never has to."""
        if metric.name not in self._instruments:
            self._make(metric)
        if not attributes:
            return metric.name, _NO_ITEMS
        asked = (metric.name, *attributes.items())
        known = self._known.get(asked)
        if known is None:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            known = self._known[asked] = self._new_series(metric, attributes)
        return known

    @staticmethod
    def _new_series(metric: Metric, attributes: Mapping[Any, Value]) -> Series:
        if not attributes.keys() <= set(metric.attributes):
            unlisted = sorted(attributes.keys() - set(metric.attributes))
            with errors.guard(f"attributes of {metric.name}"):
                message = f"{metric.name} may not carry {', '.join(unlisted)}; list it in names.py"
                raise AssertionError(message)
            attributes = {key: value for key, value in attributes.items() if key in metric.attributes}
        # A str subclass (a name of ours) as a value would be a series of its own to the SDK.
        plain = ((key, str(value) if isinstance(value, str) else value) for key, value in attributes.items())
        return metric.name, frozenset(plain)

    def _make(self, metric: Metric) -> None:
        if metric.name in self._instruments:
            return
        meter: Any = self._meter
        create = getattr(meter, f"create_{metric.kind}")
        buckets = {"explicit_bucket_boundaries_advisory": metric.buckets} if metric.kind == "histogram" else {}
        self._instruments[metric.name] = create(metric.name, unit=metric.unit, description=metric.doc, **buckets)


_NO_ITEMS: Items = frozenset()
_alive: weakref.WeakSet[Instruments] = weakref.WeakSet()


def _forget_in_child() -> None:
    for instruments in _alive:
        instruments.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
