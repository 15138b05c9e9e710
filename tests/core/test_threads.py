from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

from otel_ml.core import threads


def places() -> list[Any]:
    """What the program asks for threads."""
    return [threading.enumerate, threading.active_count, sys._current_frames]


def test_put_back() -> None:
    """However often they are replaced, what is put back is the original, once no thread of ours is left."""
    before = places()
    threads.hide()
    ours = places()
    threads.hide()
    assert places() == ours
    assert not set(map(id, ours)) & set(map(id, before))
    go_on = threading.Event()
    last = threads.Unseen(target=go_on.wait, daemon=True)
    last.start()
    threads.show()
    assert last not in threading.enumerate()
    assert places() == ours
    go_on.set()
    last.join()
    threads.show()
    assert [a is b for a, b in zip(places(), before, strict=True)] == [True] * 3
    threads.show()


def blocked(thread: threading.Thread) -> set[int]:
    """The signals that a thread takes not."""
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text(encoding="ascii")
    mask = int(next(line for line in status.splitlines() if line.startswith("SigBlk")).split()[1], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel in /proc")
def test_signals_are_the_programs() -> None:
    """No thread of ours takes a signal meant for the program, and who starts them takes what it took."""
    before = blocked(threading.current_thread())
    go_on = threading.Event()
    ours = threads.Unseen(target=go_on.wait, daemon=True)
    ours.start()
    with threads.started_for_us():
        processor = BatchSpanProcessor(ConsoleSpanExporter())
    try:
        for thread in (ours, processor._batch_processor._worker_thread):
            taken = set(map(int, signal.valid_signals())) - blocked(thread)
            own = {"SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP", "SIGSYS", "SIGKILL", "SIGSTOP"}
            assert {signal.Signals(number).name for number in taken} == own
        assert blocked(threading.current_thread()) == before
    finally:
        go_on.set()
        processor.shutdown()


def test_whose_threads() -> None:
    """What OpenTelemetry starts for us is not seen; what it starts for the program, and the program itself, is."""
    go_on = threading.Event()
    threads.hide()
    try:
        count = threading.active_count()
        with threads.started_for_us():
            ours = BatchSpanProcessor(ConsoleSpanExporter())
            meanwhile = threading.Thread(target=go_on.wait)
            meanwhile.start()
        theirs = BatchSpanProcessor(ConsoleSpanExporter())
        seen = threading.enumerate()
        workers = [processor._batch_processor._worker_thread for processor in (ours, theirs)]
        assert [thread in seen for thread in (*workers, meanwhile)] == [False, True, True]
        assert threading.active_count() == len(seen) == count + 2
        frames = sys._current_frames()
        assert [thread.ident in frames for thread in (*workers, meanwhile)] == [False, True, True]
        assert frames[threading.get_ident()] is sys._getframe()
        ours._batch_processor._at_fork_reinit()  # as in a forked child
        assert ours._batch_processor._worker_thread not in threading.enumerate()
        assert ours._batch_processor._worker_thread is not workers[0]
    finally:
        go_on.set()
        for processor in (ours, theirs):
            processor.shutdown()
        workers[0].join()
        threads.show()
