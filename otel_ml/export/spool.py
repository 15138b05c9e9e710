"""Sends what an endpoint has not acknowledged: by itself while a process runs, and by command after it ended.

The SDK's exporters send first, and give a batch up when the endpoint does not answer in
time. What they gave up is in the store and waits there. `Spool` is a process's own: from
the first failure on, a thread of its own tries again, the oldest first, with growing pauses,
and at once when an exporter has got through. `replay()` does the same for the file of a
process that has ended.

What the endpoint answers decides: it is told how long to be left alone and is; records that
it refuses are found by halving their batch, set aside with the reason and counted; where it
refuses an empty request as well, it is not the records' fault and all of them stay.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it ships no types
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, detach, set_value

from otel_ml import redact
from otel_ml.core.pace import Pace
from otel_ml.core.threads import Unseen
from otel_ml.errors import SettingsError, StoreError, swallow
from otel_ml.export.requests import message_of, request_of
from otel_ml.export.sender import sender
from otel_ml.store import outbox

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from otel_ml.export.sender import Answer, Sender

__all__ = ["Report", "Spool", "replay", "ways"]

logger = logging.getLogger("otel_ml")

MOST_BYTES = 1 << 20  # of a request, well under the 4 MiB that gRPC servers take by default
MOST_ROWS = 512
FEW_ROWS = 128  # of a request that is made beside a program that runs
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
IDLE_S = 5.0  # between looks whether there is something to be sent
LEAST_S = 0.3  # of the exit, under which nothing more is begun


def pause_s(tries: int) -> float:
    """How long to wait before the next try: doubling, and never the same for all."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(tries, 10)) * random.SystemRandom().uniform(0.5, 1.0)


@dataclass
class Report:
    """What came of sending, by signal; `trouble` is why it stopped before all was sent."""

    sent: dict[str, int] = field(default_factory=lambda: dict.fromkeys(outbox.SIGNALS, 0))
    refused: dict[str, int] = field(default_factory=lambda: dict.fromkeys(outbox.SIGNALS, 0))
    reasons: dict[str, str] = field(default_factory=dict)
    trouble: str = ""


class _Attempt:
    """Sends batches of one signal and notes what became of them through `mark(state, ids, reason)`."""

    def __init__(
        self, signal: str, way: Sender, mark: Callable[[str, Sequence[int], str | None], None], *, paced: bool
    ) -> None:
        self.signal = signal
        self._paced = paced
        self.way = way
        self._mark = mark
        self._welcome = False  # the endpoint has taken something, so what it refuses is its records' fault
        self.sent = 0
        self.refused = 0
        self.reason = ""

    def send(self, batch: outbox.Batch, timeout_s: float | None = None) -> Answer:
        """Send a batch, in halves where it is refused; the answer that decides on what to do next."""
        try:
            with Pace(on=self._paced) as pace:
                content = request_of(batch).SerializeToString()
                pace.rest()
        except DecodeError:
            return self._set_aside(batch, "damaged on disk", timeout_s)
        answer = self.way.send(content, timeout_s)
        if answer.kind == "taken":
            self._welcome = True
            self._mark("acknowledged", batch.ids, None)
            self.sent += len(batch.records) - answer.rejected
            if answer.rejected:  # it does not say which
                self.refused += answer.rejected
                self.reason = answer.reason
            return answer
        if answer.kind != "refused":
            return answer
        if not self._welcome:
            tried = self.way.send(message_of(self.signal)().SerializeToString(), timeout_s)
            if tried.kind != "taken":
                return tried if tried.kind != "refused" else _unwelcome(tried)
            self._welcome = True
        return self._set_aside(batch, answer.reason, timeout_s)

    def _set_aside(self, batch: outbox.Batch, reason: str, timeout_s: float | None) -> Answer:
        """Set the one record aside, or look for it in either half."""
        if len(batch.records) == 1:
            self._mark("refused", batch.ids, reason)
            self.refused += 1
            self.reason = reason
            return _taken()
        half = len(batch.records) // 2
        first = self.send(batch.part(0, half), timeout_s)
        return first if first.kind != "taken" else self.send(batch.part(half, len(batch.records)), timeout_s)


def _unwelcome(answer: Answer) -> Answer:
    from otel_ml.export.sender import Answer as Made

    return Made("unwelcome", answer.reason)


def _taken() -> Answer:
    from otel_ml.export.sender import Answer as Made

    return Made("taken")


# --- a process's own ------------------------------------------------------------------------


class Spool:
    """Of a running process: what its exporters gave up is sent again."""

    def __init__(self, writer: Any, environ: Mapping[str, str]) -> None:
        """Listen to the writer's ledger; nothing is started before an exporter fails."""
        self._writer = writer
        self._ledger = writer.ledger
        self._environ = environ
        self._pid = os.getpid()
        self._wake = threading.Event()
        self._owing = False  # something may be left to send
        self._busy = threading.Lock()  # held while sending
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._attempts: dict[str, _Attempt] = {}
        self._said: set[str] = set()
        self._not_before = 0.0
        self._ledger.told_of = self._told

    # --- on the exporters' threads -----------------------------------------------------------

    def _told(self, arrived: bool) -> None:  # noqa: FBT001 - the ledger's listener
        try:
            self._owing = self._owing or not arrived
            if self._stopped:
                self._writer.acknowledge()
            elif self._owing and self._thread is None:
                self._thread = Unseen(target=self._work, name="otel-ml-spool", daemon=True)
                self._thread.start()
            elif self._owing and arrived:
                self._wake.set()
        except Exception:  # noqa: BLE001 - an exporter's thread is the SDK's
            swallow("the spool")

    # --- on its own --------------------------------------------------------------------------

    def _work(self) -> None:
        tries = 0
        while not self._stopped:
            self._wake.wait(pause_s(tries) if self._owing else IDLE_S)
            self._wake.clear()
            if self._stopped:
                return
            try:
                self._look_for_late()
                if self._owing and time.monotonic() >= self._not_before:
                    self._owing = False
                    done = self._turn(None) and not any(list(self._ledger.failing.values()))
                    tries = 0 if done else tries + 1
                    self._owing = self._owing or not done
            except Exception:  # noqa: BLE001 - the law: never break the program
                tries += 1
                self._owing = True
                swallow("the spool")

    def _turn(self, deadline: float | None) -> bool:
        """Send what there is to be sent; whether the endpoint took it all."""
        with self._busy:
            done = [self._guarded(signal, deadline) for signal in outbox.SIGNALS if signal in self._ledger.owed]
        return all(done)

    def _look_for_late(self) -> None:
        """Rows that the store held back until the first step may have been given up before they were written."""
        if self._ledger.late:
            self._ledger.late = False
            self._owing = True

    def _guarded(self, signal: str, deadline: float | None) -> bool:
        """As `_signal`; what is wrong with one signal keeps no other from being sent.

        As the SDK's own exports do, it says that it is one: what is heard of it is not the program's to print or send.
        """
        token = attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))  # noqa: FBT003 - as the SDK has it
        try:
            return self._signal(signal, deadline)
        except SettingsError as error:
            self._say(f"settings {signal}", f"{signal} cannot be sent again: {str(error).removesuffix('.')}")
        except Exception:  # noqa: BLE001 - the law: never break the program
            swallow("the spool")
        finally:
            detach(token)
        return False

    def _signal(self, signal: str, deadline: float | None) -> bool:
        while not self._stopped or deadline is not None:
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s < LEAST_S:
                return False
            batch = self._writer.unsent(signal, most_bytes=MOST_BYTES, most_rows=FEW_ROWS)
            if not batch.records:
                return True
            attempt = self._attempts.get(signal) or self._attempt(signal)
            refused = attempt.refused
            answer = attempt.send(batch, left_s)
            if attempt.refused > refused:
                self._say(
                    f"refused {signal}",
                    f"the endpoint refuses {signal} for good ({attempt.reason}); they are set aside in the local "
                    "store, and `otel-ml replay --again` tries them once more",
                )
            if answer.kind != "taken":
                if answer.after_s is not None:
                    self._not_before = max(self._not_before, time.monotonic() + answer.after_s)
                if answer.kind == "unwelcome":
                    self._say(
                        f"unwelcome {signal}",
                        f"{redact.text(attempt.way.where)} takes no {signal} ({answer.reason}); look at "
                        "OTEL_EXPORTER_OTLP_ENDPOINT and _HEADERS. They stay in the local store",
                    )
                return False
        return False

    def _attempt(self, signal: str) -> _Attempt:
        def mark(state: str, ids: Sequence[int], reason: str | None) -> None:
            self._writer.mark(signal, state, ids, reason)

        made = self._attempts[signal] = _Attempt(signal, sender(signal, self._environ), mark, paced=True)
        return made

    def _say(self, kind: str, text: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            logger.warning("otel-ml: %s.", text)

    # --- at the end --------------------------------------------------------------------------

    def stop(self) -> None:
        """The process is about to end: from now on what arrives is noted at once, and the thread begins nothing."""
        self._stopped = True
        self._wake.set()

    def finish(self, deadline: float) -> None:
        """Send what is left until `deadline` (of `time.monotonic()`), to an endpoint that answered last time."""
        self._stopped = True
        self._look_for_late()
        if os.getpid() != self._pid or not self._owing or all(list(self._ledger.failing.values())):
            return
        if time.monotonic() < self._not_before or not self._busy.acquire(timeout=max(0.0, deadline - time.monotonic())):
            return
        try:
            for signal in outbox.SIGNALS:
                if signal in self._ledger.owed and not self._ledger.failing.get(signal):
                    self._guarded(signal, deadline)
            for attempt in self._attempts.values():
                attempt.way.close()
        finally:
            self._busy.release()


# --- a file's -------------------------------------------------------------------------------


def replay(
    path: Path,
    ways: Mapping[str, Sender],
    *,
    unasked: bool = False,
    again: bool = False,
    wait_s: float = 0.0,
    progress: Callable[[str, int], None] = lambda _signal, _count: None,
) -> Report:
    """Send what is left in the file of a process that has ended, and note it there.

    Each batch is read, sent and noted in one transaction that excludes other writers, so two
    replays at once share the work and send nothing twice.

    Args:
        path: the file.
        ways: where each signal goes.
        unasked: also what was recorded while no endpoint was set.
        again: also what was refused for good.
        wait_s: how long to keep trying where an endpoint does not answer.
        progress: told after each batch of the signal and how many of its records were sent.

    Raises:
        StoreError: the file cannot be opened or written, or was written by a newer otel-ml.
    """
    import sqlite3

    from otel_ml.store.schema import migrate

    report = Report()
    until = time.monotonic() + wait_s
    try:
        with closing(sqlite3.connect(path, timeout=60.0, isolation_level=None)) as connection:
            migrate(connection)
            for signal in outbox.SIGNALS:
                if signal in ways and not report.trouble:
                    _replay_signal(
                        connection, ways[signal], signal, report, until, progress, unasked=unasked, again=again
                    )
    except sqlite3.Error as error:
        message = f"{path} cannot be written ({error}); what was sent may be sent again"
        raise StoreError(message) from error
    return report


def _replay_signal(
    connection: Any,
    way: Sender,
    signal: str,
    report: Report,
    until: float,
    progress: Callable[[str, int], None],
    *,
    unasked: bool,
    again: bool,
) -> None:
    tried: set[int] = set()

    def mark(state: str, ids: Sequence[int], reason: str | None) -> None:
        outbox.mark(connection, signal, state, ids, reason)
        tried.update(ids)

    attempt = _Attempt(signal, way, mark, paced=False)
    tries = 0
    while True:
        connection.execute("BEGIN IMMEDIATE")
        try:
            ranges = outbox.gaps(connection, signal, unasked=unasked, again=again)
            skip = tried if again else ()
            batch = outbox.read(connection, signal, ranges, most_bytes=MOST_BYTES, most_rows=MOST_ROWS, skip=skip)
            answer = attempt.send(batch) if batch.records else None
        finally:
            connection.execute("COMMIT")  # also on Ctrl-C: what was acknowledged is noted
        report.sent[signal], report.refused[signal] = attempt.sent, attempt.refused
        if attempt.reason:
            report.reasons[signal] = attempt.reason
        if answer is None:
            return
        progress(signal, attempt.sent)
        if answer.kind == "taken":
            tries = 0
            continue
        delay = pause_s(tries) if answer.after_s is None else answer.after_s * random.SystemRandom().uniform(1.0, 1.1)
        if answer.kind == "unwelcome" or time.monotonic() + delay > until:
            report.trouble = f"{redact.text(way.where)}: {answer.reason}"
            return
        tries += 1
        time.sleep(delay)


def ways(
    environ: Mapping[str, str], endpoint: str | None = None, signals: Sequence[str] = outbox.SIGNALS
) -> dict[str, Sender]:
    """Where each signal goes by `environ`; see `sender()`."""
    return {signal: sender(signal, environ, endpoint) for signal in signals}
