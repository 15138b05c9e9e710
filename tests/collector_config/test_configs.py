"""Every configuration that ships is taken by the program it is for."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from otel_ml.stack.programs import shipped
from tests.e2e.backends import backend
from tests.e2e.launching import environment

if TYPE_CHECKING:
    from pathlib import Path

SHIPPED = shipped()
OVERLAYS = ("gateway-agent", "gateway", "kafka", "file-log", "prometheus-scrape")


def checked(*command: str, cwd: Path = SHIPPED) -> subprocess.CompletedProcess[str]:
    """What a program says of a configuration."""
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("overlay", [None, *OVERLAYS])
def test_collector(overlay: str | None) -> None:
    """The Collector takes the agent's file alone and with each file that is laid over it, and warns of nothing."""
    files = ["collector.yaml", *([f"{overlay}.yaml"] if overlay else [])]
    done = checked(backend("otelcol"), "validate", *(f"--config={file}" for file in files))
    assert (done.returncode, done.stderr + done.stdout) == (0, "")


def test_kafka_consumer() -> None:
    """The file whose receiver not every Collector has names only what is there, and reads what the other one writes."""
    base, laid = (
        yaml.safe_load((SHIPPED / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in ("collector", "kafka-consumer")
    )
    kinds = ("receivers", "processors", "exporters")
    known = {kind: {*base[kind], *base["connectors"], *laid.get(kind, {})} for kind in kinds}
    for name, pipeline in laid["service"]["pipelines"].items():
        whole = {**base["service"]["pipelines"][name], **pipeline}
        assert {kind: set(whole[kind]) - known[kind] for kind in kinds} == {kind: set() for kind in kinds}
    assert set(laid["exporters"]) <= set(base["exporters"])
    produced = yaml.safe_load((SHIPPED / "kafka.yaml").read_text(encoding="utf-8"))["exporters"]["kafka"]
    for signal in ("traces", "metrics", "logs"):
        assert laid["receivers"]["kafka"][signal] == {
            "topics": [produced[signal]["topic"]], "encoding": produced[signal]["encoding"],
        }  # fmt: skip


def test_prometheus() -> None:
    """Prometheus takes its file, the rules and the targets."""
    done = checked(backend("promtool"), "check", "config", "prometheus/prometheus.yaml")
    assert done.returncode == 0, done.stderr


def test_jaeger() -> None:
    """Jaeger takes its file."""
    done = checked(backend("jaeger"), "validate", "--config=jaeger/jaeger.yaml")
    assert done.returncode == 0, done.stderr


def test_loki(tmp_path: Path) -> None:
    """Loki takes its file."""
    done = subprocess.run(
        [backend("loki"), "-config.file=loki/loki.yaml", "-config.expand-env=true", "-verify-config"], cwd=SHIPPED,
        env=environment(LOKI_DATA=str(tmp_path)), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def memory_limiter_first(config: dict[str, Any]) -> list[str]:
    """The pipelines where something comes before the memory limiter."""
    pipelines = config["service"]["pipelines"].items()
    return [name for name, p in pipelines if p.get("processors", ["memory_limiter"])[:1] != ["memory_limiter"]]


@pytest.mark.parametrize("name", ["collector", *OVERLAYS, "kafka-consumer"])
def test_pipelines(name: str) -> None:
    """The memory limiter is first in every pipeline; every queue is on disk, blocks when full and never gives up."""
    config = yaml.safe_load((SHIPPED / f"{name}.yaml").read_text(encoding="utf-8"))
    assert memory_limiter_first(config) == []
    for exporter in config.get("exporters", {}).values():
        queue = exporter.get("sending_queue", {})
        if "queue_size" in queue:
            assert (queue["storage"], queue["block_on_overflow"]) == ("file_storage", True)
            assert exporter["retry_on_failure"]["max_elapsed_time"] == "0s"


def test_ports_and_addresses() -> None:
    """Whatever listens is on loopback unless OTEL_ML_LISTEN says otherwise."""
    for path in (*SHIPPED.glob("*.yaml"), *SHIPPED.glob("jaeger/*.yaml"), *SHIPPED.glob("loki/*.yaml")):
        if path.name != "compose.yaml":
            assert "0.0.0.0" not in path.read_text(encoding="utf-8"), path.name  # noqa: S104 - it must not be there


def test_compose() -> None:
    """The compose file pins every image, publishes on loopback alone, and has health checks and volumes that exist."""
    compose = yaml.safe_load((SHIPPED / "compose.yaml").read_text(encoding="utf-8"))
    services = compose["services"]
    assert all(re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+(-musl)?", service["image"]) for service in services.values())
    del services["tools"]  # runs once, for the others
    assert set(services) == {"collector", "prometheus", "alertmanager", "jaeger", "loki", "grafana"}
    for name, service in services.items():
        assert all(str(port).startswith("127.0.0.1:") for port in service["ports"]), name
        assert (service["restart"], service["healthcheck"]["test"][:2]) == ("unless-stopped", ["CMD", "/tools/busybox"])
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (SHIPPED / source).exists(), volume
