"""What each finding of the tracker becomes in OpenTelemetry; the drain thread calls it and nobody else."""

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING, Any

from opentelemetry._logs import SeverityNumber

from otel_ml import names
from otel_ml.core import recorder as r
from otel_ml.core import runtime
from otel_ml.core.context import limits, optimizers, recorders, roots, scalars
from otel_ml.errors import guard, swallowed
from otel_ml.pipeline import memory
from otel_ml.pipeline.aggregate import memory_peak
from otel_ml.pipeline.columns import extremes, in_seconds
from otel_ml.pipeline.findings import Call, Calls, Epoch, Evaluation, Passed, Point, Step
from otel_ml.pipeline.layout import number_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.context import Context

    from otel_ml.core.clock import Anchor
    from otel_ml.core.recorder import Recorder
    from otel_ml.pipeline.aggregate import Aggregate
    from otel_ml.pipeline.findings import Output, Rare
    from otel_ml.pipeline.instruments import Instruments
    from otel_ml.pipeline.records import Points, Records
    from otel_ml.pipeline.spans import Spans
    from otel_ml.pipeline.steady import Block

__all__ = ["Telemetry"]

_SCALAR_MASK = (1 << r.STEP_SHIFT) - 1
_FUNCTIONS = 50  # compiled functions told apart in metrics; the rest are "other"


class Telemetry:
    """Fans every finding out to metrics, spans, events and the run's aggregates."""

    def __init__(
        self, *, instruments: Instruments, spans: Spans, records: Records, points: Points, aggregate: Aggregate,
        anchor: Anchor, watch: Callable[[str, str, int], tuple[str, str, str] | None],
    ) -> None:  # fmt: skip
        self.instruments = instruments
        self.spans = spans
        self.records = records
        self.points = points
        self.aggregate = aggregate
        self.anchor = anchor
        self.watch = watch  # told of every recompilation: function, reason, instant; says what is an anomaly
        self.rest: Callable[[], None] = _nothing  # called between pieces of work
        self._functions: set[str] = set()
        self._timed: set[str] = set()
        self._phases: set[str] = set()
        self._told_left_out: dict[str, int] = {}
        self._told: dict[str, float] = {}
        self._told_errors = 0
        self._told_records = (0, 0)
        self._told_cpu = 0.0
        self._described: set[int] = set()
        self._memory_limit = memory.limit()
        self._optimizers_seen: set[int] = set()

    def take(self, found: Output | list[Call], recorder: Recorder) -> None:
        """Tell of one finding, or of several calls."""
        if isinstance(found, Step):
            self._step(found, recorder)
        elif isinstance(found, Evaluation):
            of = None if found.split is None else {names.SPLIT: found.split}
            self.instruments.observe(names.EVALUATION_DURATION, [(found.end - found.start) / 1e9], of)
            self.aggregate.evaluation(found)
            self.spans.evaluation(found, recorder.ordinal)
        elif isinstance(found, Call):
            self._calls([found])
        elif isinstance(found, list):
            self._calls(found)
        elif isinstance(found, Calls):
            self._calls_alike(found)
        elif isinstance(found, Passed):
            self.aggregate.passed(found)
        elif isinstance(found, Point):
            self._point(found)
        elif isinstance(found, Epoch):
            self._epoch(found)
        else:
            self._rare(found)

    def apart(self, code: int, start: int, end: int, a: Any, b: Any) -> None:
        """Tell of what no tracker hears of."""
        if code == r.TIMED:
            function = self._within(self._timed, a, "function")
            self.instruments.observe(names.FUNCTION_DURATION, [(end - start) / 1e9], {names.FUNCTION_NAME: function})
        elif code == r.POINT:
            value = number_of(b)
            if value is not None:
                self._point(Point(start, a >> r.STEP_SHIFT, scalars.columns[a & _SCALAR_MASK], value))
        elif code == r.RUN_PART:
            self.spans.part(start, end, a)

    def _point(self, point: Point) -> None:
        """A value beside a step's record."""
        self.aggregate.scalar(point.column, (point.value,))
        self._scalar(point.column, [point.value])
        self.points.row(point.at, f"{names.STEP_SCALAR}.{point.column}", point.value, point.step)

    def _epoch(self, epoch: Epoch) -> None:
        self.aggregate.totals.epochs += not epoch.failed
        seconds = (epoch.end - epoch.start) / 1e9
        self.instruments.set(names.EPOCH, epoch.number, None)
        about = {
            names.OUTCOME: "failed" if epoch.failed else "ok",
            names.EPOCH_DURATION_S: seconds,
            names.EPOCH_NUMBER: epoch.number,
        }
        self.spans.epoch(epoch, about)
        said = f"epoch {epoch.number} {'failed' if epoch.failed else 'done'} after {seconds:.3g} s"
        self.records.event(names.EVENT_EPOCH_FINISHED, said, about, epoch.end)

    @staticmethod
    def _within(known: set[str], name: str, kind: str) -> str:
        """A name of the program's as a metric may carry it: there are at most 50."""
        if name not in known:
            if len(known) >= _FUNCTIONS:
                limits.over(kind, f"more than {_FUNCTIONS} names of a {kind}: the others are told of as 'other'")
                return "other"
            known.add(name)
        return name

    def _labels(self, found: Step | Block) -> tuple[dict[int, str], str | None]:
        """What optimizers are called, once there are several; and when the second one is met, the first one's label."""
        before = self._optimizers_seen
        self._optimizers_seen = before.union(found.losses, found.learning_rates)
        if len(self._optimizers_seen - {-1}) <= 1:
            return {}, None
        labels = {n: optimizers.labels[n] for n in self._optimizers_seen if 0 <= n < len(optimizers.labels)}
        # What was told of no optimizer is nobody's.
        first = labels.get(next(iter(before))) if len(before) == 1 else None
        if first is not None:
            self.aggregate.named(first)
        return labels, first

    def _step(self, step: Step, recorder: Recorder) -> None:
        labels, first = self._labels(step)
        self.aggregate.step(step, labels)
        attributes = self._record(step, labels)
        if first is not None:
            attributes = {names.STEP_LOSS_BEFORE: first, **attributes}
        profile = runtime.profiler.path_of(step.number) if runtime.profiler is not None else None
        if profile is not None:
            attributes = {names.PROFILE_PATH: profile, **attributes}
            self.spans.must_keep.add((recorder.ordinal, step.number))
        kept = self.spans.keeps(step, recorder.ordinal)
        context = self.spans.step(step, recorder, attributes) if kept else None
        self.records.step(step.end, attributes, context)
        self._step_metrics(step, labels, context)

    def _step_metrics(self, step: Step, labels: dict[int, str], context: Context | None) -> None:
        instruments = self.instruments
        framework = {names.FRAMEWORK_NAME: step.framework}
        if step.outcome == "ok":
            if context is not None:
                instruments.record_kept(names.STEP_DURATION, step.duration / 1e9, framework, context)
            else:
                instruments.observe(names.STEP_DURATION, [step.duration / 1e9], framework)
            for phase, spent in step.phases.items():
                instruments.observe(names.PHASE_DURATION, [spent / 1e9], {names.PHASE: self._phase(phase)})
        outcome = {names.OUTCOME: step.outcome}
        if step.skip_reason is not None:
            outcome[names.SKIP_REASON] = step.skip_reason
        instruments.add(names.STEPS, 1, outcome)
        for metric, amount in (
            (names.SAMPLES, step.samples), (names.TOKENS, step.tokens), (names.MICRO_BATCHES, step.micro_batches),
        ):  # fmt: skip
            if amount:
                instruments.add(metric, amount, None)
        for number, loss in step.losses.items():
            instruments.set(names.LOSS, loss, _of(labels, number))
            self._nonfinite("loss", [loss])
        for number, rates in step.learning_rates.items():
            self._rates(labels, number, rates)
        if step.grad_norm is not None:
            instruments.set(names.GRAD_NORM, step.grad_norm, None)
            self._nonfinite("grad_norm", [step.grad_norm])
        for name, value in step.scalars.items():
            self._scalar(name, [value])
        instruments.set(names.RUN_PROGRESS, self.anchor.unix(step.end) / 1e9, None)

    def _phase(self, phase: str) -> str:
        return phase if phase in names.PHASES else self._within(self._phases, phase, "phase")

    def block(self, block: Block, recorder: Recorder) -> None:
        """Tell of a block of steady steps: the same as of each, a column at a time."""
        labels, _ = self._labels(block)
        instruments = self.instruments
        self.aggregate.block(block, labels)
        kept = self.spans.keeps_of(block, recorder.ordinal)
        framework = {names.FRAMEWORK_NAME: block.framework}
        for at in kept:
            step = block.step(at)
            context = self.spans.step(step, recorder, self._record(step, labels))
            instruments.record_kept(names.STEP_DURATION, step.duration / 1e9, framework, context)
            self.rest()
        durations = in_seconds(block.durations)
        phases = {phase: in_seconds(spent) for phase, spent in block.phases.items()}
        others = durations[:]
        for at in reversed(kept):
            del others[at]
        instruments.observe(names.STEP_DURATION, others, framework)
        for phase, spent in phases.items():
            instruments.observe(names.PHASE_DURATION, spent, {names.PHASE: phase})
        self.rest()
        count = len(block)
        instruments.add(names.STEPS, count, {names.OUTCOME: "ok"})
        instruments.add(names.MICRO_BATCHES, count * block.micro_batches, None)
        columns: dict[str, Sequence[Any]] = {
            names.OUTCOME: ["ok"] * count,
            names.STEP_DURATION_S: durations,
            names.STEP_MICRO_BATCHES: array("q", (block.micro_batches,)) * count,
        }
        columns.update({f"{names.STEP_PHASE}.{phase}": spent for phase, spent in phases.items()})
        for number, losses in block.losses.items():
            known = _known(losses)
            instruments.set(names.LOSS, known[-1], _of(labels, number))
            self._nonfinite("loss", known)
            label = labels.get(number)
            columns[f"{names.STEP_LOSS}.{label}" if label is not None else names.LOSS.name] = losses
        for number, rates in block.learning_rates.items():
            self._rates(labels, number, rates[-1])
        for rates in list(block.learning_rates.values())[:1]:
            columns[names.LEARNING_RATE.name] = (
                rates if type(rates) is array else [r[0] if isinstance(r, tuple) else r for r in rates]
            )
        if block.grad_norms is not None:
            norms = _known(block.grad_norms)
            instruments.set(names.GRAD_NORM, norms[-1], None)
            self._nonfinite("grad_norm", norms)
            columns[names.GRAD_NORM.name] = block.grad_norms
        for name, values in block.scalars.items():
            self._scalar(name, _known(values))
            columns[f"{names.STEP_SCALAR}.{name}"] = values
        for metric, key, amounts in (
            (names.SAMPLES, names.STEP_SAMPLES, block.samples), (names.TOKENS, names.STEP_TOKENS, block.tokens),
        ):  # fmt: skip
            if amounts is not None:
                instruments.add(metric, sum(amounts), None)
                columns[key] = amounts
        if block.epoch is not None:
            columns[names.EPOCH_NUMBER] = [block.epoch] * count
        columns[names.STEP_NUMBER] = array("q", range(block.first, block.first + count))
        instruments.set(names.RUN_PROGRESS, self.anchor.unix(block.starts[-1]) / 1e9, None)
        self.records.steps(block.starts[1:], columns)

    def _scalar(self, column: str, values: Sequence[float]) -> None:
        if not values:
            return
        name, of = scalars.about.get(column, (column, None))
        tags = {names.SCALAR_NAME: name} if of is None else {names.SCALAR_NAME: name, names.SPLIT: of}
        self.instruments.set(names.SCALAR, values[-1], tags)
        self._nonfinite(name, values, of)

    def _nonfinite(self, name: str, values: Sequence[float], of: str | None = None) -> None:
        bad = extremes(values)[2] if type(values) is array else len(values) - sum(map(math.isfinite, values))
        if bad:
            tags = {names.SCALAR_NAME: name} if of is None else {names.SCALAR_NAME: name, names.SPLIT: of}
            self.instruments.add(names.NONFINITE, bad, tags)

    def _rates(self, labels: dict[int, str], number: int, rates: Any) -> None:
        if not isinstance(rates, tuple):
            self.instruments.set(names.LEARNING_RATE, rates, _of(labels, number))
            return
        for group, rate in enumerate(rates):
            if rate is not None:
                tags = {**(_of(labels, number) or {}), names.PARAM_GROUP: group}
                self.instruments.set(names.LEARNING_RATE, rate, tags)

    def _record(self, step: Step, labels: dict[int, str]) -> dict[str, Any]:
        out: dict[str, Any] = {
            names.OUTCOME: step.outcome,
            names.STEP_DURATION_S: step.duration / 1e9,
            names.STEP_MICRO_BATCHES: step.micro_batches,
        }
        if step.skip_reason is not None:
            out[names.SKIP_REASON] = step.skip_reason
        for phase, spent in step.phases.items():
            out[f"{names.STEP_PHASE}.{phase}"] = spent / 1e9
        for number, loss in step.losses.items():
            label = labels.get(number)
            out[f"{names.STEP_LOSS}.{label}" if label is not None else names.LOSS.name] = loss
        out.update({f"{names.STEP_SCALAR}.{name}": scalar for name, scalar in step.scalars.items()})
        first = next(iter(step.learning_rates.values()), None)
        rate = first[0] if isinstance(first, tuple) else first
        for key, value in (
            (names.LEARNING_RATE.name, rate), (names.GRAD_NORM.name, step.grad_norm),
            (names.STEP_SAMPLES, step.samples), (names.STEP_TOKENS, step.tokens), (names.EPOCH_NUMBER, step.epoch),
        ):  # fmt: skip
            if value is not None:
                out[key] = value  # noqa: PERF403
        out[names.STEP_NUMBER] = step.number  # identity last: the SDK keeps the last 128 attributes
        return out

    def _calls(self, calls: list[Call]) -> None:
        roots_met: dict[tuple[int, bool], list[Call]] = {}
        for call in calls:
            self.aggregate.call(call)
            self.spans.call(call)
            roots_met.setdefault((call.root, call.failed), []).append(call)
        for (root, failed), several in roots_met.items():
            durations, samples = array("q", (c.end - c.start for c in several)), [c.samples for c in several]
            self._requests(root, durations, samples, "failed" if failed else "ok")

    def _calls_alike(self, calls: Calls) -> None:
        self.aggregate.calls_of(calls)
        self.spans.calls(calls)
        self._requests(calls.root, calls.durations, calls.samples, "ok")

    def _requests(self, root: int, durations: array[int], samples: Sequence[int | None], outcome: str) -> None:
        """The metrics of several requests to one model; samples that are None or 0 are not known."""
        model = {names.MODEL_NAME: roots.facts[root].get("name", roots.labels[root])}
        ended = {**model, names.OUTCOME: outcome}
        self.instruments.observe(names.INFERENCE_DURATION, in_seconds(durations), ended)
        self.instruments.add(names.INFERENCE_REQUESTS, len(durations), ended)
        alike = samples.count(samples[0]) == len(samples)
        sizes: Sequence[float] = (
            array("d", (samples[0] or 0,)) * len(samples) if alike else [float(size) for size in samples if size]
        )
        if sizes and sizes[0]:
            self.instruments.observe(names.INFERENCE_BATCH_SIZE, sizes, model)

    def _rare(self, rare: Rare) -> None:
        self.aggregate.rare(rare)
        payload = rare.payload
        seconds = (rare.end - rare.start) / 1e9
        if "function" in payload:
            function = payload["function"]
            framework = {names.FRAMEWORK_NAME: "jax" if "stages" in payload else "torch"}
            about: dict[str, Any] = {names.FUNCTION_NAME: function}
            tags = {**framework, names.FUNCTION_NAME: self._bounded(function)}
            for stage, took in payload.get("stages", {}).items():
                self.instruments.observe(names.COMPILE_DURATION, [took], {**tags, names.COMPILE_STAGE: stage})
            if "stages" not in payload:
                self.instruments.observe(names.COMPILE_DURATION, [seconds], tags)
            if payload.get("cache") is not None:
                about[names.CACHE_RESULT] = payload["cache"]
                self.instruments.add(names.CACHE_REQUESTS, 1, {names.CACHE_RESULT: payload["cache"]})
            if payload.get("saved") is not None:
                about[names.COMPILE_SAVED_S] = payload["saved"]
            self.spans.rare(rare, names.SPAN_COMPILE, about)
            if payload["reason"] is not None:
                why = {names.FUNCTION_NAME: self._bounded(function), names.COMPILE_REASON_KIND: payload["kind"]}
                self.instruments.add(names.RECOMPILES, 1, why)
                self.records.event(
                    names.EVENT_RECOMPILED,
                    f"{payload['function']} compiled again: {payload['reason']}",
                    {names.FUNCTION_NAME: payload["function"], names.COMPILE_REASON_KIND: payload["kind"],
                     names.COMPILE_REASON: payload["reason"]},
                    rare.end,
                )  # fmt: skip
                self._anomaly(self.watch(payload["function"], payload["reason"], rare.end), rare.end)
            return
        operation = payload["operation"]
        tags = {names.CHECKPOINT_OPERATION: operation}
        if payload["error"] is not None:
            tags[names.ERROR_TYPE] = payload["error"]
        if payload.get("background") is not None:
            self.instruments.observe(names.CHECKPOINT_BACKGROUND, [payload["background"]], None)
        elif "background" not in payload:
            self.instruments.observe(names.CHECKPOINT_DURATION, [seconds], tags)
        size = payload.get("size")
        if size is not None:
            self.instruments.observe(names.CHECKPOINT_SIZE, [float(size)], {names.CHECKPOINT_OPERATION: operation})
        details = {
            names.CHECKPOINT_OPERATION: operation, names.CHECKPOINT_PATH: payload.get("path"),
            names.CHECKPOINT_SIZE_BY: size, names.CHECKPOINT_DURATION_S: payload.get("blocking", seconds),
            names.CHECKPOINT_BACKGROUND_S: payload.get("background"), names.ERROR_TYPE: payload["error"],
        }  # fmt: skip
        self.spans.rare(rare, names.SPAN_CHECKPOINT, {k: v for k, v in details.items() if v is not None})
        if payload["error"] is not None:
            what = "saved" if operation == "save" else "loaded"
            body = f"checkpoint not {what}: {payload.get('path', 'a stream')}: {payload['error']}"
            self.records.event(names.EVENT_CHECKPOINT_FAILED, body, details, rare.end, severity=SeverityNumber.WARN)
        elif "pending" not in payload:
            event, said = names.EVENT_CHECKPOINT_LOADED, "loaded"
            if operation == "save":
                event, said = names.EVENT_CHECKPOINT_SAVED, "saved"
                self.instruments.set(names.CHECKPOINT_TIMESTAMP, self.anchor.unix(rare.end) / 1e9, None)
            self.records.event(event, f"checkpoint {said}: {payload.get('path', 'a stream')}", details, rare.end)

    def _bounded(self, function: str) -> str:
        """A function's name as a metric may carry it."""
        if function not in self._functions and len(self._functions) >= _FUNCTIONS:
            return "other"
        self._functions.add(function)
        return function

    def _anomaly(self, found: tuple[str, str, str] | None, at: int) -> None:
        if found is None:
            return
        kind, evidence, advice = found
        self.instruments.add(names.ANOMALIES, 1, {names.ANOMALY_KIND: kind})
        about = {names.ANOMALY_KIND: kind, names.ANOMALY_EVIDENCE: evidence, names.ANOMALY_ADVICE: advice}
        self.records.event(names.EVENT_ANOMALY, f"{kind}: {evidence}", about, at, severity=SeverityNumber.WARN)

    # --- about the run and ourselves -------------------------------------------------

    def tick(self, *, upto: int | None, cpu_s: float, state: str) -> None:
        """Bring the run's own metrics up to date."""
        instruments = self.instruments
        for category, seconds in self.aggregate.categories(upto).items():
            more = seconds - self._told.get(category, 0.0)
            if more > 0:
                instruments.add(names.RUN_TIME, more, {names.TIME_CATEGORY: category})
                self._told[category] = seconds
        for known in ("running", "finished", "failed"):
            instruments.set(names.RUN_STATUS, int(known == state), {names.RUN_STATE: known})
        instruments.set(names.MEMORY_PEAK, memory_peak(), None)
        for metric, size in ((names.MEMORY_ALLOCATED, memory.resident()), (names.MEMORY_LIMIT, self._memory_limit)):
            if size is not None:
                instruments.set(metric, size, None)
        for number, facts in enumerate(roots.facts):
            if facts and number not in self._described:
                self._described.add(number)
                for trainable in (True, False) if "trainable" in facts else ():
                    count = facts["trainable" if trainable else "frozen"]
                    tags = {names.MODEL_NAME: facts["name"], names.PARAMETER_TRAINABLE: trainable}
                    instruments.set(names.MODEL_PARAMETERS, count, tags)
        for sample in runtime.samplers:
            with guard("a sample"):
                for metric, value, about in sample():
                    if about is not None and names.FUNCTION_NAME in about:
                        about[names.FUNCTION_NAME] = self._bounded(about[names.FUNCTION_NAME])
                    (instruments.add if metric.kind == "counter" else instruments.set)(metric, value, about)
        taken, dropped = recorders.counts()
        instruments.add(names.RECORD_COUNT, taken - self._told_records[0], None)
        instruments.add(names.RECORD_DROPPED, dropped - self._told_records[1], None)
        self._told_records = (taken, dropped)
        instruments.add(names.DRAIN_DURATION, max(0.0, cpu_s - self._told_cpu), None)
        self._told_cpu = cpu_s
        for kind, count in list(limits.counts.items()):
            more_out = count - self._told_left_out.get(kind, 0)
            if more_out > 0:
                instruments.add(names.LEFT_OUT, more_out, {names.LIMIT_KIND: kind})
                self._told_left_out[kind] = count
        errors = sum(swallowed.counts.values())
        if errors > self._told_errors:
            instruments.add(names.ERROR_COUNT, errors - self._told_errors, None)
            self._told_errors = errors
        totals = self.aggregate.totals
        totals.records, totals.records_dropped, totals.errors, totals.drain_cpu_s = taken, dropped, errors, cpu_s
        totals.thinned = self.records.thinned
        totals.left_out = dict(limits.counts)


def _nothing() -> None:
    pass


def _known(values: Sequence[float | None]) -> Sequence[float]:
    return values if type(values) is array else [v for v in values if v is not None]


def _of(labels: dict[int, str], number: int) -> dict[str, Any] | None:
    return {names.OPTIMIZER: labels[number]} if number in labels else None
