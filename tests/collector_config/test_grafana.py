"""The shipped dashboards: as the generator writes them, asking for what is emitted, and linked to one another."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import yaml

from tests.collector_config.panels import SHIPPED, dashboards, known, metrics_of, queries

if TYPE_CHECKING:
    from collections.abc import Iterator

GRAFANA = SHIPPED / "grafana"


def promql() -> Iterator[tuple[str, str]]:
    """Every PromQL expression that a dashboard or a link between data sources asks, with where it stands."""
    for file, dashboard in dashboards().items():
        for query in queries(dashboard, {"run": "a-run", "service": "a-service"}):
            if query.datasource == "prometheus":
                yield f"{file}: {query.panel}", query.expression
        for variable in dashboard["templating"].get("list", ()):
            yield f"{file}: ${variable['name']}", variable["query"].removeprefix("label_values(").partition(",")[0]
    for source in sources().values():
        for query in source["jsonData"].get("tracesToMetrics", {}).get("queries", ()):
            yield query["name"], query["query"].replace("$$", "$")


def sources() -> dict[str, dict[str, Any]]:
    """The provisioned data sources, by uid."""
    text = (GRAFANA / "provisioning" / "datasources" / "otel-ml.yaml").read_text(encoding="utf-8")
    return {source["uid"]: source for source in yaml.safe_load(text)["datasources"]}


def test_dashboards_are_what_the_generator_writes() -> None:
    """The JSON is the generator's; after a change type `python collector-config/grafana/generate.py`."""
    command = [sys.executable, str(GRAFANA / "generate.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, ""), checked.stderr


def test_panels_ask_for_what_is_emitted() -> None:
    """A panel, a variable or a link names metrics of ours, of the stack, or recorded ones, and no others."""
    asked = {(where, name) for where, query in promql() for name in metrics_of(query)}
    names = known()
    assert {(where, name) for where, name in asked if not name.startswith("/") and name not in names} == set()
    patterns = {(where, name[1:-1]) for where, name in asked if name.startswith("/")}
    assert {(w, p) for w, p in patterns if not any(re.fullmatch(p, name) for name in names)} == set()


def test_panels_can_be_told_apart() -> None:
    """A panel has a title, a number and a query; titles and numbers are its own in its dashboard."""
    for file, dashboard in dashboards().items():
        panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
        titles, numbers = [p["title"] for p in panels], [p["id"] for p in dashboard["panels"]]
        assert all(titles), file
        assert len(set(titles)) == len(titles), file
        assert len(set(numbers)) == len(numbers), file
        assert all(panel["targets"] for panel in panels), file


def test_links_lead_to_dashboards_and_sources_that_are_there() -> None:
    """A dashboard that something links to, and a data source that something asks, ship as well."""
    uids = {dashboard["uid"] for dashboard in dashboards().values()}
    assert uids == {"otel-ml-run", "otel-ml-fleet", "otel-ml-inference", "otel-ml-pipeline"}
    texts = [p.read_text(encoding="utf-8") for p in SHIPPED.rglob("*.*") if p.suffix in {".json", ".yaml"}]
    linked = {uid for text in texts for uid in re.findall(r"/d/([\w-]+)", text)}
    assert linked - uids == set()
    asked = {uid for text in texts for uid in re.findall(r"datasourceUid: (\w+)", text)}
    asked |= {
        target["datasource"]["uid"]
        for d in dashboards().values()
        for p in d["panels"]
        for target in p.get("targets", ())
    }
    assert asked == {"prometheus", "loki", "jaeger"}
    assert set(sources()) == asked | {"alertmanager"}


def test_signals_are_linked() -> None:
    """From an exemplar to its trace, from a line to its trace and run, from a trace to its lines and metrics."""
    found = sources()
    (exemplar,) = found["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert (exemplar["name"], exemplar["datasourceUid"]) == ("trace_id", "jaeger")
    trace, run = found["loki"]["jsonData"]["derivedFields"]
    assert (trace["matcherType"], trace["matcherRegex"], trace["datasourceUid"]) == ("label", "trace_id", "jaeger")
    assert (run["matcherRegex"], run["url"]) == ("ml_run_id", "/d/otel-ml-run?var-run=$${__value.raw}")
    logs = found["jaeger"]["jsonData"]["tracesToLogsV2"]
    assert (logs["datasourceUid"], logs["query"]) == ("loki", '{$${__tags}} | trace_id = "$${__trace.traceId}"')
    # What stands behind one "$" Grafana takes for a variable of its environment: these, and no others.
    text = (GRAFANA / "provisioning" / "datasources" / "otel-ml.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    names = re.findall(r"(?<!\$)\$\{?(\w+)", re.sub(r"#.*", "", "\n".join(lines)))
    assert names == ["PROMETHEUS_URL", "LOKI_URL", "JAEGER_URL", "ALERTMANAGER_URL"]
