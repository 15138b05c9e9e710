from __future__ import annotations

import sys
import threading
from typing import Any

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
