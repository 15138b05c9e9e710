"""Say what is installed and hooked, what is missing, and where data goes.

No framework is imported, but with --hooks: that starts one Python under our launcher,
imports torch there and lists each hook. With --path, one span, one metric and one log are
sent where your programs would send theirs, and looked for in Prometheus, Jaeger and Loki:
those of `otel-ml stack` while it runs, others by their addresses. The exit code is 1 if
something is broken. Keys of --json: ok, checks[] {section, name, status (ok, note, warning,
broken), detail}.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from otel_ml import redact
from otel_ml.core.native import is_old, load, wanted
from otel_ml.environment import DISTRO
from otel_ml.errors import CommandError, SettingsError
from otel_ml.settings import SIGNALS, STORE, Settings, config_file, endpoint_configured, exporters, sdk_disabled

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["Check", "examine", "hook_report", "prepare_parser", "run"]

Status = Literal["ok", "note", "warning", "broken"]

# The newest release that our tests have run on; the oldest supported one is in the package's extras.
TESTED = {"torch": "2.13", "jax": "0.10"}
_NEIGHBOURS = (
    "ddtrace", "elastic-opentelemetry", "logfire", "mlflow", "newrelic", "opentelemetry-distro", "sentry-sdk",
    "splunk-opentelemetry", "tensorboard", "wandb",
)  # fmt: skip
_EXPORTER_GROUPS = {signal: f"opentelemetry_{signal}_exporter" for signal in SIGNALS}
_PIP = {
    "otlp_proto_grpc": "otel-ml[grpc]",
    "otlp_proto_http": "opentelemetry-exporter-otlp-proto-http",
    "prometheus": "otel-ml[prometheus]",
}
_OTLP = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
_DEFAULT_ENDPOINT = {"grpc": "http://localhost:4317", "http/protobuf": "http://localhost:4318"}
_HOOKS_TIMEOUT_S = 120


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    section: str
    name: str
    status: Status
    detail: str


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Switches, and where the backends are."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--hooks", action="store_true", help="import torch in another process and list each hook")
    parser.add_argument("--path", action="store_true", help="send one of each signal and find it in each backend")
    for backend in ("prometheus", "jaeger", "loki"):
        parser.add_argument(f"--{backend}", metavar="URL", help=f"where {backend.capitalize()} answers, for --path")
    parser.add_argument("--wait", type=float, default=30.0, metavar="S", help="how long --path looks (default: 30)")


def run(args: argparse.Namespace) -> int:
    """Print the report; 1 if something is broken."""
    checks = list(examine(os.environ))
    if args.hooks:
        checks += _hooks(os.environ)
    if args.path:
        given = {name: url for name in ("prometheus", "jaeger", "loki") if (url := getattr(args, name))}
        checks += _path(given, args.wait)
    ok = all(check.status != "broken" for check in checks)
    if args.json:
        print(json.dumps({"ok": ok, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        _print(checks)
    return 0 if ok else 1


def examine(environ: Mapping[str, str]) -> Iterator[Check]:
    """Every check that needs no framework."""
    yield Check("installed", "python", "ok", f"{platform.python_version()} ({sys.executable}), {platform.platform()}")
    yield from _packages(environ)
    yield from _frameworks()
    yield from _entry_points(environ)
    yield from _neighbours()
    yield from _data(environ)


# --- what is installed ---------------------------------------------------------------------


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _requirements() -> list[str]:
    try:
        return metadata.requires("otel-ml") or []
    except metadata.PackageNotFoundError:
        return []


def _packages(environ: Mapping[str, str]) -> Iterator[Check]:
    """Ourselves and what we depend on, each against the range that we ask for."""
    from packaging.requirements import Requirement

    ours = _version("otel-ml")
    if ours is None:
        detail = "not installed in this Python, so no launcher finds it; type: pip install otel-ml"
        yield Check("installed", "otel-ml", "broken", detail)
        return
    yield Check("installed", "otel-ml", "ok", ours)
    yield _native(environ)
    for requirement in map(Requirement, _requirements()):
        if requirement.marker is not None:
            continue  # an extra's
        name, wanted = requirement.name, str(requirement.specifier)
        found = _version(name)
        if found is None:
            yield Check("installed", name, "broken", f"missing; type: pip install '{name}{wanted}'")
        elif not requirement.specifier.contains(found, prereleases=True):
            yield Check("installed", name, "broken", f"{found}, need {wanted}; type: pip install '{name}{wanted}'")
        else:
            yield Check("installed", name, "ok", found)


def _native(environ: Mapping[str, str]) -> Check:
    """Whether torch's hooks are the compiled ones."""
    if not wanted(environ):
        return Check("installed", "hooks", "note", "Python, as the settings say: some 8 µs more a step")
    hooks = "otel_ml.instrument.torch._hooks"
    if is_old(hooks):
        detail = (
            "Python, some 8 µs more a step: the source has changed since they were compiled; type: pip install -e ."
        )
        return Check("installed", "hooks", "note", detail)
    if load(hooks) is not None:
        return Check("installed", "hooks", "ok", "compiled")
    if not sys.platform.startswith("linux") or platform.python_implementation() != "CPython":
        return Check("installed", "hooks", "ok", "Python; they are compiled for CPython on Linux alone")
    detail = "Python, some 8 µs more a step: no C compiler, or not Python's headers, when otel-ml was installed"
    return Check("installed", "hooks", "note", detail)


def _frameworks() -> Iterator[Check]:
    """What there is of torch and jax, by their metadata alone."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    oldest = {r.name: r for r in map(Requirement, _requirements()) if r.name in ("torch", "jax") and ">" in str(r)}
    for name in ("torch", "jax"):
        found = _version(name)
        if found is None:
            yield Check("frameworks", name, "note", "not installed")
        elif name not in TESTED:
            yield Check("frameworks", name, "note", f"{found}; this version of otel-ml does not hook it")
        elif name in oldest and not oldest[name].specifier.contains(found, prereleases=True):
            wanted = oldest[name].specifier
            yield Check("frameworks", name, "warning", f"{found}, supported: {wanted}; what is hooked may be partial")
        elif Version(found).release[:2] > Version(TESTED[name]).release[:2]:
            detail = f"{found}, newer than {TESTED[name]}, the last one tested; see otel-ml doctor --hooks"
            yield Check("frameworks", name, "warning", detail)
        else:
            yield Check("frameworks", name, "ok", f"{found} (tested up to {TESTED[name]})")


# --- which distro wins ------------------------------------------------------------------------


def _installed(group: str) -> list[str]:
    return sorted({point.name for point in metadata.entry_points(group=group)})


def _entry_points(environ: Mapping[str, str]) -> Iterator[Check]:
    """Which distro and configurator win, with our launcher and with `opentelemetry-instrument` alike."""
    for kind in ("distro", "configurator"):
        installed = _installed(f"opentelemetry_{kind}")
        variable = f"OTEL_PYTHON_{kind.upper()}"
        winner = environ.get(variable) or DISTRO
        others = ", ".join(name for name in installed if name != winner)
        beside = f"; also installed: {others}" if others else ""
        if winner not in installed:
            yield Check("launcher", kind, "broken", f"{winner} is not installed ({variable}){beside}")
        elif winner != DISTRO:
            yield Check("launcher", kind, "note", f"{winner} wins ({variable}); otel-ml joins it{beside}")
        else:
            yield Check("launcher", kind, "ok", f"{winner} wins{beside}")
    disabled = {name.strip() for name in environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",")}
    names = _installed("opentelemetry_instrumentor")
    shown = ", ".join(f"{name} (switched off)" if disabled & {name, "*"} else name for name in names)
    yield Check("launcher", "instrumentors", "ok" if names else "broken", shown or "none found")


def _neighbours() -> Iterator[Check]:
    for name in _NEIGHBOURS:
        found = _version(name)
        if found is not None:
            yield Check("neighbours", name, "note", found)


# --- where data goes ---------------------------------------------------------------------------


def _data(environ: Mapping[str, str]) -> Iterator[Check]:
    try:
        settings = Settings.from_env(environ)
    except SettingsError as error:
        for line in str(error).splitlines():
            yield Check("data", "settings", "broken", line)
        settings = Settings.from_env({k: v for k, v in environ.items() if not k.startswith("OTEL_ML_")})
    if not settings.enabled:
        yield Check("data", "otel-ml", "note", "switched off by OTEL_ML_ENABLED=0")
    if sdk_disabled(environ):
        yield Check("data", "sdk", "note", "switched off by OTEL_SDK_DISABLED=true: nothing is recorded")
        return
    yield _store(settings)
    file = config_file(environ)
    if file:
        yield _configuration(file)
    for signal, names in exporters(environ, store=settings.store).items():
        yield _way(environ, signal, names)


def _store(settings: Settings) -> Check:
    """Whether the folder is there or could be made, and written to; nothing is made here."""
    folder = settings.directory
    if not settings.store:
        return Check("data", STORE, "note", "switched off by OTEL_ML_STORE=0")
    existing = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if not existing.is_dir():
        return Check("data", STORE, "broken", f"{existing} is no folder; set OTEL_ML_DIR to another")
    if not os.access(existing, os.W_OK | os.X_OK):
        return Check("data", STORE, "broken", f"{existing} cannot be written to; set OTEL_ML_DIR to another folder")
    return Check("data", STORE, "ok", str(folder))


def _configuration(file: str) -> Check:
    if not Path(file).is_file():
        return Check("data", "OTEL_CONFIG_FILE", "broken", f"{file} does not exist")
    if _version("opentelemetry-configuration") is None:
        return Check("data", "OTEL_CONFIG_FILE", "broken", "cannot be read; type: pip install 'otel-ml[config-file]'")
    return Check("data", "OTEL_CONFIG_FILE", "ok", f"{file} decides the exporters")


def _way(environ: Mapping[str, str], signal: str, names: Iterable[str]) -> Check:
    """Where one signal goes, and whether the exporters for it are installed."""
    shown: list[str] = []
    for name in names:
        if name == STORE:
            shown.append("the local store")
            continue
        protocol = _protocol(environ, signal)
        point = _OTLP.get(protocol) if name == "otlp" else name
        if point is None:
            detail = f"OTLP over {protocol!r} is not known; set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"
            return Check("data", signal, "broken", detail)
        if point not in _installed(_EXPORTER_GROUPS[signal]):
            advice = f"; type: pip install '{_PIP[point]}'" if point in _PIP else ""
            return Check("data", signal, "broken", f"exporter {name} is not installed{advice}")
        shown.append(f"{name} ({_endpoint(environ, signal, protocol)})" if name.startswith("otlp") else name)
    return Check("data", signal, "ok" if shown else "note", ", ".join(shown) or "nowhere")


def _protocol(environ: Mapping[str, str], signal: str) -> str:
    general = environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    return environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL") or general


def _endpoint(environ: Mapping[str, str], signal: str, protocol: str) -> str:
    own = environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
    return redact.text(own or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or _DEFAULT_ENDPOINT.get(protocol, protocol))


# --- hooks -------------------------------------------------------------------------------------

_PROBES = {
    "torch": "import torch, torch._dynamo.utils",
    "jax": "import jax",
}
_TELL = """
import json
from otel_ml.instrument.{name} import report
print()
print(json.dumps(report()))
"""


def hook_report(name: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Each hook of torch or jax by name, "hooked" or "missing: why", from another Python under our launcher.

    Raises:
        CommandError: that Python failed; the message ends with what it said last.
    """
    import subprocess
    import tempfile

    from otel_ml.cli.run import instrument

    with tempfile.TemporaryDirectory() as folder:
        child = {**environ, "OTEL_ML_DIR": folder, "OTEL_ML_STORE": "0", "OTEL_ML_ENABLED": "1"}
        child.update({f"OTEL_{signal.upper()}_EXPORTER": "none" for signal in SIGNALS})
        instrument(child)
        done = subprocess.run(
            [sys.executable, "-c", _PROBES[name] + _TELL.format(name=name)],
            env=child, capture_output=True, text=True, check=False, timeout=_HOOKS_TIMEOUT_S,
        )  # fmt: skip
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        message = f"the hooks could not be looked at: {said[-1] if said else f'exit code {done.returncode}'}"
        raise CommandError(message, exit_code=1)
    report: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return report


def _hooks(environ: Mapping[str, str]) -> Iterator[Check]:
    for framework in _PROBES:
        if _version(framework) is None:
            yield Check("hooks", framework, "note", "not installed")
            continue
        try:
            report = hook_report(framework, environ)
        except CommandError as error:
            yield Check("hooks", framework, "broken", str(error))
            continue
        if not report:
            yield Check("hooks", framework, "broken", "nothing was hooked; run again with OTEL_LOG_LEVEL=debug")
        for name, state in sorted(report.items()):
            yield Check("hooks", f"{framework}: {name}", "ok" if state == "hooked" else "warning", state)


# --- the path to the backends ------------------------------------------------------------------


def _path(given: Mapping[str, str], wait_s: float) -> Iterator[Check]:
    """Whether what is sent arrives; this process's environment says where it is sent."""
    from otel_ml.stack.client import plan_of, running
    from otel_ml.stack.path import BACKENDS, look_for, send

    folder = Settings.from_env(os.environ).stack_dir
    plan = plan_of(folder) if running(folder) else None
    if plan is not None and not endpoint_configured(os.environ):
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = plan.url("collector")
        yield Check("path", "endpoint", "ok", f"{plan.url('collector')}, the stack in {folder}")
    elif not endpoint_configured(os.environ):
        detail = "none is set; type: OTEL_EXPORTER_OTLP_ENDPOINT=http://host:4318 otel-ml doctor --path"
        yield Check("path", "endpoint", "broken", f"{detail} (or otel-ml stack up)")
        return
    urls = {name: plan.url(name) for name in BACKENDS} if plan is not None else {}
    urls.update(given)
    wanted = exporters(os.environ, store=False)
    ways = {signal: [name for name in names if name.startswith("otlp")] for signal, names in wanted.items()}
    otlp = [signal for signal in SIGNALS if ways[signal]]
    refused = {at: why for signal in otlp if (why := _unreachable(at := _endpoint_of(os.environ, signal)))}
    for at, why in refused.items():
        yield Check("path", "endpoint", "broken", f"{redact.text(at)}: {why}")
    if refused:
        return
    probe = send(ways)
    found = look_for(probe, urls, wait_s)
    for name, signal in zip(BACKENDS, ("metrics", "traces", "logs"), strict=True):
        if name not in urls:
            yield Check("path", name, "note", f"not asked; type --{name} http://host:port")
        elif isinstance(found[name], str):
            yield Check(
                "path", name, "broken", f"{signal} sent to {', '.join(ways[signal]) or 'nowhere'}: {found[name]}"
            )
        else:
            where = redact.text(urls[name])
            yield Check("path", name, "ok", f"{signal} after {found[name]:.1f} s: {where}{probe.question(name)}")


def _endpoint_of(environ: Mapping[str, str], signal: str) -> str:
    return _endpoint(environ, signal, _protocol(environ, signal))


def _unreachable(endpoint: str) -> str | None:
    """Why nothing can be sent there; None where something listens."""
    import socket
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname or "", port), timeout=5):
            return None
    except (OSError, ValueError) as error:
        return f"{error}; is it up, and is the address right?"


# --- printing ------------------------------------------------------------------------------------


def _print(checks: Iterable[Check]) -> None:
    """Tab-separated where stdout is no terminal, else in columns with the state marked."""
    if not sys.stdout.isatty():
        for check in checks:
            print(check.section, check.name, check.status, check.detail, sep="\t")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    marks = {"ok": ("✓", "green"), "note": ("·", "dim"), "warning": ("!", "yellow"), "broken": ("✗", "bold red")}
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in ("section", "mark", "name"):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    section = ""
    for check in checks:
        mark, style = marks[check.status]
        heading = "" if check.section == section else check.section
        section = check.section
        table.add_row(Text(heading, style="bold"), Text(mark, style=style), Text(check.name), Text(check.detail))
    Console().print(table)
