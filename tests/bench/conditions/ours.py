"""otel-ml in front of the unmodified script, as `otel-ml run` and `opentelemetry-instrument` put it there."""

from __future__ import annotations

from tests.bench.conditions import EVERYTHING, Condition

LAUNCH = {
    "OTEL_PYTHON_DISTRO": "otel_ml",
    "OTEL_PYTHON_CONFIGURATOR": "otel_ml",
    "PYTHONPATH": "{auto}:{root}",
    "OTEL_ML_DIR": "{folder}/otel-ml-data",
}
NOWHERE = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}
TO_SINK = {"OTEL_EXPORTER_OTLP_ENDPOINT": "{sink}"}


def _ours(name: str, title: str, variables: dict[str, str], evidence: str, against: str | None = None) -> Condition:
    return Condition(
        name,
        title,
        "nothing",
        needs=("otel-ml",),
        variables=LAUNCH | variables,
        workloads=EVERYTHING,
        evidence=evidence,
        ours=True,
        against=against,
    )


CONDITIONS = (
    _ours("ours-local", "otel-ml, local store", {}, "otel-ml-data/*/*"),
    _ours("ours-otlp", "otel-ml, OTLP and local store", TO_SINK, "sink", "stock-otlp"),
    _ours("ours-none", "otel-ml, exporters none", NOWHERE, "", "stock-none"),
)
