"""The one place everything is joined: distro, configurator, and what runs at the program's end.

`opentelemetry-instrument` and `otel-ml run` load `OtelMlDistro` and
`OtelMlConfigurator`; where another distro won, `join()` (a post-instrument entry point)
joins the providers that it set. `configure()` does the same from inside a program.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TextIO

from opentelemetry import trace
from opentelemetry.instrumentation.distro import BaseDistro
from opentelemetry.sdk._configuration import _OTelSDKConfigurator
from opentelemetry.sdk.trace import TracerProvider
from wrapt import register_post_import_hook

from otel_ml import configuration, settings
from otel_ml.core import identity as identities
from otel_ml.core import namesakes, runtime
from otel_ml.core.context import limits, recorders
from otel_ml.core.profiling import Profiler
from otel_ml.core.threads import started_for_us
from otel_ml.errors import OtelMlError, guard, say, strict
from otel_ml.export.spool import Spool
from otel_ml.pipeline.adoption import make_way
from otel_ml.pipeline.providers import Providers
from otel_ml.pipeline.resource import resource_of
from otel_ml.pipeline.run import Run
from otel_ml.pipeline.views import views
from otel_ml.settings import Settings
from otel_ml.store.ledger import Ledger
from otel_ml.store.schema import extra_folder
from otel_ml.store.writer import StoreWriter
from otel_ml.watch.anomalies import Anomalies
from otel_ml.watch.diagnosis import diagnose

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_ml.totals import RunTotals

__all__ = ["OtelMlConfigurator", "OtelMlDistro", "configure", "current", "join", "shutdown", "summary"]

_MB = 1_000_000
_PACKAGE = str(Path(__file__).resolve().parent) + os.sep
_MODULE_CALL = str(Path("torch", "nn", "modules", "module.py"))

_LOADER = "opentelemetry.instrumentation.auto_instrumentation._load"

current: Run | None = None
_settings: Settings | None = None
_asked: dict[str, Any] = {}
_previous_excepthook: Any = None
_refused = False

Exporter = Literal["otlp", "local", "console", "prometheus", "zipkin", "jaeger"]


def _worth_saying(record: logging.LogRecord) -> bool:
    """Whether it is more than that another configurator is not loaded, as was meant."""
    return not str(record.msg).startswith("Configuration of %s not loaded because")


class OtelMlDistro(BaseDistro):  # type: ignore[misc, unused-ignore]
    """Our distribution: nothing to preset, and one instrumentor whose work we do ourselves."""

    def _configure(self, **_: Any) -> None:
        """Be silent about what is not loaded since we are: it stood on each program's stderr."""
        logging.getLogger(_LOADER).addFilter(_worth_saying)

    def load_instrumentor(self, entry_point: Any, **kwargs: Any) -> None:
        """Load any instrumentor but `logging`, whose handler on the root logger would silence `basicConfig()`."""
        if entry_point.name == "logging" and current is not None:
            return
        super().load_instrumentor(entry_point, **kwargs)


class OtelMlConfigurator(_OTelSDKConfigurator):
    """Makes the providers and starts the pipeline."""

    def _configure(self, **kwargs: Any) -> None:
        environ = os.environ
        try:
            chosen = Settings.from_env(environ)
        except OtelMlError as error:
            # The launcher refuses these before the program starts; here the program comes first.
            _refuse(str(error))
            return
        if not chosen.enabled or settings.sdk_disabled(environ):
            return
        file = settings.config_file(environ)
        if file and not Path(file).is_file():
            _refuse(f"nothing is recorded: OTEL_CONFIG_FILE={file}: there is no such file. Name one, or unset it.")
            return
        version = kwargs.get("auto_instrumentation_version")
        try:
            if file:
                with started_for_us():
                    super()._configure()  # type: ignore[no-untyped-call]
            _start(chosen, {"telemetry.auto.version": version} if version else {})
        except Exception as error:  # the SDK's, for a variable that it cannot take
            if strict:
                raise
            said = " ".join(str(error).split()) or type(error).__name__
            _refuse(f"nothing is recorded: {f'OTEL_CONFIG_FILE={file}: ' if file else ''}{said}")


def configure(
    *,
    service_name: str | None = None,
    exporter: Exporter | None = None,
    endpoint: str | None = None,
    sample: float | None = None,
    instrument: bool = True,
    run_name: str | None = None,
    directory: str | os.PathLike[str] | None = None,
) -> Run | None:
    """Start recording this process, as a launcher would; on the program's own providers where it has set some.

    Without arguments, as the environment and the file that `OTEL_ML_CONFIG` names say; the same keys stand in that
    file. Arguments come before the environment, that before the file. Frameworks that are imported already are hooked
    as well, with the optimizers that exist.

    Args:
        service_name: `service.name` of all telemetry.
        exporter: `otlp` to a Collector or any backend that speaks it, `local` to the run's folder alone, `console`,
            `prometheus` for a scrape endpoint (each rank of a machine the next port), `zipkin`, `jaeger` (which
            speaks OTLP). The local store is kept besides; what an exporter does not take goes there alone.
        endpoint: Where it is: a URL, for `prometheus` `host:port`. By itself it means `otlp`.
        sample: The share of traces to keep, from 0 to 1; metrics and step records always hold every step.
        instrument: False hooks no framework: what the program says itself is all there is.
        run_name: The run's name for people.
        directory: The folder that holds the runs.

    Returns:
        The run, or None where `OTEL_ML_ENABLED=0` or `OTEL_SDK_DISABLED=true`. Calling it again, or under a launcher,
        gives the run that is recorded already and changes nothing, which is said once where arguments differ.

    Raises:
        SettingsError: a setting that cannot be; the message says what to type.
    """
    asked = {
        key: value
        for key, value in (
            ("service_name", service_name), ("exporter", exporter), ("endpoint", endpoint), ("sample", sample),
            ("instrument", instrument if instrument is not True else None), ("run_name", run_name),
            ("directory", None if directory is None else os.fspath(directory)),
        )
        if value is not None
    }  # fmt: skip
    global _asked  # noqa: PLW0603
    if current is not None:
        if asked and asked != _asked:
            said = "configure(): this process is recorded already; what it was asked for now changes nothing"
            limits.over("configure", said)
        return current
    configuration.apply_file(os.environ)
    configuration.apply(asked, os.environ)
    chosen = Settings.from_env(os.environ)
    if not chosen.enabled or settings.sdk_disabled(os.environ):
        return None
    _asked = asked
    run = _start(chosen, {})
    hooks = os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",")
    from otel_ml.instrument.jax import JaxInstrumentor
    from otel_ml.instrument.torch import TorchInstrumentor

    runtime.late = True
    for name, instrumentor in (("otel_ml_torch", TorchInstrumentor()), ("otel_ml_jax", JaxInstrumentor())):
        if name not in hooks and not instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.instrument()
            for own in instrumentor.patches.kept_in(vars(sys.modules["__main__"])):
                said = f"configure() came after `{own}` was imported by its name: its calls are not seen"
                limits.over(f"import of {own}", f"{said}. Call it by its module's name, or configure() first.")
    return run


def summary(file: TextIO | None = None) -> None:
    """Print what the run came to so far, as at its end: for a notebook's last cell.

    Args:
        file: Where to; unset, stdout.
    """
    from otel_ml.overview import print_totals

    out = file if file is not None else sys.stdout
    if current is None:
        print("otel-ml: nothing is recorded here; call otel_ml.configure() first", file=out)
    elif not current.done.is_set() and not current.drain.active and not current.drain.annotated:
        print("otel-ml: no training step, call or annotation so far", file=out)
    else:
        print_totals([current.totals if current.done.is_set() else current.so_far()], out)


def join() -> None:
    """After auto-instrumentation: join whatever distro won, say who did when asked to, and leave no trace."""
    logging.getLogger(_LOADER).removeFilter(_worth_saying)
    _join()
    with guard("giving way to the program's modules"):
        found = namesakes.shadowed()
        if found:
            if current is not None and current.writer is not None:
                current.writer.prepare()  # what we import later would find the program's
            namesakes.give_way(found)


def _join() -> None:
    with guard("joining the providers"):
        try:
            chosen = Settings.from_env(os.environ)
        except OtelMlError as error:
            _refuse(str(error))
            return
        if _refused or not chosen.enabled or settings.sdk_disabled(os.environ):
            return
        if current is None:
            _start(chosen, {})
        if chosen.verbose:
            _say(chosen)


def _refuse(reason: str) -> None:
    """Say why this process is not recorded: once, though configurator and `join()` each find out."""
    global _refused  # noqa: PLW0603
    if not _refused:
        say(reason)
    _refused = True


def _start(chosen: Settings, extra: dict[str, str]) -> Run:
    """Record this process. A number that cannot be is told and ignored, as OpenTelemetry asks."""
    wrong = settings.wrong_numbers(os.environ)
    for text in wrong.values():
        say(text)
    with settings.unset(wrong, os.environ):
        return _begin(chosen, extra)


def _begin(chosen: Settings, extra: dict[str, str]) -> Run:
    global current, _settings
    environ = os.environ
    identity = identities.resolve(environ, sys.orig_argv)
    identities.hand_down(environ, identity)
    if environ.pop(settings.INTERNAL_PORTS, None) and identity.local_rank:
        port = int(environ["OTEL_EXPORTER_PROMETHEUS_PORT"]) + identity.local_rank
        environ["OTEL_EXPORTER_PROMETHEUS_PORT"] = str(port)
    exporters = settings.exporters(environ, store=chosen.store)
    recorders.limit = chosen.buffer
    sent = {signal: [e for e in ways if e != settings.STORE] for signal, ways in exporters.items()}
    ledger = Ledger(()) if chosen.store else None
    providers = Providers.make(
        resource_of(identity, extra), sent, views(chosen.views_drop, {}, chosen.views_exponential), ledger
    )
    writer = spool = None
    if chosen.store:
        writer = StoreWriter(
            chosen.directory,
            identity.run_id,
            run_bytes=chosen.store_run_mb * _MB,
            total_bytes=chosen.store_total_mb * _MB,
            total_age_s=chosen.store_days * 86_400.0,
        )
        if ledger is not None and ledger.owed:
            writer.ledger = ledger
            spool = Spool(writer, dict(environ))
        providers.store(writer, {s for s, ways in exporters.items() if settings.STORE in ways})
    run = Run(
        identity,
        providers,
        writer=writer,
        spool=spool,
        judge=_judge,
        watch=Anomalies().recompiled,
        steps_per_second=chosen.steps_per_second,
        points_per_second=chosen.points_per_second,
        points_burst=chosen.points_burst,
    )
    current, _settings = run, chosen
    runtime.profiles = functools.partial(extra_folder, chosen.directory, identity.run_id, "profiles")
    if chosen.profile_steps is not None or chosen.profile_signal is not None:
        runtime.profiler = Profiler(runtime.profiles, chosen.profile_steps, chosen.profile_signal)
    if "jax" in chosen.debug:
        _debug_jax(functools.partial(extra_folder, chosen.directory, identity.run_id, "jax"))
    run.start()
    make_way(sorted(providers.made), _adopt)
    _wrap_excepthook()
    atexit.register(shutdown)
    register_post_import_hook(_in_multiprocessing, "multiprocessing.util")
    register_post_import_hook(_before_jax_ends, "jax")
    return run


def _debug_jax(folder: Callable[[], Path]) -> None:
    """Have JAX log what it compiles, and dump it there, once the program has imported it."""

    def tell(jax: Any) -> None:
        with guard("debugging jax"):
            jax.config.update("jax_log_compiles", True)  # noqa: FBT003 - as JAX has it
            jax.config.update("jax_dump_ir_to", str(folder()))

    register_post_import_hook(tell, "jax")


def _before_jax_ends(_: Any) -> None:
    """Its own end gives up all devices: what they still hold for us is to be read before that."""
    if current is not None:
        atexit.unregister(shutdown)
        atexit.register(shutdown)


def _adopt(signal: str) -> None:
    """The program has set its own provider: leave through it, and end before it does."""
    if current is not None:
        current.adopt(signal)
        atexit.unregister(shutdown)
        atexit.register(shutdown)


def _judge(totals: RunTotals) -> tuple[str, str, str]:
    found = diagnose(totals)
    return found.verdict, found.evidence, found.advice


def shutdown() -> None:
    """End the run: flush within `OTEL_ML_SHUTDOWN_TIMEOUT`, and print the summary unless the launcher does."""
    run, chosen = current, _settings
    if run is None or chosen is None:
        return
    with (
        contextlib.suppress(KeyboardInterrupt),
        guard("the end of the run"),
    ):  # a Ctrl-C ends our wait, and nothing else
        if runtime.profiler is not None:
            runtime.profiler.stop()
        totals = run.finish(_unhandled(), chosen.shutdown_timeout_s)
        launched = settings.in_launcher(os.environ) and chosen.store
        told = launched or run.identity.local_rank or _has_parent() or sys.stderr is None
        if totals is not None and chosen.summary and not told:
            from otel_ml.overview import print_totals
            from otel_ml.overview.lost import undelivered_in, unkept_in

            paths = [] if run.writer is None or run.writer.path is None else [run.writer.path]
            also = [*unkept_in(paths), *undelivered_in(run.identity.run_id, paths if run.spool is not None else [])]
            print_totals([totals], sys.stderr, also=also)
    if type(_unhandled()) is KeyboardInterrupt:
        _die_of_interrupt()


def _unhandled() -> BaseException | None:
    """The exception that ends the program. A prompt or a notebook outlives those of its lines and forgets none."""
    if hasattr(sys, "ps1"):  # IPython and its kernels set it, too
        return None
    error: BaseException | None = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    return error


def _has_parent() -> bool:
    """Whether `multiprocessing` made this process: the run's summary is its parent's."""
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None


def _die_of_interrupt() -> None:
    """Have the interpreter end by SIGINT, as it would have without us.

    It remembers an unhandled Ctrl-C in a flag that any later `exec()` of source clears, and
    imports at exit do that (a namedtuple is enough). An `exec()` that ends in the same
    exception sets it again.
    """
    with contextlib.suppress(KeyboardInterrupt):
        exec("raise KeyboardInterrupt")  # noqa: S102 - a constant; see above


def _in_multiprocessing(util: Any) -> None:
    """A spawned `multiprocessing` child ends in `os._exit`: it runs finalizers, never `atexit`."""

    def in_child() -> None:
        import multiprocessing

        if multiprocessing.parent_process() is not None:
            shutdown()

    util.Finalize(None, in_child, exitpriority=-1000)


def _wrap_excepthook() -> None:
    """Take our frames out of a traceback that is about to be printed: it reads as without us."""
    global _previous_excepthook  # noqa: PLW0603
    if _previous_excepthook is not None:
        return
    previous = _previous_excepthook = sys.excepthook

    def excepthook(kind: Any, error: BaseException, traceback: Any) -> None:
        with guard("a traceback"):
            _strip(error, set())
            traceback = error.__traceback__
        previous(kind, error, traceback)

    sys.excepthook = excepthook


def _strip(error: BaseException | None, seen: set[int]) -> None:
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    entries: list[TracebackType] = []
    at = error.__traceback__
    while at is not None:
        code = at.tb_frame.f_code
        if code.co_name == "_wrapped_call_impl" and code.co_filename.endswith(_MODULE_CALL):
            entries.append(_unslotted(at))
        elif not code.co_filename.startswith(_PACKAGE):
            entries.append(at)
        at = at.tb_next
    rest = None
    for entry in reversed(entries):
        entry.tb_next = rest
        rest = entry
    error.__traceback__ = rest
    _strip(error.__cause__, seen)
    _strip(error.__context__, seen)


def _unslotted(entry: TracebackType) -> TracebackType:
    """The call of a module, inside torch, on the line where it would be without our slot on the module's class."""
    import dis

    code = entry.tb_frame.f_code
    if "_compiled_call_impl" in vars(entry.tb_frame.f_locals["self"]):
        return entry  # the user's own `module.compile()`
    line = max(line for _, line in dis.findlinestarts(code) if line)
    *_, call = (i.offset for i in dis.get_instructions(code) if i.opname.startswith("CALL"))
    return TracebackType(None, entry.tb_frame, call, line)


def _made() -> str:
    made = current.providers.made if current is not None else set()
    joined = {"traces", "metrics", "logs"} - made
    if not joined:
        return "made here"
    return (
        "joined"
        if not made
        else f"made here for {' and '.join(sorted(made))}, joined for {' and '.join(sorted(joined))}"
    )


def _say(chosen: Settings) -> None:
    ours = isinstance(trace.get_tracer_provider(), TracerProvider)
    exporters = settings.exporters(os.environ, store=chosen.store)
    say(
        f"distro {os.environ.get('OTEL_PYTHON_DISTRO', 'first installed')}, "
        f"configurator {os.environ.get('OTEL_PYTHON_CONFIGURATOR', 'first installed')}, "
        f"providers {_made()}"
        f"{'' if ours else ' (no SDK tracer)'}"
    )
    for signal, ways in exporters.items():
        say(f"{signal} go to {', '.join(ways) or 'nowhere'}")
    from otel_ml.instrument import jax, torch

    for name, report in (("torch", torch.report()), ("jax", jax.report())):
        hooked = ", ".join(f"{k} {v}" for k, v in report.items()) or f"waiting for the program to import {name}"
        say(f"instrumentors: {name} ({hooked})")
