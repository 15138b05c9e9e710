"""Real programs, healthy and troubled, send to the real stack: every panel shows them, and their alerts fire."""

from __future__ import annotations

import json
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.collector_config.panels import Query, dashboards, queries
from tests.e2e.launching import BIN, RUN, environment
from tests.e2e.stack import soon

if TYPE_CHECKING:
    from tests.e2e.stack import Stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "examples"
DDP = ROOT / "tests" / "faults" / "programs" / "ddp.py"

# Run, program, its arguments, how it ends.
RUNS: dict[str, tuple[list[str], int]] = {
    "char-gpt": ([str(EXAMPLES / "torch_train.py"), "--steps=200", "--workers=1"], 0),
    "next-character": ([str(EXAMPLES / "torch_serve.py"), "--requests=400", "--empty=5"], 0),
    "jax": ([str(EXAMPLES / "jax_train.py"), "--epochs=1", "--width=32"], 0),
    "well": ([str(EXAMPLES / "troubles.py"), "none"], 0),
    "nan": ([str(EXAMPLES / "troubles.py"), "nan"], 0),
    "skipped": ([str(EXAMPLES / "troubles.py"), "skipped"], 0),
    "recompiles": ([str(EXAMPLES / "troubles.py"), "recompiles"], 0),
    "checkpoint-failed": ([str(EXAMPLES / "troubles.py"), "checkpoint-failed"], 0),
    "crash": ([str(EXAMPLES / "troubles.py"), "crash"], 1),
    "ranks": ([str(BIN / "torchrun"), "--standalone", "--nproc-per-node=2", str(DDP)], 0),
}
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
def told(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """The stack once all programs have run, two at a time, and their last words have arrived."""

    def run(name: str) -> tuple[str, int, str]:
        words, code = RUNS[name]
        variables = {
            "OTEL_ML_DIR": str(tmp_path_factory.mktemp("runs")), "OTEL_ML_RUN_ID": name, "OTEL_SERVICE_NAME": name,
            "OTEL_EXPORTER_OTLP_ENDPOINT": stack.endpoint,
        }  # fmt: skip
        ended = subprocess.run(
            [*RUN, *words], env=environment(**variables), capture_output=True, text=True, timeout=300, check=False
        )
        return name, ended.returncode, ended.stderr if ended.returncode != code else ""

    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(run, RUNS))
    assert ended == [(name, code, "") for name, (_, code) in RUNS.items()]
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
    assert {alert for run, alert in fired(told) if run in {"char-gpt", "jax", "well", "ranks"}} == set()


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
