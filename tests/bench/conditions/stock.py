"""`opentelemetry-instrument` with OTel's own distribution: what any zero-code start costs before ours."""

from __future__ import annotations

from tests.bench.conditions import Condition

LAUNCH = {"OTEL_PYTHON_DISTRO": "distro", "OTEL_PYTHON_CONFIGURATOR": "configurator", "PYTHONPATH": "{auto}:{root}"}
PACKAGES = ("opentelemetry-distro>=0.66b2", "opentelemetry-exporter-otlp-proto-http>=1.45.2")

CONDITIONS = (
    Condition(
        "stock-none",
        "OTel's own distro, none",
        "nothing; sees no training",
        packages=PACKAGES,
        blind=True,
        variables=LAUNCH | {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")},
    ),
    Condition(
        "stock-otlp",
        "OTel's own distro, OTLP",
        "nothing; sees no training",
        packages=PACKAGES,
        blind=True,
        variables=LAUNCH
        | {f"OTEL_{signal}_EXPORTER": "otlp" for signal in ("TRACES", "METRICS", "LOGS")}
        | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_ENDPOINT": "{sink}"},
    ),
)
