"""What users can set: every `OTEL_ML_*` variable with its default, its parser and what it means.

OTel's own variables keep their meaning and come first; ours exist only for what OTel has
no word for. The distro and the commands read the environment once, through
`Settings.from_env()`, and hand the values down: nothing else reads `OTEL_ML_*`, but for
what is needed before settings can be read (`otel_ml.errors`, `otel_ml.core`). An empty
value means unset, as in OTel. Names that begin with `OTEL_ML_INTERNAL_` are our own
processes talking to each other and are no settings.
"""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from otel_ml import names
from otel_ml.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping

__all__ = [
    "INTERNAL_LAUNCHER", "INTERNAL_PORTS", "SETTINGS", "SIGNALS", "Setting", "Settings", "config_file",
    "endpoint_configured", "exporters", "in_launcher", "sdk_disabled", "unset", "wrong_numbers",
]  # fmt: skip

T = TypeVar("T")

PREFIX = "OTEL_ML_"
INTERNAL = "OTEL_ML_INTERNAL_"
# Set to 1 by `otel-ml run` for its child: the parent prints the summary, the child does not.
INTERNAL_LAUNCHER = "OTEL_ML_INTERNAL_LAUNCHER"
# Set to 1 where the scrape endpoint's port is the first rank's, and each further rank of the machine takes the next.
INTERNAL_PORTS = "OTEL_ML_INTERNAL_PORTS"

SIGNALS = ("traces", "metrics", "logs")
STORE = "store"

_LONGEST_TEXT = 200


@dataclass(frozen=True)
class Setting:
    """One variable: how it is written, what it means and what it is when nobody sets it."""

    env: str
    default: str
    doc: str
    example: str
    parse: Callable[[str], Any]
    find_default: Callable[[Mapping[str, str]], str] | None = None

    def default_text(self, environ: Mapping[str, str]) -> str:
        """The default as a user would type it; empty where unset means that there is none."""
        return self.default if self.find_default is None else self.find_default(environ)


# --- parsers: text to value, or ValueError with what is needed -----------------------------


def _flag(text: str) -> bool:
    if text in ("1", "true"):
        return True
    if text in ("0", "false"):
        return False
    message = "need 1 or 0"
    raise ValueError(message)


def _whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        message = f"need a whole number ≥ {least}"
        try:
            value = int(text)
        except ValueError:
            raise ValueError(message) from None
        if value < least:
            raise ValueError(message)
        return value

    return parse


def _number(*, least: float, most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        message = f"need a number from {least:g} to {most:g}"
        try:
            value = float(text)
        except ValueError:
            raise ValueError(message) from None
        if not least <= value <= most:  # also refuses NaN
            raise ValueError(message)
        return value

    return parse


def _label(text: str) -> str | None:
    if not text.isprintable() or len(text) > _LONGEST_TEXT:
        message = f"need at most {_LONGEST_TEXT} printable characters"
        raise ValueError(message)
    return text or None


def _folder(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:  # ~name of nobody
        message = f"need a folder ({error})"
        raise ValueError(message) from None


def _optional_folder(text: str) -> Path | None:
    return _folder(text) if text else None


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for part in text.split(",") if (name := part.strip()))


def _steps(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    first, dash, last = text.partition("-")
    if not (first.isdecimal() and (last.isdecimal() if dash else True) and 1 <= int(first) <= int(last or first)):
        message = "need a step from 1, or the first and the last of several"
        raise ValueError(message)
    return int(first), int(last or first)


def _signal(text: str) -> str | None:
    if not text:
        return None
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    if name not in signal.Signals.__members__ or name in ("SIGKILL", "SIGSTOP"):
        message = "need the name of a signal that can be handled"
        raise ValueError(message)
    return name


def _debugged(text: str) -> tuple[str, ...]:
    wanted = _names(text)
    if set(wanted) - {"jax"}:
        message = "need jax"
        raise ValueError(message)
    return wanted


def _metrics(kind: str | None = None) -> Callable[[str], tuple[str, ...]]:
    known = [metric.name for metric in names.METRICS.values() if kind in (None, metric.kind)]

    def parse(text: str) -> tuple[str, ...]:
        wanted = _names(text)
        for pattern in wanted:
            if not any(fnmatchcase(name, pattern) for name in known):
                import difflib

                near = difflib.get_close_matches(pattern, known, n=1)
                message = f"no {kind or 'metric'} of ours matches {pattern}"
                raise ValueError(f"{message} (did you mean {near[0]}?)" if near else message)
        return wanted

    return parse


def _data_folder(environ: Mapping[str, str]) -> str:
    """Where this user's data goes when nobody says: XDG's place, else one that always exists."""
    shared = environ.get("XDG_DATA_HOME", "")
    if shared.startswith("/"):  # XDG: a relative path is to be ignored
        return f"{shared.rstrip('/')}/otel-ml"
    home = environ.get("HOME", "")
    if not home:
        try:
            home = str(Path.home())
        except RuntimeError:
            import tempfile

            return f"{tempfile.gettempdir()}/otel-ml-{os.getuid()}"
    return f"{home.rstrip('/')}/.local/share/otel-ml"


def _setting(
    env: str,
    default: str,
    parse: Callable[[str], T],
    doc: str,
    *,
    example: str,
    find_default: Callable[[Mapping[str, str]], str] | None = None,
) -> T:
    setting = Setting(PREFIX + env, default, doc, example, parse, find_default)
    value: T = field(default_factory=lambda: parse(setting.default_text(os.environ)), metadata={"setting": setting})
    return value


@dataclass(frozen=True)
class Settings:
    """The effective settings; `sources` says for each variable whether it came from `env` or is the `default`."""

    enabled: bool = _setting("ENABLED", "1", _flag, "0 switches all of otel-ml off.", example="0")
    native: bool = _setting(
        "NATIVE", "1", _flag, "0 has hooks run as Python where they were compiled: some 8 µs more a step.", example="0"
    )
    summary: bool = _setting("SUMMARY", "1", _flag, "0 prints no summary when a run ends.", example="0")
    verbose: bool = _setting(
        "VERBOSE", "0", _flag, "1 says at start which distro, configurator, exporters and hooks won.", example="1"
    )
    directory: Path = _setting(  # noqa: RUF009 - a field, as all of them
        "DIR",
        "$XDG_DATA_HOME/otel-ml, else ~/.local/share/otel-ml",
        _folder,
        "The folder that holds the runs, one folder each.",
        example="./runs",
        find_default=_data_folder,
    )
    store: bool = _setting("STORE", "1", _flag, "0 keeps nothing on this machine.", example="0")
    store_run_mb: int = _setting(
        "STORE_RUN_MB", "256", _whole(1), "The most that one run may take on disk, in MiB.", example="1024"
    )
    store_total_mb: int = _setting(
        "STORE_TOTAL_MB", "2048", _whole(1), "The most that all runs may take; the oldest go first.", example="10240"
    )
    store_days: int = _setting(
        "STORE_DAYS", "30", _whole(1), "Runs older than this many days are removed.", example="365"
    )
    run_id: str | None = _setting(
        "RUN_ID", "", _label, "The run's id; unset, the job's id where there is one, else a new one.", example="gpt-42"
    )
    run_name: str | None = _setting(
        "RUN_NAME", "", _label, "The run's name for people; unset, the script's name.", example="baseline"
    )
    steps_per_second: float = _setting(
        "STEPS_PER_SECOND",
        "1.0",
        _number(least=0, most=1000),
        "How many steps a second are kept as traces; metrics always cover every step.",
        example="0.1",
    )
    points_per_second: float = _setting(
        "POINTS_PER_SECOND",
        "128",
        _number(least=1, most=100_000),
        "How many points a second the step curve may have before it is thinned.",
        example="500",
    )
    points_burst: int = _setting(
        "POINTS_BURST", "2000", _whole(0), "How many points may exceed that rate, so that short runs are exact.",
        example="10000",
    )  # fmt: skip
    buffer: int = _setting(
        "BUFFER", "262144", _whole(1024), "How many events a thread may hold before new ones are dropped.",
        example="1048576",
    )  # fmt: skip
    shutdown_timeout_s: float = _setting(
        "SHUTDOWN_TIMEOUT", "5", _number(least=0, most=600), "The most seconds that the exit may take.", example="30"
    )
    profile_steps: tuple[int, int] | None = _setting(
        "PROFILE_STEPS",
        "",
        _steps,
        "Steps that the framework's own profiler captures into the run's folder, first and last.",
        example="100-105",
    )
    profile_signal: str | None = _setting(
        "PROFILE_SIGNAL",
        "",
        _signal,
        "A signal that has the next steps captured as well; no handler is installed unless you name one.",
        example="USR2",
    )
    debug: tuple[str, ...] = _setting(
        "DEBUG",
        "",
        _debugged,
        "jax: logs each compilation and dumps what is compiled into the run's folder.",
        example="jax",
    )
    backends: Path | None = _setting(  # noqa: RUF009 - a field, as all of them
        "BACKENDS",
        "",
        _optional_folder,
        "A folder with the programs that `otel-ml stack` starts; PATH is looked through after it.",
        example="~/backends",
    )
    stack_dir: Path = _setting(  # noqa: RUF009 - a field, as all of them
        "STACK_DIR",
        "$XDG_DATA_HOME/otel-ml-stack, else ~/.local/share/otel-ml-stack",
        _folder,
        "The folder of the stack: its data, logs and configurations.",
        example="./stack",
        find_default=lambda environ: f"{_data_folder(environ)}-stack",
    )
    listen: str = _setting(
        "LISTEN",
        "127.0.0.1",
        str,
        "The address that the stack and the shipped Collector listen on.",
        example="0.0.0.0",  # noqa: S104 - an example
    )
    config: Path | None = _setting(  # noqa: RUF009 - a field, as all of them
        "CONFIG",
        "",
        _optional_folder,
        "A YAML file with the keys of otel_ml.configure(); the environment comes before it.",
        example="./otel-ml.yaml",
    )
    strict: bool = _setting("STRICT", "0", _flag, "1 raises errors of ours instead of logging them.", example="1")
    views_drop: tuple[str, ...] = _setting(
        "VIEWS_DROP", "", _metrics(), "Metrics that are not made, with commas.", example="ml.training.grad_norm"
    )
    views_exponential: tuple[str, ...] = _setting(
        "VIEWS_EXPONENTIAL", "", _metrics("histogram"), "Histograms with exponential buckets, with commas.",
        example="ml.training.step.duration",
    )  # fmt: skip
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """The settings in `environ` (the process's own, unless given).

        Raises:
            SettingsError: values that cannot be, or `OTEL_ML_*` names that do not exist;
                one line each, with what to type.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        wrong = [_unknown(name) for name in sorted(environ) if _is_unknown(name, environ[name])]
        for name, setting in _BY_FIELD.items():
            given = environ.get(setting.env, "").strip()
            sources[setting.env] = "env" if given else "default"
            try:
                values[name] = setting.parse(given or setting.default_text(environ))
            except ValueError as error:
                wrong.append(_refused(setting, given, str(error), environ))
        if wrong:
            raise SettingsError("\n".join(wrong))
        return cls(**values, sources=sources)


_BY_FIELD: dict[str, Setting] = {f.name: f.metadata["setting"] for f in fields(Settings) if "setting" in f.metadata}
SETTINGS: dict[str, Setting] = {setting.env: setting for setting in _BY_FIELD.values()}
FIELDS: dict[str, str] = {setting.env: name for name, setting in _BY_FIELD.items()}


def _is_unknown(name: str, value: str) -> bool:
    return bool(value.strip()) and name.startswith(PREFIX) and not name.startswith(INTERNAL) and name not in SETTINGS


def _unknown(name: str) -> str:
    import difflib

    known = [setting.removeprefix(PREFIX) for setting in SETTINGS]
    near = difflib.get_close_matches(name.removeprefix(PREFIX), known, n=1)
    advice = f"Did you mean {PREFIX}{near[0]}?" if near else "Run `otel-ml config` for those there are."
    return f"{name}: there is no such setting. {advice}"


def _refused(setting: Setting, given: str, need: str, environ: Mapping[str, str]) -> str:
    default = setting.default_text(environ)
    unset = f"unset it for {default}" if default else "unset it"
    return f"{setting.env}={given}: {need}. Type {setting.env}={setting.example}, or {unset}."


# --- OTel's own variables: only what we must know before the SDK reads them ------------------


def _given(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name, "").strip()


_LIMITS = (
    "ATTRIBUTE_COUNT", "ATTRIBUTE_VALUE_LENGTH", "SPAN_ATTRIBUTE_COUNT", "SPAN_ATTRIBUTE_VALUE_LENGTH",
    "SPAN_EVENT_COUNT", "SPAN_LINK_COUNT", "EVENT_ATTRIBUTE_COUNT", "LINK_ATTRIBUTE_COUNT",
    "LOGRECORD_ATTRIBUTE_COUNT", "LOGRECORD_ATTRIBUTE_VALUE_LENGTH",
)  # fmt: skip
# What the SDK reads while it makes providers, with the least that it takes and an example.
_NUMBERS: dict[str, tuple[int, str]] = {
    **{f"OTEL_{name}_LIMIT": (0, "128") for name in _LIMITS},
    **{f"OTEL_{batch}_{name}": (1, example) for batch in ("BSP", "BLRP") for name, example in (
        ("SCHEDULE_DELAY", "1000"), ("EXPORT_TIMEOUT", "30000"), ("MAX_QUEUE_SIZE", "2048"),
        ("MAX_EXPORT_BATCH_SIZE", "512"),
    )},
    "OTEL_METRIC_EXPORT_INTERVAL": (1, "10000"),
    "OTEL_METRIC_EXPORT_TIMEOUT": (1, "30000"),
    "OTEL_EXPORTER_PROMETHEUS_PORT": (0, "9464"),
}  # fmt: skip


def wrong_numbers(environ: Mapping[str, str]) -> dict[str, str]:
    """OTel's variables that hold no number that they may, each with what to type. They are to count as unset."""
    wrong = {}
    for name, (least, example) in _NUMBERS.items():
        given = _given(environ, name)
        try:
            fits = not given or (float(given) if name.startswith("OTEL_METRIC_") else int(given)) >= least
        except ValueError:
            fits = False
        if not fits:
            unit = " of milliseconds" if name.endswith(("DELAY", "INTERVAL", "EXPORT_TIMEOUT")) else ""
            wrong[name] = f"{name}={given}: need a number{unit} ≥ {least}; it is ignored. Type {name}={example}."
    return wrong


@contextmanager
def unset(names: Iterable[str], environ: MutableMapping[str, str]) -> Iterator[None]:
    """Without these variables, for as long as the SDK reads them."""
    before = {name: environ.pop(name) for name in names}
    try:
        yield
    finally:
        environ.update(before)


def in_launcher(environ: Mapping[str, str]) -> bool:
    """Whether `otel-ml run` is a parent of this process: then it prints the summary."""
    return environ.get(INTERNAL_LAUNCHER) == "1"


def sdk_disabled(environ: Mapping[str, str]) -> bool:
    """Whether `OTEL_SDK_DISABLED` is true: then there is no telemetry, ours included."""
    return _given(environ, "OTEL_SDK_DISABLED").lower() == "true"


def config_file(environ: Mapping[str, str]) -> str | None:
    """The path in `OTEL_CONFIG_FILE`; where there is one, the providers are the file's."""
    return _given(environ, "OTEL_CONFIG_FILE") or None


def _endpoint(environ: Mapping[str, str], signal: str | None = None) -> str:
    middle = f"{signal.upper()}_" if signal else ""
    return _given(environ, f"OTEL_EXPORTER_OTLP_{middle}ENDPOINT")


def _named(environ: Mapping[str, str], signal: str) -> list[str]:
    return [name for part in _given(environ, f"OTEL_{signal.upper()}_EXPORTER").split(",") if (name := part.strip())]


def endpoint_configured(environ: Mapping[str, str]) -> bool:
    """Whether the user has an OTLP endpoint: one is set, or an OTLP exporter is named and so has OTel's default one."""
    return any(_endpoint(environ, signal) for signal in (None, *SIGNALS)) or any(
        name.startswith("otlp") for signal in SIGNALS for name in _named(environ, signal)
    )


def exporters(environ: Mapping[str, str], *, store: bool = True) -> dict[str, list[str]]:
    """Where each of `SIGNALS` goes: names of OTel exporters, and `store` for the local store unless that is off.

    `none` is neither sent nor stored. A signal that nobody named an exporter for goes to OTLP
    where an endpoint is set for it or for all, and never to OTel's default endpoint unasked:
    `OTEL_METRICS_EXPORTER=prometheus` alone sends no traces. With a configuration file the
    exporters are the file's.
    """
    local = [STORE] if store else []
    if sdk_disabled(environ):
        return {signal: [] for signal in SIGNALS}
    if config_file(environ):
        return {signal: list(local) for signal in SIGNALS}
    ways: dict[str, list[str]] = {}
    for kind in SIGNALS:
        names = _named(environ, kind)
        if names == ["none"]:
            ways[kind] = []
            continue
        if not names and (_endpoint(environ) or _endpoint(environ, kind)):
            names = ["otlp"]
        ways[kind] = [*names, *local]
    return ways
