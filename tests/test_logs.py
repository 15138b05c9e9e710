"""What `otel_ml.logs` promises a program that prints through it."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import inspect
import io
import json
import logging
import os
import pickle
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
import pytest
import structlog
import torch
from opentelemetry import trace

from otel_ml import logs, names
from otel_ml.core import runtime
from otel_ml.core.context import request_id
from otel_ml.errors import SettingsError
from otel_ml.logs import LogContext, add_context, get_logger, setup_logging
from otel_ml.testing import RUN_ID, FakeClock, capture
from tests.loops import train

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterator

HERE = {"module": "test_logs", "function": "work"}
SECRET = "hunter2tr0ub4dor"  # noqa: S105 - the point of it


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Leave logging, warnings and structlog as they were."""
    level = logging.getLogger().level
    yield
    logs._setup.take_back()
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    logging.getLogger().setLevel(level)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where JSON lines go."""
    return tmp_path / "train.jsonl"


def whole(file: Path) -> list[dict[str, Any]]:
    """Each line as what it holds."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)  # NaN and Infinity are not JSON

    return [json.loads(line, parse_constant=refuse) for line in file.read_text(encoding="utf-8").splitlines()]


def said(file: Path) -> list[dict[str, Any]]:
    """Each line without where and when it was said."""
    return [
        {k: v for k, v in line.items() if k not in ("timestamp", "module", "function", "line")} for line in whole(file)
    ]


def info(logger: str, message: str, **more: Any) -> dict[str, Any]:
    """A line as `said()` gives it."""
    return {"level": "info", "logger": logger, "message": message, **more}


# --- lines ---------------------------------------------------------------------------------


def test_a_line_tells_when_who_what_and_where(file: Path) -> None:
    """Without a run, a line has time, level, logger, message, place and extras, from whatever kind of logger."""
    setup_logging(file=file)
    standard = logging.getLogger("standard")
    lines = []

    def work() -> None:
        get_logger("ours").info("loaded %d of %s", 3, "five", seconds=0.5)
        lines.append(inspect.currentframe().f_lineno - 1)  # type: ignore[union-attr]
        standard.warning("slow %s", "disk", extra={"disk": "sda"})
        lines.append(inspect.currentframe().f_lineno - 1)  # type: ignore[union-attr]
        structlog.get_logger("theirs").error("gone", shard=7)
        lines.append(inspect.currentframe().f_lineno - 1)  # type: ignore[union-attr]

    work()
    found = whole(file)
    times = [line.pop("timestamp") for line in found]
    assert found == [
        {"level": "info", "logger": "ours", "message": "loaded 3 of five", **HERE, "line": lines[0], "seconds": 0.5},
        {"level": "warning", "logger": "standard", "message": "slow disk", **HERE, "line": lines[1], "disk": "sda"},
        {"level": "error", "logger": "theirs", "message": "gone", **HERE, "line": lines[2], "shard": 7},
    ]
    assert [t for t in times if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", t)] == times
    assert list(found[1]) == ["level", "logger", "message", "module", "function", "line", "disk"]


def test_a_line_in_a_step_tells_run_step_rank_trace_and_request(file: Path) -> None:
    """Inside a step a line has the ids under which the step's span is found, and the request's."""
    setup_logging(file=file)
    log = logging.getLogger("app")
    clock = FakeClock()
    with capture(clock=clock) as seen:
        assert runtime.identity is not None
        log.info("before")
        runtime.identity = dataclasses.replace(runtime.identity, rank=3)
        token = request_id.set("r-17")
        train(clock, [3.0, 2.0], lambda: log.info("inside"))
        request_id.reset(token)
        with trace.use_span(trace.NonRecordingSpan(trace.SpanContext(0xA, 0xB, is_remote=False))):
            log.info("in a span")
    spans = seen.named(names.SPAN_STEP)
    inside = [
        info(
            "app", "inside", run=RUN_ID, step=n, rank=3,
            trace=spans[n]["trace_id"], span=spans[n]["span_id"], request_id="r-17",
        )
        for n in range(2)
    ]  # fmt: skip
    own = info("app", "in a span", run=RUN_ID, step=1, rank=3, trace=f"{0xA:032x}", span=f"{0xB:016x}")
    assert said(file) == [info("app", "before", run=RUN_ID), *inside, own]
    assert list(said(file)[1]) == [
        "level", "logger", "message", "run", "step", "rank", "trace", "span", "request_id",
    ]  # fmt: skip


def test_an_extra_never_hides_a_field(file: Path) -> None:
    """An extra named as a field of the line, or as one of logging's own, is kept as `extra_…`."""
    setup_logging(file=file)
    with LogContext(run="mine", name="context"):
        get_logger("app").info("one", step=torch.tensor(5), level="mine", module="m", args=1, logger="app")
        logging.getLogger("app").info("two", extra={"trace": "t", "event": "e", "exception": "x", "stack": "s"})
    assert said(file) == [
        info(
            "app", "one", extra_name="context", extra_run="mine", extra_step="int64[] cpu", extra_level="mine",
            extra_module="m", extra_args=1,
        ),
        info(
            "app", "two", extra_name="context", extra_run="mine", extra_trace="t", event="e", extra_exception="x",
            extra_stack="s",
        ),
    ]  # fmt: skip


class Unprintable:
    """Whatever asks it for words gets an exception."""

    def __repr__(self) -> str:
        raise RuntimeError

    __str__ = __repr__

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


class Device(torch.Tensor):
    """Whatever asks it for values waits for ever; here, fails."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") != "__get__":
            raise AssertionError(func)
        return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]


CYCLE: list[Any] = [1]
CYCLE.append(CYCLE)

VALUES = [
    (None, None),
    (True, True),
    (2**70, 2**70),
    (2**20_000, "<int>"),
    (0.1, 0.1),
    (float("nan"), "nan"),
    (float("-inf"), "-inf"),
    (np.float32(0.5), 0.5),
    (np.float64("inf"), "inf"),
    (np.int64(3), 3),
    (np.bool_(1), True),
    (np.longdouble(2), 2.0),
    (np.ones((2, 3)), "float64[2, 3] cpu"),
    (torch.ones(64, 10), "float32[64, 10] cpu"),
    (torch.ones(3).to(torch.bfloat16), "bfloat16[3] cpu"),
    (torch.empty(2, device="meta"), "float32[2] meta"),
    (torch.ones(4).as_subclass(Device), "float32[4] cpu"),
    (jnp.ones((2, 2), dtype="bfloat16"), "bfloat16[2, 2] cpu:0"),
    (Unprintable(), "<Unprintable>"),
    (ValueError("x"), "<ValueError>"),
    (b"\xff", "<bytes>"),
    (1j, "<complex>"),
    (Path("a/b"), "a/b"),
    ((1, [float("nan")], {2}), [1, ["nan"], [2]]),
    ({1: {"x": Unprintable()}, None: 2}, {"1": {"x": "<Unprintable>"}, "None": 2}),
    (CYCLE, [1, "<list>"]),
    ("caf\u00e9 \u4f60\U0001f600 \x1b[31m \n", "caf\u00e9 \u4f60\U0001f600 \x1b[31m \n"),
    ("\ud800", "\ud800"),
]


@pytest.mark.parametrize(
    ("value", "expected"), VALUES, ids=[f"{n}-{type(v).__name__}" for n, (v, _) in enumerate(VALUES)]
)
def test_any_extra_makes_a_valid_line(
    value: object, expected: object, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What JSON lacks becomes text: an array's type, shape and device, an object's class; nothing raises or waits."""
    setup_logging(format="json", file=file)
    get_logger("app").info("ours", value=value)
    logging.getLogger("app").info("standard", extra={"value": value})
    expected_lines = [info("app", "ours", value=expected), info("app", "standard", value=expected)]
    assert said(file) == expected_lines
    stderr = capsys.readouterr().err
    assert stderr.isascii()  # a terminal may know nothing else
    assert [json.loads(line)["value"] for line in stderr.splitlines()] == [expected] * 2


def test_secrets_are_masked(file: Path) -> None:
    """A secret is hidden in extras by its name, also inside of others, in texts by its shape, and in exceptions."""
    setup_logging(file=file)
    try:
        message = f"login failed: password={SECRET}"
        raise ValueError(message)  # noqa: TRY301 - so that there is one
    except ValueError:
        get_logger("app").exception("failed", api_key=SECRET, config={"db": {"password": SECRET}, "tokens": 3})
        logging.getLogger("app").exception("failed", extra={"url": f"postgres://me:{SECRET}@db/x"})
    ours, standard = whole(file)
    assert SECRET not in file.read_text(encoding="utf-8")
    assert (ours["api_key"], ours["config"]) == ("****", {"db": {"password": "****"}, "tokens": 3})
    assert standard["url"] == "postgres://****@db/x"
    assert ours["exception"] == standard["exception"]
    assert ours["exception"].splitlines()[0::5] == ["Traceback (most recent call last):"]
    assert ours["exception"].splitlines()[-1] == "ValueError: login failed: password=****"


def test_warnings_are_lines(file: Path) -> None:
    """A warning is a line of the logger `py.warnings`, whose text says where it is from."""
    setup_logging(file=file)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("few samples", stacklevel=1)
    ((line),) = whole(file)
    line.pop("timestamp")
    text = line.pop("message")
    assert line == {"level": "warning", "logger": "py.warnings"}
    assert re.fullmatch(r'\S+test_logs\.py:\d+: UserWarning: few samples\n  warnings\.warn\("few samples".*\)', text)


def test_stacks_are_lines(file: Path) -> None:
    """`stack_info=True` puts the caller's stack on the line."""
    setup_logging(file=file)
    get_logger("app").info("here", stack_info=True)
    (line,) = whole(file)
    assert line["stack"].splitlines()[-1].strip() == 'get_logger("app").info("here", stack_info=True)'


def test_a_helper_can_point_at_its_caller(file: Path) -> None:
    """`stacklevel` counts the program's frames alone, for loggers of any class."""

    class Special(logging.Logger):
        pass

    before = logging.getLoggerClass()
    logging.setLoggerClass(Special)
    try:
        setup_logging(file=file)
        log = get_logger("special")
    finally:
        logging.setLoggerClass(before)

    def helper() -> None:
        log.info("here")
        log.info("caller's", stacklevel=2)
        try:
            raise ValueError  # noqa: TRY301 - so that there is one
        except ValueError:
            log.exception("caller's", stacklevel=2)

    def work() -> None:
        helper()

    work()
    assert isinstance(logging.getLogger("special"), Special)
    assert [line["function"] for line in whole(file)] == ["helper", "work", "work"]


# --- the console ---------------------------------------------------------------------------


def test_the_console_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for people has the time, the level, the run's last word, the step, the message, the logger and extras."""
    setup_logging("DEBUG")
    log = get_logger("app")
    clock = FakeClock()
    with capture(clock=clock):
        train(clock, [3.0, 2.0], lambda: log.info("inside", loss=0.123456789, of="two words", x=torch.ones(2)))
    log.debug("after")
    stderr = capsys.readouterr().err
    assert re.sub(r"\d\d:\d\d:\d\d\.\d{3}", "TIME", stderr).splitlines() == [
        'TIME [info    ] captured step 0 inside (app) loss=0.123457 of="two words" x="float32[2] cpu"',
        'TIME [info    ] captured step 1 inside (app) loss=0.123457 of="two words" x="float32[2] cpu"',
        "TIME [debug   ] after (app)",
    ]


PROGRAM = """
import logging
from otel_ml.logs import setup_logging
setup_logging()
try:
    raise ValueError("why")
except ValueError:
    logging.getLogger("app").exception("failed", extra={"x": 1})
"""


@pytest.mark.parametrize(
    ("terminal", "no_colour", "coloured"), [(True, "", True), (True, "1", False), (False, "", False)],
    ids=["a terminal", "a terminal and NO_COLOR", "a pipe"],
)  # fmt: skip
def test_colours_are_for_terminals(terminal: bool, no_colour: str, coloured: bool) -> None:
    """Colours are on a terminal alone, unless NO_COLOR is set; the words are the same."""
    ours, theirs = os.openpty() if terminal else os.pipe()
    environment = {**os.environ, "NO_COLOR": no_colour, "PYTHONPATH": os.pathsep.join(sys.path)}
    with os.fdopen(theirs, "wb") as stderr:
        done = subprocess.run([sys.executable, "-c", PROGRAM], stderr=stderr, env=environment, check=True)
        printed = os.read(ours, 65_536).decode()
    os.close(ours)
    assert done.returncode == 0
    assert ("\x1b[" in printed) is coloured
    words = re.sub(r"\x1b\[\d*m", "", printed).splitlines()
    assert (words[0][13:], words[-1]) == ("[error   ] failed (app) x=1", "ValueError: why")


def test_stderr_may_be_replaced(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines go to what `sys.stderr` is when they are printed, and nowhere where there is none."""
    setup_logging()
    replaced = io.StringIO()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", replaced)
        get_logger("app").info("there")
        patched.setattr(sys, "stderr", None)
        get_logger("app").info("nowhere")
    assert replaced.getvalue().endswith(" there (app)\n")
    assert capsys.readouterr().err == ""


# --- OpenTelemetry -------------------------------------------------------------------------


def test_records_reach_opentelemetry_once(file: Path) -> None:
    """Each record is exported once: the message as its body, what was given beside it as attributes."""
    setup_logging(file=file)
    clock = FakeClock()

    device = torch.ones(4).as_subclass(Device)
    nested = {"password": SECRET, "of": [1]}
    first = {"epoch": 1, "loss": float("inf"), "x": "float32[4] cpu", "api_key": "****"}
    last = {"epoch": 1, "shard": 7, "extra_name": "n", "nested": {"password": "****", "of": (1,)}}

    def inside() -> None:
        get_logger("ours").info("loaded %d", 3, loss=float("inf"), x=device, api_key=SECRET)
        logging.getLogger("standard").warning("slow", extra={"disk": "sda", "epoch": 9})
        structlog.get_logger("theirs").error("gone", shard=7, name="n", nested=nested)

    with capture(clock=clock) as seen, LogContext(epoch=1):
        train(clock, [3.0], inside)
    (step,) = seen.named(names.SPAN_STEP)
    found = [log for log in seen.logs if not log["event_name"]]
    assert [(log["body"], log["severity_number"], log["attributes"]) for log in found] == [
        ("loaded 3", 9, {**first, "ml.step.number": 0}),
        ("slow", 13, {"epoch": 9, "disk": "sda", "ml.step.number": 0}),
        ("gone", 17, {**last, "ml.step.number": 0}),
    ]
    assert {(log["trace_id"], log["span_id"]) for log in found} == {(step["trace_id"], step["span_id"])}
    assert [line["message"] for line in whole(file)] == ["loaded 3", "slow", "gone"]


def test_a_wrapped_event_is_a_message_with_attributes() -> None:
    """An event that a program's own structlog chain wraps for a formatter is no dict's text in OpenTelemetry either."""
    structlog.configure(
        processors=[structlog.stdlib.add_log_level, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=logging.getLogger,
    )
    with capture() as seen:
        try:
            raise ValueError("why")  # noqa: EM101, TRY301 - so that there is one
        except ValueError as error:
            structlog.get_logger("theirs").warning("odd", shard=7, exc_info=error)
            structlog.get_logger("theirs").warning("odder", exc_info=True)
        seen.turn()
        found = [(log["body"], log["attributes"]) for log in seen.logs]
    stacks = [attributes.pop("exception.stacktrace").splitlines()[-1] for _, attributes in found]
    assert stacks == ["ValueError: why"] * 2
    why = {"exception.type": "ValueError", "exception.message": "why"}
    assert found == [("odd", {"shard": 7, **why}), ("odder", why)]


# --- what others have set up ---------------------------------------------------------------


def test_a_configured_structlog_stays(file: Path) -> None:
    """A structlog that the program configured keeps its chain; its events through logging are whole lines of ours."""
    printed = io.StringIO()
    handler = logging.StreamHandler(printed)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(sort_keys=True),
            ]
        )
    )
    logging.getLogger("theirs").addHandler(handler)
    chain: list[Any] = [
        structlog.contextvars.merge_contextvars, structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", key="timestamp"), add_context,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ]  # fmt: skip
    structlog.configure(
        processors=chain,
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=logging.getLogger,
    )
    try:
        setup_logging(file=file)
        clock = FakeClock()
        with capture(clock=clock) as seen, LogContext(epoch=1):
            train(clock, [3.0], lambda: structlog.get_logger("theirs").warning("odd", shard=7, step="mine"))
        assert structlog.get_config()["processors"] == chain
    finally:
        logging.getLogger("theirs").removeHandler(handler)
    (step,) = seen.named(names.SPAN_STEP)
    ids = {"run": RUN_ID, "trace": step["trace_id"], "span": step["span_id"]}
    own = json.loads(printed.getvalue())
    assert own.pop("timestamp")
    assert own == {
        **ids,
        "event": "odd",
        "level": "warning",
        "logger": "theirs",
        "epoch": 1,
        "shard": 7,
        "step": "mine",
    }
    fields = {"level": "warning", "logger": "theirs", "message": "odd", "epoch": 1, "shard": 7}
    assert said(file) == [{**ids, **fields, "step": 0, "extra_step": "mine"}]


def test_an_unconfigured_structlog_keeps_loggers_classes() -> None:
    """Where structlog is configured by us, the class of loggers to come is still the program's."""
    before = logging.getLoggerClass()
    setup_logging()
    structlog.get_logger().info("made")
    assert logging.getLoggerClass() is before


def test_what_is_there_stays(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Handlers and levels of others are not touched; the root's level is lowered as far as asked, and given back."""
    root, quiet = logging.getLogger(), logging.getLogger("quiet")
    theirs = logging.StreamHandler(io.StringIO())
    theirs.setLevel(logging.ERROR)
    root.addHandler(theirs)
    root.setLevel(logging.WARNING)
    quiet.setLevel(logging.ERROR)
    try:
        before = list(root.handlers)
        setup_logging("DEBUG", file=file)
        assert root.level == logging.DEBUG
        setup_logging("ERROR")
        assert (root.level, root.handlers[:-1], theirs.level) == (logging.WARNING, before, logging.ERROR)
        setup_logging("info", file=file)
        assert (root.level, root.handlers[:-2], quiet.level) == (logging.INFO, before, logging.ERROR)
        quiet.warning("not heard")
        logging.getLogger("loud").info("heard once")
    finally:
        root.removeHandler(theirs)
        quiet.setLevel(logging.NOTSET)
    assert said(file) == [info("loud", "heard once")]
    assert capsys.readouterr().err.count("heard") == 1


def test_a_logger_works_before_the_setup(caplog: pytest.LogCaptureFixture) -> None:
    """Without `setup_logging()` a logger is the standard one below it: its level, its handlers, extras as `extra`."""
    log = get_logger()
    log.info("too quiet")
    with LogContext(epoch=2):
        log.bind(shard=1).warning("heard %s", "twice", x=2)
    (record,) = caplog.records
    assert (record.name, record.getMessage(), record.funcName) == (
        __name__, "heard twice", "test_a_logger_works_before_the_setup",
    )  # fmt: skip
    assert {k: vars(record)[k] for k in ("epoch", "shard", "x")} == {"epoch": 2, "shard": 1, "x": 2}


def test_a_logger_can_be_pickled(file: Path) -> None:
    """A logger that an object holds goes with it to another process, with what it is bound to."""
    setup_logging(file=file)
    pickle.loads(pickle.dumps(get_logger("app").bind(shard=1))).info("there")  # noqa: S301 - our own
    assert said(file) == [info("app", "there", shard=1)]


# --- bad input -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"level": "LOUD"}, "level='LOUD' is unknown: say DEBUG, INFO, WARNING, ERROR, CRITICAL or a number"),
        ({"level": None}, "level=None is unknown"),
        ({"format": "xml"}, "format='xml' is unknown: say format='console' or format='json'"),
        ({"rotate": "1 day"}, "there is none: say file='train.jsonl' too"),
        *(
            ({"file": "x.jsonl", "rotate": bad}, f"rotate={bad!r} is neither a size nor a time: say a size ('10 MB'")
            for bad in ("", "often", "10", "0 MB", "-1 day", "10 MBB", "0.1 seconds", 0, -5, True, 1.5, "1 day 2")
        ),
        ({"file": "missing/x.jsonl"}, "'missing/x.jsonl' cannot be written: No such file or directory. Name a file"),
        ({"file": "."}, "'.' cannot be written: Is a directory"),
    ],
)
def test_bad_settings_say_what_to_type(
    arguments: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be meant is refused with what to say instead, and changes nothing."""
    monkeypatch.chdir(tmp_path)
    setup_logging(file="good.jsonl")
    before = list(logging.getLogger().handlers)
    with pytest.raises(SettingsError, match=re.escape(told)):
        setup_logging(**arguments)
    assert (logging.getLogger().handlers, [p.name for p in tmp_path.iterdir()]) == (before, ["good.jsonl"])
    logging.getLogger("app").info("still here")
    assert said(tmp_path / "good.jsonl") == [info("app", "still here")]


def test_without_structlog_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where structlog is missing, each way in says how to get it."""
    monkeypatch.setitem(sys.modules, "structlog", None)
    for way_in in (setup_logging, get_logger, LogContext):
        with pytest.raises(SettingsError, match=r"pip install 'otel-ml\[logging\]'"):
            way_in()


# --- files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rotate", [None, "10 MB", "1 day"])
def test_a_file_is_appended_to_and_private(rotate: str | None, file: Path) -> None:
    """A file keeps what it holds, and one that is made can be read by its owner alone."""
    for word in ("one", "two"):
        setup_logging(file=file, rotate=rotate)
        logging.getLogger("app").info(word)
    assert [line["message"] for line in whole(file)] == ["one", "two"]
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("rotate", [1_000, "1000 bytes", "1 kB", "0.001MB", "1.0 kb"])
def test_a_full_file_is_set_aside(rotate: int | str, file: Path) -> None:
    """A file grows to its size at most; seven old ones are kept, no line is cut, and all are private."""
    setup_logging(file=file, rotate=rotate)
    for number in range(100):
        logging.getLogger("app").info("line %d", number, extra={"padding": "x" * 200})
    files = [file.with_name(f"train.jsonl.{n}") for n in range(7, 0, -1)] + [file]
    assert sorted(file.parent.iterdir()) == sorted(files)
    assert [line["message"] for f in files for line in whole(f)] == [
        f"line {n}" for n in range(100 - sum(len(whole(f)) for f in files), 100)
    ]
    assert {f.stat().st_mode & 0o777 for f in files} == {0o600}
    assert max(f.stat().st_size for f in files) <= 1_000


@pytest.mark.parametrize(("rotate", "seconds"), [("1 day", 86_400), ("12 Hours", 43_200), ("2weeks", 1_209_600)])
def test_an_old_file_is_set_aside(rotate: str, seconds: int, file: Path) -> None:
    """A file that is older than asked makes place for a new one at its next line; a younger one does not."""
    for age, count in ((seconds - 600, 1), (seconds + 600, 2)):
        setup_logging(file=file, rotate=rotate)
        logging.getLogger("app").info("before")
        written = file.stat().st_mtime
        os.utime(file, (written - age, written - age))
        setup_logging(file=file, rotate=rotate)
        logging.getLogger("app").info("after")
        assert len(list(file.parent.iterdir())) == count
    assert [line["message"] for line in whole(file)] == ["after"]


# --- LogContext ----------------------------------------------------------------------------


def test_contexts_nest_and_restore(file: Path) -> None:
    """Fields are on lines inside, the inner value wins, and the outer is back afterwards, also after an exception."""
    setup_logging(file=file)
    log = logging.getLogger("app")
    again = LogContext(epoch=1)
    mine = ValueError()
    with pytest.raises(ValueError) as caught, LogContext(experiment="e", epoch=0):  # noqa: PT011, PT012 - it is compared
        log.info("one")
        with again, again, LogContext(step_of="x"):
            log.info("two")
        log.info("three")
        raise mine
    log.info("four")
    assert caught.value is mine
    outer = {"experiment": "e", "epoch": 0}
    assert said(file) == [
        info("app", "one", **outer), info("app", "two", experiment="e", epoch=1, step_of="x"),
        info("app", "three", **outer), info("app", "four"),
    ]  # fmt: skip


def test_a_function_can_have_a_context(file: Path) -> None:
    """A decorated function, sync or async, has the fields in each of its calls, and is still itself."""
    setup_logging(file=file)
    log = logging.getLogger("app")

    @LogContext(stage="load")
    def count(number: int) -> int:
        """Counts."""
        log.info("at %d", number)
        return count(number - 1) + 1 if number else 0

    @LogContext(stage="later")
    async def later(number: int) -> int:
        await asyncio.sleep(0)
        log.info("later %d", number)
        return number

    assert (count(1), count.__name__, count.__doc__) == (1, "count", "Counts.")
    assert (asyncio.run(later(2)), inspect.iscoroutinefunction(later)) == (2, True)
    log.info("outside")
    assert said(file) == [
        info("app", "at 1", stage="load"), info("app", "at 0", stage="load"), info("app", "later 2", stage="later"),
        info("app", "outside"),
    ]  # fmt: skip


def test_a_generator_is_refused() -> None:
    """A generator, whose caller's lines would get the fields too, cannot be decorated, and is told so."""

    def numbers() -> Iterator[int]:
        yield 1

    async def later() -> AsyncIterator[int]:
        yield 1

    for generator in (numbers, later):
        with pytest.raises(TypeError, match=r"a generator: say `with LogContext\(…\):` in it"):
            LogContext(epoch=1)(generator)


def test_tasks_have_their_own_context(file: Path) -> None:
    """Under `asyncio.gather` each task keeps its own fields, begins with those it was made in, and leaks none."""
    setup_logging(file=file)
    log = get_logger("app")
    shared = LogContext(kind="shared")

    async def work(number: int) -> None:
        with shared, LogContext(task=number):
            await asyncio.sleep(0)
            log.info("first")
            await asyncio.sleep(0)
            log.info("second")
        log.info("after")

    async def main() -> None:
        with LogContext(epoch=1):
            await asyncio.gather(work(0), work(1))
            log.info("gathered")

    asyncio.run(main())
    lines = sorted(said(file), key=lambda line: (line.get("task", 2), line["message"]))
    assert lines == [
        *(
            info("app", word, epoch=1, kind="shared", task=task)
            for task in (0, 1)
            for word in ("first", "second")
        ),
        info("app", "after", epoch=1), info("app", "after", epoch=1), info("app", "gathered", epoch=1),
    ]  # fmt: skip


def test_a_thread_begins_without_fields(file: Path) -> None:
    """A new thread has none of its maker's fields, unless it runs in a copy of the context; it keeps its own."""
    setup_logging(file=file)
    log = logging.getLogger("app")

    def work(name: str) -> None:
        log.info("%s in", name)
        with LogContext(thread_of=name):
            log.info("%s with its own", name)

    with LogContext(epoch=1):
        for thread in (
            threading.Thread(target=work, args=("new",)),
            threading.Thread(target=contextvars.copy_context().run, args=(work, "copied")),
        ):
            thread.start()
            thread.join()
        asyncio.run(asyncio.to_thread(work, "sent"))
        log.info("outside")
    assert said(file) == [
        info("app", "new in"), info("app", "new with its own", thread_of="new"),
        info("app", "copied in", epoch=1), info("app", "copied with its own", epoch=1, thread_of="copied"),
        info("app", "sent in", epoch=1), info("app", "sent with its own", epoch=1, thread_of="sent"),
        info("app", "outside", epoch=1),
    ]  # fmt: skip


def test_many_threads_share_one_context_object(file: Path) -> None:
    """One `LogContext` entered by several threads at once is on each one's lines, and gone when each has left."""
    setup_logging(file=file)
    log = logging.getLogger("app")
    shared = LogContext(epoch=1)
    together = threading.Barrier(4)

    def work(number: int) -> None:
        with LogContext(worker=number):
            together.wait()
            with shared:
                together.wait()
                log.info("inside")
                together.wait()
            log.info("outside")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said(file), key=lambda line: (line["message"], line["worker"])) == [
        *(info("app", "inside", epoch=1, worker=n) for n in range(4)),
        *(info("app", "outside", worker=n) for n in range(4)),
    ]


def test_a_context_may_be_left_elsewhere(file: Path) -> None:
    """A context that is left in another one than it was entered in, as generators may, raises nothing there."""
    setup_logging(file=file)

    def numbers() -> Generator[int]:
        with LogContext(epoch=1):
            yield 1

    generator = numbers()
    contextvars.Context().run(next, generator)
    with LogContext(epoch=2):
        contextvars.Context().run(generator.close)
        logging.getLogger("app").info("here")
    assert said(file) == [info("app", "here", epoch=2)]
