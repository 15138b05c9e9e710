"""Real programs, healthy and troubled, send to the real stack: every panel shows them, and their alerts fire."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.collector_config.panels import Query, dashboards, queries
from tests.e2e.examples import RUNS
from tests.e2e.stack import soon

if TYPE_CHECKING:
    from tests.e2e.examples import Examples
    from tests.e2e.stack import Stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# What fires of it: those that need no minutes of trouble. The others are tested with promtool alone.
TROUBLES = {
    ("nan", "LossNonFinite"),
    ("skipped", "StepsSkipped"),
    ("recompiles", "RecompileStorm"),
    ("checkpoint-failed", "CheckpointFailed"),
    ("crash", "RunFailed"),
    ("crash", "LogTraceback"),
    ("next-character", "InferenceErrors"),
}


@pytest.fixture(scope="module")
def told(stack: Stack, examples: Examples) -> Stack:
    """The stack once all examples have run and their last words have arrived."""
    codes = {name: example.outcome.code for name, example in examples.all().items()}
    assert codes == {**dict.fromkeys(RUNS, 0), "crash": 1}
    verdicts = '{service_name=~".+"} | event_name="ml.diagnosis"'
    soon(lambda: {labels["ml_run_id"] for labels, _ in stack.loki(verdicts)} >= set(RUNS))
    return stack


def answered(stack: Stack, query: Query) -> list[Any]:
    """What the backend answers to a panel, as Grafana would ask it."""
    now = time.time()
    span = {"start": now - 900, "end": now, "step": 5}
    if query.datasource == "jaeger":
        found = stack.ask("jaeger", "/api/traces", **json.loads(query.expression), lookback="1h", limit=20)["data"]
    elif query.datasource == "loki":
        path = "/loki/api/v1/query" if query.instant else "/loki/api/v1/query_range"
        found = stack.ask("loki", path, query=query.expression, **({} if query.instant else {"since": "1h"}))["data"][
            "result"
        ]
    elif query.instant:
        found = stack.prometheus(query.expression)
    else:
        found = stack.ask("prometheus", "/api/v1/query_range", query=query.expression, **span)["data"]["result"]
    return list(found)


@pytest.mark.parametrize("file", sorted(dashboards()))
def test_panels_have_data(told: Stack, file: str) -> None:
    """Every query of every panel is taken by its backend, and answers something for at least one of the runs."""
    dashboard = dashboards()[file]
    by_run = [queries(dashboard, {"run": run, "service": run}) for run in RUNS]
    if not any(variable["name"] == "run" for variable in dashboard["templating"].get("list", ())):
        by_run = [queries(dashboard, {})]
    empty = [
        (asked[0].panel, asked[0].expression)
        for asked in zip(*by_run, strict=True)
        if not soon(lambda asked=asked: any(answered(told, query) for query in asked))  # type: ignore[misc]
    ]
    assert empty == []


@pytest.mark.parametrize("file", sorted(dashboards()))
def test_variables_have_values(told: Stack, file: str) -> None:
    """Every variable offers something for at least one of the runs."""
    for variable in dashboards()[file]["templating"].get("list", ()):
        series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]).groups()  # type: ignore[union-attr]
        values = [told.prometheus(f"group by ({label}) (last_over_time({selected}[1h]))") for run in RUNS
                  for selected in [(series if "{" in series else f"{series}{{}}").replace("$run", run)]]  # fmt: skip
        assert any(one["metric"].get(label) for found in values for one in found), variable["query"]


def fired(stack: Stack) -> set[tuple[str, str]]:
    """Alertmanager's alerts about runs: run and alert."""
    found = stack.ask("alertmanager", "/api/v2/alerts")
    return {(a["labels"]["ml_run_id"], a["labels"]["alertname"]) for a in found if "ml_run_id" in a["labels"]}


def test_troubles_alert(told: Stack) -> None:
    """What goes wrong reaches Alertmanager under its run's name, and nothing is said of runs that are well."""
    soon(lambda: fired(told) >= TROUBLES)
    assert fired(told) >= TROUBLES
    assert {alert for run, alert in fired(told) if run in {"char-gpt", "jax", "none", "ranks"}} == set()


def test_inhibition(told: Stack) -> None:
    """The traceback of a run that failed is held back: its failure is told already."""
    soon(lambda: ("crash", "LogTraceback") in fired(told))
    held = {
        a["labels"]["alertname"]: a["status"]["state"]
        for a in told.ask("alertmanager", "/api/v2/alerts")
        if a["labels"].get("ml_run_id") == "crash"
    }
    assert held == {"RunFailed": "active", "LogTraceback": "suppressed"}


def test_from_one_signal_to_another(told: Stack) -> None:
    """As the data sources' links go: an exemplar's trace and a line's are in Jaeger, a trace's lines are in Loki."""
    exemplars = told.exemplars('ml_training_step_duration_seconds_bucket{ml_run_id="char-gpt"}')
    assert exemplars
    trace = exemplars[-1]["labels"]["trace_id"]
    assert {span["name"] for span in told.trace(trace)} >= {"ml.step", "forward", "backward"}
    ((failure, _),) = told.loki('{ml_run_id="crash"} | event_name="ml.exception"')
    assert {span["attributes"].get("ml.outcome") for span in told.trace(failure["trace_id"])} >= {"failed"}
    lines = told.loki(f'{{ml_run_id="crash", service_name="crash"}} | trace_id = "{failure["trace_id"]}"')
    assert "ml.exception" in {labels["event_name"] for labels, _ in lines}
