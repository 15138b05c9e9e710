"""Logging set up in one line: each line tells its run, step, rank, trace, span and request.

    setup_logging("INFO", format="json", file="train.jsonl", rotate="100 MB")
    log = get_logger(__name__)
    with LogContext(experiment="baseline", epoch=3):
        log.info("epoch done", loss=0.31)

Lines of the standard library's loggers and of `warnings` look the same. structlog does the
work, and is imported when it is first needed: `pip install 'otel-ml[logging]'`. Works
without a run too; what is not known is then absent. Nothing here sends anything: log
records reach OpenTelemetry by `otel_ml.pipeline.logs`, whatever handlers there are.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import re
import sys
import threading
from contextvars import ContextVar
from datetime import datetime, timezone
from logging.handlers import RotatingFileHandler, TimedRotatingFileHandler
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from opentelemetry import trace

from otel_ml.core import runtime
from otel_ml.core.context import recorders, request_id
from otel_ml.errors import SettingsError
from otel_ml.fields import beside, extras, plain
from otel_ml.redact import text

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping
    from contextlib import AbstractContextManager
    from types import FrameType, ModuleType

    from structlog.stdlib import BoundLogger
    from structlog.typing import Processor

    Event = MutableMapping[str, Any]
    Function = TypeVar("Function", bound=Callable[..., Any])
    _Stream = logging.StreamHandler[Any]
else:
    _Stream = logging.StreamHandler  # takes no parameter before Python 3.11

__all__ = ["LogContext", "add_context", "get_logger", "setup_logging"]

_KEYS = frozenset({
    "timestamp", "level", "logger", "message", "module", "function", "line", "run", "step", "rank", "trace", "span",
    "request_id", "exception", "stack",
})  # fmt: skip
_KEPT = 7  # old files beside the one that is written
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+?)s?\s*")
_BYTES = {
    "b": 1,
    "byte": 1,
    **{f"{p}{'i' * (b == 1024)}b": b**n for n, p in enumerate("kmgt", 1) for b in (1000, 1024)},
}
_SECONDS = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400, "week": 604_800}
_LEVELS = "DEBUG, INFO, WARNING, ERROR, CRITICAL or a number"
_ROTATIONS = "a size ('10 MB', or a number of bytes) or a time ('1 day', '12 hours')"


def setup_logging(
    level: int | str = "INFO",
    *,
    format: Literal["console", "json"] = "console",  # noqa: A002 - what logging.basicConfig calls it
    file: str | os.PathLike[str] | None = None,
    rotate: int | str | None = None,
) -> None:
    """Print the program's log lines and warnings on stderr, and write them to a file where one is named.

    Adds a handler of ours to the root logger; called again, it replaces that one. What
    others have set up stays: their handlers, their loggers' levels, and structlog's
    configuration where there is one (else structlog goes through `logging` from now on). The
    root logger's level alone is lowered where it would keep back what is asked for here;
    handlers there that have no level of their own then see those records too.

    Args:
        level: The least severe level that our handlers let pass.
        format: What stderr shows: short lines, in colours on a terminal unless `NO_COLOR`
            is set, or one JSON object a line.
        file: Gets one JSON object a line, appended; only its owner may read it.
        rotate: When a new file is begun: a size (`"10 MB"`, a number of bytes) or a time
            (`"1 day"`). Seven old ones are kept. Processes that rotate must not share a file.

    Raises:
        SettingsError: A value is wrong, the file cannot be written, or structlog is missing.
    """
    structlog = _structlog()
    least = _level(level)
    if format not in ("console", "json"):
        message = f"format={format!r} is unknown: say format='console' or format='json'"
        raise SettingsError(message)
    if rotate is not None and file is None:
        message = "rotate= says when a new file is begun, and there is none: say file='train.jsonl' too"
        raise SettingsError(message)
    handlers: list[logging.Handler] = [_Stderr()]
    handlers[0].setFormatter(_formatter(_json_line if format == "json" else _console(colours=_has_colours())))
    if file is not None:
        handlers.append(_file(os.fspath(file), rotate))
        handlers[1].setFormatter(_formatter(functools.partial(_json_line, ascii_only=False)))
    _setup.use(handlers, least)
    logging.captureWarnings(capture=True)
    if not structlog.is_configured():
        structlog.configure(
            processors=_chain(),
            context_class=dict,
            wrapper_class=structlog.stdlib.BoundLogger,
            logger_factory=_stdlib_logger,
        )


def get_logger(name: str | None = None) -> BoundLogger:
    """A structlog logger on top of the standard library's of this name; unnamed, the calling module's.

    What it is given beside a message (`log.info("saved", size_by=n)`) are fields of the line
    and attributes of the OpenTelemetry log record, and `extra` to every other handler. It
    works before `setup_logging()` too, as the logger below it does, and whatever structlog
    is configured to do for `structlog.get_logger()`.
    """
    structlog = _structlog()
    logger = logging.getLogger(name if name is not None else sys._getframe(1).f_globals.get("__name__"))  # noqa: SLF001 - as logging itself
    wrapped = structlog.wrap_logger(
        logger, processors=_chain(), wrapper_class=structlog.stdlib.BoundLogger, context_class=dict
    )
    return cast("BoundLogger", wrapped.bind())


class LogContext:
    """Fields on every line inside: `with LogContext(experiment="baseline", epoch=3): …`, or as a decorator.

    Also on lines of the standard library's loggers, and as attributes of OpenTelemetry log
    records. They nest, the inner value of a name wins, and the outer ones are back
    afterwards. Held by structlog's context variables: an asyncio task begins with the fields
    it was made in and keeps its own; a new thread begins with none, unless it runs in a copy
    of the context (`Thread(target=contextvars.copy_context().run, args=(work,))`,
    `asyncio.to_thread`), or Python is told to inherit it.
    """

    def __init__(self, **fields: Any) -> None:
        _structlog()
        self._fields = fields

    def __enter__(self) -> None:
        bound = _structlog().contextvars.bound_contextvars(**self._fields)
        bound.__enter__()
        _entered.set((*_entered.get(), (self, bound)))

    def __exit__(self, *_: object) -> None:
        entered = _entered.get()
        if entered and entered[-1][0] is self:
            _entered.set(entered[:-1])
            entered[-1][1].__exit__(None, None, None)
        else:  # left in another context than it was entered in: a generator that another task has finished
            _structlog().contextvars.unbind_contextvars(*self._fields)

    def __call__(self, function: Function) -> Function:
        """The function with these fields on every line inside of it, each call on its own."""
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            message = f"LogContext cannot decorate {function.__name__}(), a generator: say `with LogContext(…):` in it"
            raise TypeError(message)
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def later(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await function(*args, **kwargs)

            return cast("Function", later)

        @functools.wraps(function)
        def now(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return cast("Function", now)


_entered: ContextVar[tuple[tuple[LogContext, AbstractContextManager[None]], ...]] = ContextVar(
    "otel_ml_log_contexts", default=()
)


def add_context(_logger: Any, _method: str, event: Event) -> Event:
    """For a structlog chain of your own: adds run, step, rank, trace, span and request_id, as far as they are known.

    A key that the event has already keeps its value.
    """
    for key, value in _standing().items():
        event.setdefault(key, value)
    return event


def _standing() -> dict[str, Any]:
    """Where the calling thread stands; what is not known is absent."""
    identity = runtime.identity
    recorder = recorders.live()
    span = trace.get_current_span().get_span_context()
    return _known(
        {
            "run": identity.run_id if identity is not None else None,
            "step": recorder.number if recorder is not None and recorder.state else None,
            "rank": identity.rank if identity is not None else None,
            "trace": trace.format_trace_id(span.trace_id) if span.is_valid else None,
            "span": trace.format_span_id(span.span_id) if span.is_valid else None,
            "request_id": request_id.get(),
        }
    )


# --- from an event to a record -------------------------------------------------------------


def _structlog() -> ModuleType:
    try:
        import structlog
    except ImportError as error:
        message = f"logging with otel-ml needs structlog ({error}): pip install 'otel-ml[logging]'"
        raise SettingsError(message) from error
    return structlog


@functools.cache
def _chain() -> list[Processor]:
    """What makes of a structlog event the message and the `extra` of a plain log record, which any handler can read."""
    structlog = _structlog()
    return [
        structlog.stdlib.filter_by_level,
        structlog.contextvars.merge_contextvars,
        _point_at_caller,
        _fit_record,
        structlog.stdlib.render_to_log_args_and_kwargs,
    ]


def _fit_record(_logger: Any, _method: str, event: Event) -> Event:
    """An event that logging takes: with a message, and no field named as one of logging's own."""
    ways = ("event", "positional_args", "exc_info", "stack_info", "stacklevel")
    arguments = {"event": "", **{way: event.pop(way) for way in ways if way in event}}
    return {**beside(dict(event)), **arguments}


def _point_at_caller(_logger: Any, method: str, event: Event) -> Event:
    """Has the record tell the line that called structlog, whatever class the program's loggers are of."""
    _, depth = _outside(sys._getframe(1))  # noqa: SLF001 - as logging itself
    # Before 3.11 logging counts a frame of its own where `exception()` calls `error()`.
    depth += sys.version_info < (3, 11) and method == "exception"
    event["stacklevel"] = depth + event.get("stacklevel", 1) - 1
    return event


def _stdlib_logger(*names: str) -> logging.Logger:
    """A logger factory for structlog, whose own would replace the class of all loggers to come."""
    if names:
        return logging.getLogger(names[0])
    return logging.getLogger(_outside(sys._getframe(1))[0].f_globals.get("__name__"))  # noqa: SLF001 - as logging itself


def _outside(frame: FrameType) -> tuple[FrameType, int]:
    """The first frame that is not structlog's, and how many are."""
    depth = 0
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == "structlog":
        frame = frame.f_back
        depth += 1
    return frame, depth


# --- from a record to a line ---------------------------------------------------------------


def _formatter(render: Processor) -> logging.Formatter:
    structlog = _structlog()
    processors = [structlog.processors.format_exc_info, _line, render]
    return cast("logging.Formatter", structlog.stdlib.ProcessorFormatter(processors=processors))


def _line(_logger: Any, _method: str, event: Event) -> Event:
    """All that is known of a record, in the order in which it is read."""
    record: logging.LogRecord = event["_record"]
    warning = record.name == "py.warnings"  # its text says where it is from; the record, where in logging
    own = {
        "timestamp": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="microseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": str(event["event"]).rstrip("\n"),
        "module": None if warning else record.module,
        "function": None if warning else record.funcName,
        "line": None if warning else record.lineno,
        **_standing(),
    }
    last = {
        "exception": _redacted(event.get("exception")),
        "stack": _redacted(event.get("stack", event.get("stack_info"))),
    }
    context = dict(sorted(_structlog().contextvars.get_contextvars().items()))  # they have no order of their own
    given = {**context, **extras(record), **_wrapped(event)}
    # What `add_context` and structlog's own processors have put there says the same once more.
    new = {key: value for key, value in given.items() if not (type(value) in (str, int) and own.get(key) == value)}
    more = {key: plain(key, value, json=True) for key, value in beside(new, _KEYS).items()}
    return {**_known(own), **more, **_known(last)}


def _known(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def _wrapped(event: Event) -> dict[str, Any]:
    """The fields of an event that a structlog chain of the program's own wrapped for a formatter."""
    if not event["_from_structlog"]:
        return {}
    said = ("event", "timestamp", "exception", "stack", "_record", "_from_structlog")
    return {key: value for key, value in event.items() if key not in said}


def _redacted(content: Any) -> Any:
    return text(content) if isinstance(content, str) else plain("", content, json=True)


def _json_line(_logger: Any, _method: str, event: Event, *, ascii_only: bool = True) -> str:
    return json.dumps(event, ensure_ascii=ascii_only, allow_nan=False)


def _has_colours() -> bool:
    return sys.stderr is not None and sys.stderr.isatty() and not os.environ.get("NO_COLOR")


def _console(*, colours: bool) -> Processor:
    """`14:25:28.123 [info    ] qb5u6g step 12 epoch done (train) loss=0.31`."""
    dev = _structlog().dev
    dim, bold, cyan, off = ("\x1b[2m", "\x1b[1m", "\x1b[36m", "\x1b[0m") if colours else ("", "", "", "")
    styles = dev.ConsoleRenderer.get_default_level_styles(colours)
    levels = {level: styles[level] for level in ("debug", "info", "warning", "error", "critical")}

    def words(style: str, prefix: str = "", postfix: str = "") -> Any:
        return dev.KeyValueColumnFormatter(None, style, off, str, prefix=prefix, postfix=postfix)

    renderer = dev.ConsoleRenderer(
        columns=[
            dev.Column("time", words(dim)),
            dev.Column("level", dev.LogLevelColumnFormatter(levels, off)),
            dev.Column("where", words(dim)),
            dev.Column("message", words(bold)),
            dev.Column("logger", words(dim, "(", ")")),
            dev.Column("", dev.KeyValueColumnFormatter(cyan, "", off, _word)),
        ],
        sort_keys=False,
        exception_formatter=dev.plain_traceback,
    )

    def render(logger: Any, method: str, event: Event) -> str:
        return str(renderer(logger, method, _short(event)))

    return render


def _short(event: Event) -> dict[str, Any]:
    """What a person at a terminal reads of a line."""
    left_out = ("timestamp", "module", "function", "line", "run", "step", "rank", "trace", "span")
    where = [
        *([event["run"].rpartition("-")[2]] if "run" in event else []),
        *(f"{key} {event[key]}" for key in ("rank", "step") if key in event),
    ]
    return {
        "time": datetime.fromisoformat(event["timestamp"]).astimezone().strftime("%H:%M:%S.%f")[:-3],
        **({"where": " ".join(where)} if where else {}),
        **{key: value for key, value in event.items() if key not in left_out},
    }


def _word(value: object) -> str:
    """A value as one word, or in quotes; a number with six digits, the file has them all."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str) and not re.search(r"[\s=\"']", value):
        return value
    return json.dumps(value, ensure_ascii=False)


# --- where lines go ------------------------------------------------------------------------


class _Stderr(_Stream):
    """Writes to what `sys.stderr` is at the time: progress bars and notebooks replace it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr


class _Private(logging.FileHandler):
    """Creates its file for its owner alone."""

    def _open(self) -> Any:
        def opener(path: str, flags: int) -> int:
            return os.open(path, flags, 0o600)

        # What UTF-8 cannot hold (a lone surrogate) becomes the escape that JSON has for it.
        return open(self.baseFilename, self.mode, encoding="utf-8", errors="backslashreplace", opener=opener)


class _BySize(_Private, RotatingFileHandler):
    pass


class _ByTime(_Private, TimedRotatingFileHandler):
    pass


def _file(path: str, rotate: int | str | None) -> logging.Handler:
    try:
        if rotate is None:
            return _Private(path)
        unit, amount = _rotation(rotate)
        if unit == "bytes":
            return _BySize(path, maxBytes=amount, backupCount=_KEPT)
        return _ByTime(path, when="S", interval=amount, backupCount=_KEPT, utc=True)
    except OSError as error:
        message = f"file={path!r} cannot be written: {error.strerror}. Name a file in a folder that exists and is yours"
        raise SettingsError(message) from error


def _rotation(rotate: int | str) -> tuple[Literal["bytes", "seconds"], int]:
    if isinstance(rotate, int) and not isinstance(rotate, bool) and rotate > 0:
        return "bytes", rotate
    found = _AMOUNT.fullmatch(rotate) if isinstance(rotate, str) else None
    if found is not None:
        number, unit = float(found[1]), found[2].lower()
        if amount := int(number * _BYTES.get(unit, 0)):
            return "bytes", amount
        if amount := int(number * _SECONDS.get(unit, 0)):
            return "seconds", amount
    message = f"rotate={rotate!r} is neither a size nor a time: say {_ROTATIONS}"
    raise SettingsError(message)


def _level(level: int | str) -> int:
    number = logging.getLevelName(level.upper()) if isinstance(level, str) else level
    if isinstance(number, int) and not isinstance(number, bool) and number >= 0:
        return number
    message = f"level={level!r} is unknown: say {_LEVELS}"
    raise SettingsError(message)


class _Setup:
    """What `setup_logging()` has put onto the root logger."""

    def __init__(self) -> None:
        self._handlers: list[logging.Handler] = []
        self._lowered: tuple[int, int] | None = None  # the root logger's level as it was, and as we set it
        self._lock = threading.Lock()

    def use(self, handlers: list[logging.Handler], level: int) -> None:
        """Put these in the place of ours."""
        with self._lock:
            self._take_back()
            root = logging.getLogger()
            for handler in handlers:
                handler.setLevel(level)
                root.addHandler(handler)
            self._handlers = handlers
            if root.level > level:
                self._lowered = root.level, level
                root.setLevel(level)

    def take_back(self) -> None:
        """Leave the root logger as it was."""
        with self._lock:
            self._take_back()

    def _take_back(self) -> None:
        root = logging.getLogger()
        for handler in self._handlers:
            root.removeHandler(handler)
            handler.close()
        self._handlers = []
        if self._lowered is not None and root.level == self._lowered[1]:
            root.setLevel(self._lowered[0])
        self._lowered = None


_setup = _Setup()
