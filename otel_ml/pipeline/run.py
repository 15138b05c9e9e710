"""One process's run, from configuration to goodbye: ties the drain, the providers and the store together."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import socket
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry._logs import SeverityNumber

from otel_ml import names
from otel_ml.core import pace, runtime, threads
from otel_ml.core.clock import Anchor, now
from otel_ml.core.context import optimizers, recorders, request_id, roots
from otel_ml.core.threads import Unseen
from otel_ml.errors import guard, swallowed
from otel_ml.pipeline import bulk, dice, late
from otel_ml.pipeline.aggregate import Aggregate
from otel_ml.pipeline.drain import Drain
from otel_ml.pipeline.instruments import Instruments
from otel_ml.pipeline.logs import Logs
from otel_ml.pipeline.records import Points, Records
from otel_ml.pipeline.spans import Marker, Spans
from otel_ml.pipeline.telemetry import Telemetry
from otel_ml.redact import argv, text
from otel_ml.totals import RunTotals

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_ml.core.identity import Identity
    from otel_ml.pipeline.providers import Providers

__all__ = ["Run"]

_MOMENT_S = 1.0


class Run:
    """Everything that lives as long as this process does."""

    def __init__(
        self,
        identity: Identity,
        providers: Providers,
        *,
        writer: Any,
        spool: Any = None,
        judge: Callable[[RunTotals], tuple[str, str, str]],
        watch: Callable[[str, str, int], tuple[str, str, str] | None],
        steps_per_second: float,
        points_per_second: float,
        points_burst: int,
        started: int | None = None,
    ) -> None:
        self.identity = identity
        self.providers = providers
        self.writer = writer
        self.spool = spool
        self._judge = judge
        self.started = now() - _age_ns() if started is None else started
        self.anchor = Anchor()
        instruments = Instruments(_meter(providers.meter), lambda: (writer and writer.size()) or None)
        self.spans = Spans(identity, self.anchor, steps_per_second=steps_per_second, started=self.started)
        self.spans.use(_tracer(providers.tracer))
        self.points = Points(self.anchor, rate=points_per_second, burst=points_burst, started=self.started)
        self.records = Records(
            self.anchor, rate=points_per_second, burst=points_burst, started=self.started, points=self.points
        )
        self._log_to(providers.logger)
        self.totals = RunTotals(
            run_id=identity.run_id,
            run_name=identity.run_name,
            attempt=identity.attempt,
            rank=identity.rank,
            world_size=identity.world_size,
            host=socket.gethostname(),
            pid=os.getpid(),
            started_unix_ns=self.anchor.unix(self.started),
        )
        self.aggregate = Aggregate(self.totals, self.started)
        self.telemetry = Telemetry(
            instruments=instruments,
            spans=self.spans,
            records=self.records,
            points=self.points,
            aggregate=self.aggregate,
            anchor=self.anchor,
            watch=watch,
        )
        tell = writer.tell if writer else _nothing
        self.drain = Drain(self.telemetry, prepare=self._prepare, started=self._begin, tell=tell, keep=providers.keep)
        self.logs = Logs(providers.logger, theirs="logs" not in providers.made)
        self.pid = os.getpid()
        self.done = threading.Event()
        self._by_hand = False
        self._tracers: dict[str, Any] = {}
        self._token: Any = None

    def start(self, *, drain: bool = True) -> None:
        """Begin: attach the live step, hear the program's logs, run the drain unless it is turned by hand."""
        pace.hurry(on=False)
        bulk.install()
        dice.install()
        self._mark()
        self._token = otel_context.attach(trace.set_span_in_context(self.spans.live))
        self.logs.install()
        runtime.identity, runtime.recording = self.identity, self
        os.register_at_fork(after_in_child=_forked)
        self._by_hand = not drain
        if drain:
            threads.hide()
            self.drain.start()

    def _log_to(self, provider: Any) -> None:
        for records in (self.records, self.points):
            records.use(_logger(provider))

    def _mark(self) -> None:
        if hasattr(self.providers.tracer, "add_span_processor"):
            self.providers.tracer.add_span_processor(Marker(self.spans))

    def adopt(self, signal: str) -> None:
        """The program has set its own provider of this signal: send through that one from now on."""
        provider = self.providers.adopt(signal)
        if signal == "traces":
            self._tracers.clear()
            self.spans.use(_tracer(provider))
            self._mark()
        elif signal == "metrics":
            self.telemetry.instruments.use(_meter(provider))
        else:
            self._log_to(provider)
            self.logs.use(provider)

    def detach(self) -> None:
        """Take back what `start()` put into this process and context, after the end."""
        otel_context.detach(self._token)
        runtime.identity = runtime.recording = None
        self.logs.uninstall()
        bulk.uninstall()
        dice.uninstall()

    # --- what the API records with -------------------------------------------------------

    @property
    def live(self) -> Any:
        """Stands for the step that the thread which asks is in."""
        return self.spans.live

    def tracer(self, scope: str) -> Any:
        """The tracer of this scope."""
        tracer = self._tracers.get(scope)
        if tracer is None:
            tracer = self._tracers[scope] = self.providers.tracer.get_tracer(scope)
        return tracer

    def event(self, name: str, body: str, attributes: dict[str, Any], *, warning: bool = False) -> None:
        """Emit a log record with this event name, in the current context."""
        recorder = recorders.live()
        if recorder is not None and recorder.state:
            attributes = {**attributes, names.STEP_NUMBER: recorder.number}
        request = request_id.get()
        if request is not None:
            attributes = {**attributes, names.REQUEST_ID: request}
        severity = SeverityNumber.WARN if warning else SeverityNumber.INFO
        self.records.event(name, body, attributes, now(), context=otel_context.get_current(), severity=severity)

    def annotated(self) -> None:
        """The program has said something of itself: there is a run to tell of."""
        self.drain.annotated = True

    def flush(self, timeout_s: float) -> bool:
        """Bring all that is recorded so far to where it goes; whether it got there in time."""
        if os.getpid() != self.pid or self.done.is_set():
            return False
        done = threading.Event()

        def bring() -> None:
            with guard("a flush"):
                self.drain.turn(pause=False)
                self.providers.flush(int(timeout_s * 1000), stored=True)
                done.set()

        if self._by_hand:
            bring()
        else:
            Unseen(target=bring, name="otel-ml-flush", daemon=True).start()
        return done.wait(timeout_s)

    def so_far(self) -> RunTotals:
        """The run's aggregates as they stand, with a verdict."""
        self.drain.turn(pause=False)
        totals = dataclasses.replace(self.aggregate.fill(now()))
        totals.verdict, totals.evidence, totals.advice = self._judge(totals)
        return totals

    def _prepare(self) -> None:
        """Import what stores and sends, while the program imports its framework."""
        if self.writer is not None:
            self.writer.prepare(signals=bool(self.providers.stored))
        late.prepare()

    def _begin(self) -> None:
        """The first step or call was seen: the run is worth telling of."""
        if self.writer is not None:
            self.writer.open_gate()
        name, framework = runtime.leading()
        self.totals.framework = name
        at = now()
        about = {
            names.CONFIG_ARGV: argv(sys.orig_argv),
            names.CONFIG_MODELS: [f["name"] for f in roots.facts if f],
            names.CONFIG_OPTIMIZERS: [n for n, f in zip(optimizers.labels, optimizers.facts, strict=True) if not f],
            names.MODEL_PARAMETERS_COUNT: sum(f.get("trainable", 0) + f.get("frozen", 0) for f in roots.facts),
            names.FRAMEWORK_NAME: name,
            names.FRAMEWORK_VERSION: framework,
            "process.runtime.version": platform.python_version(),
            "host.name": self.totals.host,
        }
        self.records.event(names.EVENT_RUN_STARTED, f"run {self.identity.run_id} started", {}, at)
        self.records.event(names.EVENT_CONFIG, f"{name} {framework}: {' '.join(about[names.CONFIG_ARGV])}", about, at)

    def finish(self, error: BaseException | None, timeout_s: float) -> RunTotals | None:
        """Close the run on the drain's thread within `timeout_s`; the totals, or None if nothing was ever seen."""
        if os.getpid() != self.pid or self.done.is_set():
            return None
        pace.hurry()
        if runtime.recording is self:
            runtime.recording = None
        if self._by_hand:  # here, so that an error of ours reaches who turned it
            self._finish(error, timeout_s)
        else:
            self.drain.at_end = lambda: self._finish(error, timeout_s)
            self.drain.stop()
            if self.done.wait(timeout_s):
                self.drain.join(_MOMENT_S)  # that was the last thing it does
            threads.show()
        return self.totals if self.drain.active else None

    def _finish(self, error: BaseException | None, timeout_s: float) -> None:
        timeout_ms = int(timeout_s * 1000)
        deadline = time.monotonic() + timeout_s
        if self.spool is not None:
            self.spool.stop()
        with guard("the end of the run"):
            self._close(error)
        with guard("the end of the local store"):
            if self.writer is not None:
                if self.drain.active:
                    with guard("the last records"):
                        self.providers.end_store(timeout_ms)
                    self.totals.errors = sum(swallowed.counts.values())
                    self.writer.finish(
                        totals=self.totals.to_dict(),
                        ended_unix_ns=self.totals.ended_unix_ns or time.time_ns(),
                        outcome=self.totals.outcome,
                        exit_code=self.totals.exit_code,
                    )
                self.writer.close()
        with guard("the last export"):
            if self.drain.active:
                self.providers.flush(timeout_ms)
            self.providers.shutdown()
        with guard("the end of the spool"):
            if self.spool is not None:
                self.spool.finish(deadline)
        self.done.set()

    def _close(self, error: BaseException | None) -> None:
        at = now()
        totals = self.totals
        if isinstance(error, KeyboardInterrupt):
            totals.outcome = "interrupted"
        elif error is not None:
            totals.outcome, totals.exit_code = "failed", 1
        else:
            totals.outcome = "finished"
        live = recorders.main or next((r for r in recorders.all if r.state), None)  # it may fail before the first turn
        context = None
        if error is not None:
            totals.error = _said(error)[:1000]
            if live is not None and live.state:
                self.spans.must_keep.add((live.ordinal, live.number))
                own = self.spans.context(live.number, live.ordinal)
                context = trace.set_span_in_context(trace.NonRecordingSpan(own))
        self.drain.last(failed=error is not None)
        if not self.drain.active:
            return
        if error is not None:
            with guard("telling of the exception"):
                self._tell_exception(error, live.number if live is not None and live.state else None, context, at)
        self.records.finish(at)
        self.points.finish(at)
        totals.ended_unix_ns = self.anchor.unix(at)
        self.telemetry.tick(
            upto=at, cpu_s=self.drain.cpu_s, state="failed" if totals.outcome == "failed" else "finished"
        )
        self.aggregate.fill(at)
        totals.verdict, totals.evidence, totals.advice = self._judge(totals)
        verdict = {
            names.DIAGNOSIS_VERDICT: totals.verdict,
            names.DIAGNOSIS_EVIDENCE: totals.evidence,
            names.DIAGNOSIS_ADVICE: totals.advice,
        }
        self.records.event(names.EVENT_DIAGNOSIS, f"{totals.verdict}: {totals.evidence}", verdict, at)
        end = {
            names.RUN_OUTCOME: totals.outcome,
            names.RUN_EXIT_CODE: totals.exit_code,
            names.RUN_DURATION_S: totals.duration_s,
            names.DIAGNOSIS_VERDICT: totals.verdict,
            names.RUN_TOTALS: _json(totals),
        }
        self.records.event(names.EVENT_RUN_FINISHED, f"run {totals.outcome} after {totals.steps} steps", end, at)
        self.spans.finish(at, {names.RUN_OUTCOME: totals.outcome}, totals.error)
        self.telemetry.instruments.flush()

    def _tell_exception(self, error: BaseException, step: int | None, context: Any, at: int) -> None:
        import traceback

        details = {
            names.EXCEPTION_TYPE: type(error).__name__,
            names.EXCEPTION_MESSAGE: text(_message(error)),
            names.EXCEPTION_STACKTRACE: text("".join(traceback.format_exception(error))),
            names.RUN_ID: self.identity.run_id,
            names.STEP_NUMBER: step,
        }
        self.records.event(
            names.EVENT_EXCEPTION, _said(error), details, at, context=context, severity=SeverityNumber.ERROR
        )


_SCOPE = (names.SCOPE, version("otel-ml"))


def _tracer(provider: Any) -> Any:
    return provider.get_tracer(*_SCOPE, schema_url=names.SCHEMA_URL)


def _meter(provider: Any) -> Any:
    return provider.get_meter(*_SCOPE, schema_url=names.SCHEMA_URL)


def _logger(provider: Any) -> Any:
    return provider.get_logger(*_SCOPE, schema_url=names.SCHEMA_URL)


def _nothing(*_: Any) -> None:
    """Without a store there is nobody to tell."""


def _json(totals: RunTotals) -> str:
    return json.dumps(dataclasses.asdict(totals))


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:  # noqa: BLE001 - the program's own code, whatever it raises
        return "<exception str() failed>"  # as `traceback` says


def _said(error: BaseException) -> str:
    message = text(_message(error))
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _forked() -> None:
    """A forked child inherits nothing that runs and emits nothing: its hooks record into the void."""
    recorders.clear()
    recorders.limit = 0
    runtime.identity = runtime.recording = None


def _age_ns() -> int:
    """How long this process has existed, in nanoseconds, as far as the kernel tells."""
    try:
        stat = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace")
        ticks = int(stat.rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0
    return max(0, int(age * 1e9))
