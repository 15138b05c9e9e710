"""What `configure()` and its file may say, as the environment variables that mean it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

from otel_ml.configuration import apply, apply_file, read_file
from otel_ml.errors import SettingsError
from otel_ml.settings import SIGNALS, exporters

if TYPE_CHECKING:
    from pathlib import Path

WAYS: dict[str, tuple[dict[str, Any], dict[str, str], dict[str, list[str]]]] = {
    "otlp": (
        {"exporter": "otlp"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"},
        {"traces": ["otlp", "store"], "metrics": ["otlp", "store"], "logs": ["otlp", "store"]},
    ),
    "an endpoint alone": (
        {"endpoint": "https://collector:4318"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector:4318"},
        {"traces": ["otlp", "store"], "metrics": ["otlp", "store"], "logs": ["otlp", "store"]},
    ),
    "local": ({"exporter": "local"}, {}, {"traces": ["store"], "metrics": ["store"], "logs": ["store"]}),
    "console": (
        {"exporter": "console"},
        {f"OTEL_{signal}_EXPORTER": "console" for signal in ("TRACES", "METRICS", "LOGS")},
        {"traces": ["console", "store"], "metrics": ["console", "store"], "logs": ["console", "store"]},
    ),
    "zipkin": (
        {"exporter": "zipkin", "endpoint": "http://zipkin:9411"},
        {"OTEL_TRACES_EXPORTER": "zipkin_json", "OTEL_EXPORTER_ZIPKIN_ENDPOINT": "http://zipkin:9411/api/v2/spans"},
        {"traces": ["zipkin_json", "store"], "metrics": ["store"], "logs": ["store"]},
    ),
    "jaeger": (
        {"exporter": "jaeger"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:4318/v1/traces"},
        {"traces": ["otlp", "store"], "metrics": ["store"], "logs": ["store"]},
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_exporters(way: str) -> None:
    """Each exporter is the variables that mean it, over those of another destination, and goes where it says."""
    given, variables, signals = WAYS[way]
    environ = {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://other", "OTEL_LOGS_EXPORTER": "none", "HOME": "/home/me"}
    apply(given, environ)
    assert environ == {**variables, "HOME": "/home/me"}
    assert exporters(environ) == signals


def test_prometheus() -> None:
    """A scrape endpoint is the first rank's; another one looks whether the port that it will have is free."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        environ = {"LOCAL_RANK": "3"}
        apply({"exporter": "prometheus", "endpoint": f"127.0.0.1:{port}"}, environ)
        assert environ == {
            "LOCAL_RANK": "3", "OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_HOST": "127.0.0.1",
            "OTEL_EXPORTER_PROMETHEUS_PORT": str(port), "OTEL_ML_INTERNAL_PORTS": "1",
        }  # fmt: skip


def test_the_other_keys() -> None:
    """Names, folder, share of traces and hooks are variables too."""
    environ = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "requests"}
    apply(
        {"service_name": "gpt", "run_name": "baseline", "directory": "./runs", "sample": 0.25, "instrument": False},
        environ,
    )
    assert environ == {
        "OTEL_SERVICE_NAME": "gpt", "OTEL_ML_RUN_NAME": "baseline", "OTEL_ML_DIR": "./runs",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25",
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "requests,otel_ml_torch,otel_ml_jax",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"exporter": "otpl"}, "exporter='otpl': need one of .* Type exporter='otlp'."),
        (
            {"exporter": "local", "endpoint": "http://x"},
            "exporter local has none. Leave it out, or type exporter='otlp'",
        ),
        ({"exporter": "otlp", "endpoint": "localhost:4318"}, "need a URL. Type endpoint='http://localhost:4318'."),
        ({"exporter": "prometheus", "endpoint": "here"}, "need host:port. Type endpoint='127.0.0.1:9464'."),
        ({"sample": 2}, "sample=2: need a share from 0 to 1. Type sample=0.1."),
        ({"sample": True}, "need a share"),
        ({"service_name": " "}, "service_name=' ': need text"),
        ({"instrument": "yes"}, "need true or false"),
        ({"exportr": "otlp"}, "exportr: there is no such key. Did you mean exporter?"),
        ({"zzz": 1}, "zzz: there is no such key. There is service_name, exporter"),
    ],
)
def test_refusals(given: dict[str, Any], said: str) -> None:
    """What cannot be is refused with what to type, and nothing is set."""
    environ = {"OTEL_LOGS_EXPORTER": "none"}
    with pytest.raises(SettingsError, match=said):
        apply(given, environ)
    assert environ == {"OTEL_LOGS_EXPORTER": "none"}


def test_a_port_in_use() -> None:
    """A scrape endpoint that something listens on already is refused, with another to type."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"127.0.0.1:{port}': cannot listen there .* Type endpoint='127.0.0.1"):
            apply({"exporter": "prometheus", "endpoint": f"127.0.0.1:{port}"}, {})


def test_the_file(tmp_path: Path) -> None:
    """A file says the same by the same keys; what the environment says comes first, and a destination is one thing."""
    file = tmp_path / "otel-ml.yaml"
    file.write_text(
        "service_name: gpt\nexporter: jaeger\nendpoint: http://jaeger:4318\nsample: 0.5\n", encoding="utf-8"
    )
    environ = {"OTEL_ML_CONFIG": str(file), "OTEL_SERVICE_NAME": "mine"}
    apply_file(environ)
    assert environ == {
        "OTEL_ML_CONFIG": str(file), "OTEL_SERVICE_NAME": "mine", "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://jaeger:4318/v1/traces",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5",
    }  # fmt: skip
    elsewhere = {"OTEL_ML_CONFIG": str(file), "OTEL_EXPORTER_OTLP_ENDPOINT": "http://other:4318"}
    apply_file(elsewhere)
    assert exporters(elsewhere) == {signal: ["otlp", "store"] for signal in SIGNALS}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file"),
        ("- exporter", "need lines such as `exporter: otlp`"),
        ("a: [", "expected the node content"),
        ("exportr: otlp", "Did you mean exporter?"),
    ],
)
def test_files_that_cannot_be(text: str | None, said: str, tmp_path: Path) -> None:
    """A file that is not there, is no YAML, or has other keys is refused in one line."""
    file = tmp_path / "otel-ml.yaml"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=said) as refused:
        apply_file({"OTEL_ML_CONFIG": str(file)})
    assert "\n" not in str(refused.value)


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    """As a file without keys does."""
    file = tmp_path / "otel-ml.yaml"
    file.write_text("# nothing yet\nexporter:\n", encoding="utf-8")
    assert read_file(file) == {}
