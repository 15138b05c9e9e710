"""The queries of the shipped dashboards, rules and alerts: which metrics they name, and what a panel asks for."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from otel_ml import names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SHIPPED = Path(__file__).resolve().parent.parent.parent / "collector-config"
DASHBOARDS = SHIPPED / "grafana" / "dashboards"
RULES = SHIPPED / "prometheus" / "rules"
LOG_RULES = SHIPPED / "loki" / "rules" / "fake" / "rules.yaml"

# What the stack says about itself, where a panel, rule or alert asks for it.
OF_THE_STACK = {
    "up", "ALERTS", "prometheus_tsdb_head_series", "loki_distributor_lines_received_total",
    "traces_span_metrics_calls_total", "traces_span_metrics_duration_seconds_bucket",
    "traces_span_metrics_duration_seconds_sum", "traces_span_metrics_duration_seconds_count",
    "system_cpu_utilization_ratio", "system_memory_utilization_ratio", "system_disk_io_bytes_total",
    "otelcol_exporter_queue_size", "otelcol_exporter_queue_capacity", "otelcol_process_cpu_seconds",
    "otelcol_process_memory_rss",
    *(
        f"otelcol_{side}_{signal}"
        for side in (
            "receiver_accepted", "receiver_refused", "receiver_failed", "exporter_sent", "exporter_send_failed",
            "exporter_enqueue_failed",
        )
        for signal in ("spans", "metric_points", "log_records")
    ),
}  # fmt: skip

_UNITS = {"s": "_seconds", "By": "_bytes", "J": "_joules", "1": "_ratio"}
_FUNCTIONS = {
    "abs", "and", "avg", "avg_over_time", "bool", "by", "count", "count_over_time", "group_left", "group_right",
    "histogram_quantile", "ignoring", "increase", "last_over_time", "max", "max_over_time", "min", "min_over_time",
    "offset", "on", "or", "quantile_over_time", "rate", "sort", "sort_desc", "stddev_over_time", "sum", "time", "topk",
    "unless", "vector", "without",
}  # fmt: skip


def in_prometheus(metric: names.Metric) -> set[str]:
    """The names that a metric of ours has in Prometheus, by its documented translation of OTLP."""
    name = metric.name.replace(".", "_")
    unit = _UNITS.get(metric.unit, "") if metric.unit != "1" or metric.kind == "gauge" else ""
    name += "" if name.endswith(unit) else unit
    if metric.kind == "counter":
        return {f"{name}_total"}
    if metric.kind == "histogram":
        return {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
    return {name}


def rules() -> Iterator[dict[str, Any]]:
    """Every recording and alerting rule of Prometheus'."""
    for path in sorted(RULES.glob("*.yaml")):
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            yield from group["rules"]


def alerts() -> dict[str, dict[str, Any]]:
    """Every alert, Loki's as well, by its name."""
    logs = [
        rule for group in yaml.safe_load(LOG_RULES.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]
    ]
    return {rule["alert"]: rule for rule in [*rules(), *logs] if "alert" in rule}


def known() -> set[str]:
    """Every metric that a query may name: ours, the stack's, and what our recording rules make of them."""
    ours = {name for metric in names.METRICS.values() for name in in_prometheus(metric)}
    return ours | OF_THE_STACK | {rule["record"] for rule in rules() if "record" in rule}


def metrics_of(promql: str) -> set[str]:
    """The metrics that a PromQL expression names; a pattern of names counts as the pattern, in slashes."""
    found = {f"/{pattern}/" for pattern in re.findall(r'__name__=~"([^"]*)"', promql)}
    bare = re.sub(r"\{[^{}]*\}", " ", promql)  # label matchers
    bare = re.sub(r"\[[^\]]*\]", " ", bare)  # durations
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    bare = re.sub(r"\boffset\s+\w+", " ", bare)
    words = re.findall(r"(?<![\w:.$])[A-Za-z_:][\w:]*", bare)
    return found | {word for word in words if word not in _FUNCTIONS}


def dashboards() -> dict[str, dict[str, Any]]:
    """Every dashboard, by its file's name."""
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(DASHBOARDS.glob("*.json"))}


@dataclass(frozen=True)
class Query:
    """What one target of a panel asks: PromQL, LogQL, or a search of Jaeger's as its parameters in JSON."""

    panel: str
    datasource: str
    expression: str
    instant: bool


def queries(dashboard: Mapping[str, Any], values: Mapping[str, str]) -> list[Query]:
    """Every panel's queries, variables replaced: `values` by name, `$__…` as Grafana would in a view of an hour."""
    grafana = {"__rate_interval": "1m", "__range": "1h", "__interval": "15s"}
    everything = {
        **{v["name"]: v.get("allValue", "") for v in dashboard["templating"].get("list", ())},
        **grafana,
        **values,
    }

    def filled(text: str) -> str:
        return re.sub(r"\$(\w+)", lambda match: everything[match[1]], text)

    found = []
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            kind = target["datasource"]["type"]
            if kind == "jaeger":
                tags = dict(pair.split("=", 1) for pair in filled(target["tags"]).split())
                asked = {
                    "service": filled(target["service"]),
                    "operation": target["operation"],
                    "tags": json.dumps(tags),
                }
                found.append(Query(panel["title"], kind, json.dumps(asked), instant=False))
            else:
                instant = bool(target.get("instant")) or target.get("queryType") == "instant"
                found.append(Query(panel["title"], kind, filled(target["expr"]), instant))
    return found
