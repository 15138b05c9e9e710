"""The five programs of the stack: their binaries, ports, commands, and how each says that it is ready.

All of them read the configurations that ship in `collector-config/`; what differs from machine to machine
(addresses, ports, folders) reaches them through variables and through Prometheus' files of targets.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otel_ml.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["NAMES", "PORTS", "PROGRAMS", "Plan", "Program", "find", "shipped"]

_KEPT = ("GOMAXPROCS", "GOMEMLIMIT", "HOME", "LANG", "LC_ALL", "PATH", "TMPDIR", "TZ")
_OURS = ("OTELCOL_", "JAEGER_", "LOKI_")


@dataclass(frozen=True)
class Program:
    """One of the five."""

    name: str
    binaries: tuple[str, ...]
    source: str
    ports: Mapping[str, int]
    port: str  # which of `ports` its URL has
    ready: tuple[str, str]  # the port and path that answer 200 once it is ready


PROGRAMS = (
    Program(
        "collector", ("otelcol-contrib", "otelcol"),
        "github.com/open-telemetry/opentelemetry-collector-releases/releases",
        {
            "collector": 4318, "collector-grpc": 4317, "collector-health": 13133, "collector-metrics": 8888,
            "collector-zpages": 55679,
        },
        "collector", ("collector-health", "/"),
    ),
    Program(
        "prometheus", ("prometheus",), "prometheus.io/download", {"prometheus": 9090}, "prometheus",
        ("prometheus", "/-/ready"),
    ),
    Program(
        "alertmanager", ("alertmanager",), "prometheus.io/download", {"alertmanager": 9093}, "alertmanager",
        ("alertmanager", "/-/ready"),
    ),
    Program(
        "jaeger", ("jaeger",), "jaegertracing.io/download",
        {"jaeger": 16686, "jaeger-grpc": 16685, "jaeger-otlp": 14317, "jaeger-health": 14133, "jaeger-metrics": 14269},
        "jaeger", ("jaeger-health", "/status"),
    ),
    Program(
        "loki", ("loki",), "github.com/grafana/loki/releases", {"loki": 3100, "loki-grpc": 9096}, "loki",
        ("loki", "/ready"),
    ),
)  # fmt: skip
NAMES = tuple(program.name for program in PROGRAMS)
PORTS: dict[str, int] = {port: number for program in PROGRAMS for port, number in program.ports.items()}


def shipped() -> Path:
    """The folder of configurations that came with this package.

    Raises:
        CommandError: it is not there.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "collector-config", package.parent / "collector-config"):
        if (folder / "collector.yaml").is_file():
            return folder
    message = "collector-config/ did not come with this otel-ml; type: pip install --force-reinstall otel-ml"
    raise CommandError(message)


def find(backends: Path | None, path: str) -> dict[str, Path]:
    """Each program's binary, from the folder `backends` first, then from `path`.

    Raises:
        CommandError: some are missing; a line each, with where to get it.
    """
    folders = os.pathsep.join(filter(None, (str(backends) if backends else "", path)))
    found: dict[str, Path] = {}
    missing = []
    for program in PROGRAMS:
        at = next(filter(None, (shutil.which(binary, path=folders) for binary in program.binaries)), None)
        if at is None:
            missing.append(f"  {' or '.join(program.binaries)}\thttps://{program.source}")
        else:
            found[program.name] = Path(at).resolve()
    if missing:
        message = "\n".join(
            [
                "these programs are neither in OTEL_ML_BACKENDS nor on PATH:",
                *missing,
                "Download them into one folder and type: OTEL_ML_BACKENDS=that/folder otel-ml stack up",
                "(or, with Docker: docker compose -f collector-config/compose.yaml up)",
            ]
        )
        raise CommandError(message, exit_code=1)
    return found


@dataclass(frozen=True)
class Plan:
    """One stack: where it lives, what it listens on, which binaries it is made of."""

    folder: Path
    listen: str
    ports: Mapping[str, int]
    binaries: Mapping[str, Path] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        """The configurations in use: a copy of those that shipped."""
        return self.folder / "config"

    def url(self, port: str) -> str:
        """How a program on this machine reaches it."""
        host = "127.0.0.1" if self.listen == "0.0.0.0" else self.listen  # noqa: S104 - compared, not bound
        return f"http://{host}:{self.ports[port]}"

    def ready_url(self, program: Program) -> str:
        """What answers 200 once the program is ready."""
        port, path = program.ready
        return self.url(port) + path

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """What the programs find in their environment: the variables of the shipped configurations, and little else."""
        kept = {name: value for name, value in environ.items() if name in _KEPT or name.startswith(_OURS)}
        ports, data = self.ports, self.folder / "data"
        host = self.url("jaeger-otlp").removeprefix("http://")
        return {
            **kept,
            "OTEL_ML_LISTEN": self.listen,
            "OTELCOL_HTTP_PORT": str(ports["collector"]),
            "OTELCOL_GRPC_PORT": str(ports["collector-grpc"]),
            "OTELCOL_HEALTH_PORT": str(ports["collector-health"]),
            "OTELCOL_METRICS_PORT": str(ports["collector-metrics"]),
            "OTELCOL_ZPAGES_PORT": str(ports["collector-zpages"]),
            "OTELCOL_STORAGE": str(data / "collector"),
            "PROMETHEUS_OTLP_ENDPOINT": self.url("prometheus") + "/api/v1/otlp",
            "JAEGER_OTLP_ENDPOINT": host,
            "JAEGER_OTLP_PORT": str(ports["jaeger-otlp"]),
            "JAEGER_HTTP_PORT": str(ports["jaeger"]),
            "JAEGER_GRPC_PORT": str(ports["jaeger-grpc"]),
            "JAEGER_HEALTH_PORT": str(ports["jaeger-health"]),
            "JAEGER_METRICS_PORT": str(ports["jaeger-metrics"]),
            "LOKI_OTLP_ENDPOINT": self.url("loki") + "/otlp",
            "LOKI_HTTP_PORT": str(ports["loki"]),
            "LOKI_GRPC_PORT": str(ports["loki-grpc"]),
            "LOKI_DATA": str(data / "loki"),
            "LOKI_RULES": str(self.config / "loki" / "rules"),
            "ALERTMANAGER_URL": self.url("alertmanager"),
        }

    def command(self, name: str) -> list[str]:
        """How the program is started."""
        data, config, binary = self.folder / "data", self.config, str(self.binaries[name])
        listen = f"{self.listen}:{self.ports.get(name)}"
        return {
            "collector": [binary, f"--config={config / 'collector.yaml'}"],
            "prometheus": [
                binary, f"--config.file={config / 'prometheus' / 'prometheus.yaml'}",
                f"--storage.tsdb.path={data / 'prometheus'}", "--storage.tsdb.retention.time=31d",
                "--web.enable-otlp-receiver", "--enable-feature=exemplar-storage", f"--web.listen-address={listen}",
            ],
            "alertmanager": [
                binary, f"--config.file={config / 'alertmanager' / 'alertmanager.yaml'}",
                f"--storage.path={data / 'alertmanager'}", "--cluster.listen-address=",
                f"--web.listen-address={listen}",
            ],
            "jaeger": [binary, f"--config={config / 'jaeger' / 'jaeger.yaml'}"],
            "loki": [binary, f"-config.file={config / 'loki' / 'loki.yaml'}", "-config.expand-env=true"],
        }[name]  # fmt: skip

    def targets(self) -> dict[str, list[dict[str, Any]]]:
        """Whom Prometheus scrapes and alerts, by the name of its file of targets."""

        def at(port: str) -> str:
            return self.url(port).removeprefix("http://")

        own = {"prometheus": "prometheus", "alertmanager": "alertmanager", "jaeger": "jaeger-metrics", "loki": "loki"}
        return {
            "otelcol": [{"targets": [at("collector-metrics")]}],
            "alertmanager": [{"targets": [at("alertmanager")]}],
            "stack": [{"targets": [at(port)], "labels": {"backend": name}} for name, port in own.items()],
        }

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "listen": self.listen,
            "ports": dict(self.ports),
            "binaries": {name: str(path) for name, path in self.binaries.items()},
        }

    @classmethod
    def from_json(cls, folder: Path, plain: Mapping[str, Any]) -> Plan:
        """The plan that `to_json` told."""
        binaries = {name: Path(path) for name, path in plain["binaries"].items()}
        return cls(folder, plain["listen"], plain["ports"], binaries)
