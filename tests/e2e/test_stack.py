"""Programs send to the stack that `otel-ml stack up` started; what its backends answer is what happened."""

from __future__ import annotations

import json
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.backends import PATIENCE_S, backend
from tests.e2e.launching import BIN, INSTRUMENT, RUN, launch
from tests.e2e.stack import soon

if TYPE_CHECKING:
    from tests.e2e.launching import Outcome
    from tests.e2e.stack import Stack

STEPS = 15  # of the observed program
DDP = Path(__file__).parent.parent / "faults" / "programs" / "ddp.py"
RANK_STEPS = 12  # of that one
KEPT = 10  # steps of a run whose traces are kept whatever the rate


def sends(stack: Stack, folder: Path, run_id: str, program: str | Path, *launcher: str, **more: str) -> Outcome:
    """A program's run under this id that sends to the stack, to its end."""
    variables = {"OTEL_ML_DIR": str(folder), "OTEL_ML_RUN_ID": run_id, "OTEL_EXPORTER_OTLP_ENDPOINT": stack.endpoint}
    ended = launch(launcher or RUN, program, cwd=folder, timeout=120, **{**variables, **more})
    assert ended.code == 0, ended.stderr
    return ended


def steps_of(stack: Stack, run_id: str, count: int) -> list[dict[str, Any]]:
    """The run's step counters, once they say `count` together: at the run's end, unless something was lost."""
    query = f'last_over_time(ml_training_steps_total{{ml_run_id="{run_id}"}}[1h])'
    soon(lambda: sum(float(s["value"][1]) for s in stack.prometheus(query)) >= count)
    return stack.prometheus(query)


def records_of(stack: Stack, run_id: str) -> int:
    """How many steps the run's records in Loki tell of."""
    count = 0
    for labels, _ in stack.loki(f'{{ml_run_id="{run_id}"}} | event_name=~"ml.steps?"'):
        numbers = json.loads(labels["ml_step_number"])
        count += len(numbers) * int(labels.get("ml_step_stride", 1)) if isinstance(numbers, list) else 1
    return count


def step_of(spans: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The step among a trace's spans; None in a trace that is no step's."""
    return next((span for span in spans if span["name"] == "ml.step"), None)


@pytest.mark.slow
def test_correlated(stack: Stack, tmp_path: Path) -> None:
    """A run is in all three backends: from an exemplar to its trace, to its log line, and back to the run's metrics."""
    ended = sends(stack, tmp_path, "correlated", "observed.py", *INSTRUMENT)
    (steps,) = steps_of(stack, "correlated", STEPS)
    assert steps["value"][1] == str(STEPS)
    assert {k: v for k, v in steps["metric"].items() if k.startswith("ml_")} == {
        "ml_run_id": "correlated", "ml_run_name": "observed", "ml_run_attempt": "0", "ml_outcome": "ok",
    }  # fmt: skip
    query = 'ml_training_step_duration_seconds_bucket{ml_run_id="correlated"}'
    exemplar = soon(lambda: stack.exemplars(query))[0]
    trace_id = exemplar["labels"]["trace_id"]
    spans = soon(lambda: stack.trace(trace_id))
    step = step_of(spans)
    assert step is not None
    assert step["id"] == exemplar["labels"]["span_id"]
    phases = [span for span in spans if "ml.phase" in span["attributes"]]
    assert {"data_wait", "forward", "backward", "optimizer"} <= {span["name"] for span in phases}
    assert [span["parents"] for span in phases] == [[step["id"]]] * len(phases)

    # The program's own log lines, each in the trace of the step that it was written in.
    written = sorted(map(tuple, ended.truth["logs"]), key=str)
    soon(lambda: len(logs_of_program(stack)) >= len(written))
    assert sorted(logs_of_program(stack), key=str) == written
    # And back: the trace's run and id lead to its lines in Loki, its instance to the series in Prometheus.
    resource, number = step["resource"], step["attributes"]["ml.step.number"]
    lines = stack.loki(f'{{ml_run_id="{resource["ml.run.id"]}"}} | trace_id="{trace_id}"')
    assert sorted(line for _, line in lines) == sorted(text for text, step in written if step == number)
    instances = {labels["service_instance_id"] for labels, _ in lines}
    assert instances == {resource["service.instance.id"]} == {steps["metric"]["instance"]}


def logs_of_program(stack: Stack) -> list[tuple[str, int | None]]:
    """The observed program's own lines in Loki, each with the step whose trace it leads to."""
    found = []
    for labels, line in stack.loki('{ml_run_id="correlated"} | scope_name="program"'):
        step = step_of(soon(lambda each=labels: stack.trace(each["trace_id"]), 10)) if "trace_id" in labels else None  # type: ignore[misc]  # it is called at once
        found.append((line, None if step is None else step["attributes"]["ml.step.number"]))
    return found


@pytest.mark.slow
def test_fast(stack: Stack, tmp_path: Path) -> None:
    """At thousands of steps a second, every step is in Prometheus and in a record that Loki took."""
    count: int = sends(stack, tmp_path, "fast", "fast.py").truth["steps"]
    assert [s["value"][1] for s in steps_of(stack, "fast", count)] == [str(count)]
    soon(lambda: records_of(stack, "fast") >= count)
    assert records_of(stack, "fast") == count
    assert refusals(stack) == {}


def refusals(stack: Stack) -> dict[str, float]:
    """What the Collector or a backend says that it refused, by metric."""
    found = {}
    for query in (
        'sum({__name__=~"otelcol_receiver_(refused|failed)_.*"}) by (__name__)',
        'sum({__name__=~"otelcol_exporter_(send_failed|enqueue_failed)_.*"}) by (__name__)',
        "sum(loki_discarded_samples_total) by (reason)",
        "sum(prometheus_tsdb_too_old_samples_total)",
        "sum(prometheus_tsdb_out_of_bound_samples_total)",
    ):
        for series in stack.prometheus(query):
            if float(series["value"][1]) > 0:
                found[str(series["metric"] or query)] = float(series["value"][1])
    return found


@pytest.mark.slow
def test_side_by_side(stack: Stack, tmp_path: Path) -> None:
    """Two ranks, another run at the same time, and a second attempt: each has its own series, and each is exact."""
    torchrun = (*RUN, str(BIN / "torchrun"), "--standalone", "--nproc-per-node=2")
    with ThreadPoolExecutor() as together:
        ranks = together.submit(sends, stack, tmp_path, "two-ranks", DDP, *torchrun)
        for attempt in ("0", "1"):
            sends(stack, tmp_path, "beside", "observed.py", SLURM_RESTART_COUNT=attempt)
    assert ranks.exception() is None

    def attempts(run_id: str, count: int) -> list[tuple[str | None, str, str]]:
        series = steps_of(stack, run_id, count)
        rows = [(s["metric"].get("ml_rank"), s["metric"]["ml_run_attempt"], s["value"][1]) for s in series]
        return sorted(rows, key=str)

    assert attempts("two-ranks", 2 * RANK_STEPS) == [("0", "0", str(RANK_STEPS)), ("1", "0", str(RANK_STEPS))]
    assert attempts("beside", 2 * STEPS) == [(None, "0", str(STEPS)), (None, "1", str(STEPS))]
    assert stack.value("sum(prometheus_target_scrapes_sample_duplicate_timestamp_total)") == 0
    # Both ranks' part of one step is one trace.

    def ranks_of_traces() -> dict[int, list[int]]:
        """The ranks in each trace of the first steps, by the step's number."""
        steps = [[span for span in spans if span["name"] == "ml.step"] for spans in stack.traces("ddp", "ml.step")]
        found = {s[0]["attributes"]["ml.step.number"]: sorted(span["resource"]["ml.rank"] for span in s) for s in steps}
        return {number: ranks for number, ranks in sorted(found.items()) if number < KEPT}

    both_ranks = {number: [0, 1] for number in range(KEPT)}
    soon(lambda: ranks_of_traces() == both_ranks)
    assert ranks_of_traces() == both_ranks


@pytest.mark.slow
def test_without_jaeger(stack: Stack, tmp_path: Path) -> None:
    """While Jaeger is away, metrics and logs arrive as ever; the spans arrive when it is back."""
    with stack.without("jaeger"):
        sends(stack, tmp_path, "no-jaeger", "observed.py")
        assert [s["value"][1] for s in steps_of(stack, "no-jaeger", STEPS)] == [str(STEPS)]
        soon(lambda: records_of(stack, "no-jaeger") >= STEPS)
        assert records_of(stack, "no-jaeger") == STEPS
    assert soon(stack.ready, 2 * PATIENCE_S)
    soon(lambda: len(step_traces(stack, "observed", "no-jaeger")) >= STEPS)
    assert step_traces(stack, "observed", "no-jaeger") == list(range(STEPS))


@pytest.mark.slow
def test_beside_load(stack: Stack, tmp_path: Path) -> None:
    """Thirty seconds of 5,000 spans/s from elsewhere: each is taken, and a run beside it is whole."""
    received = "sum(otelcol_receiver_accepted_spans_total)"
    refused = "sum(otelcol_receiver_refused_spans_total)"
    before = (stack.value(received) or 0, stack.value(refused) or 0)
    endpoint = stack.endpoint.removeprefix("http://")
    load = subprocess.Popen(
        [
            backend("telemetrygen"), "traces", "--otlp-http", "--otlp-insecure", f"--otlp-endpoint={endpoint}",
            "--rate=5000", "--duration=30s", "--service=load",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OTEL_BSP_MAX_QUEUE_SIZE": "300000"},  # else it drops what it has no time to send
    )  # fmt: skip
    with load:
        sends(stack, tmp_path, "beside-load", "observed.py")
        said, _ = load.communicate(timeout=120)
    assert load.returncode == 0, said
    generated = sum(int(n) for n in re.findall(r'"traces": ?(\d+)', said)) * 2  # a trace of it is two spans
    assert generated > 0, said[-2000:]
    assert [s["value"][1] for s in steps_of(stack, "beside-load", STEPS)] == [str(STEPS)]
    soon(lambda: records_of(stack, "beside-load") >= STEPS)
    assert records_of(stack, "beside-load") == STEPS
    soon(lambda: len(step_traces(stack, "observed", "beside-load")) >= STEPS)
    assert step_traces(stack, "observed", "beside-load") == list(range(STEPS))
    soon(lambda: told(stack, received, refused) - sum(before) >= generated)
    assert told(stack, received, refused) - sum(before) >= generated
    assert (stack.value(refused) or 0) == before[1]


def step_traces(stack: Stack, service: str, run_id: str) -> list[int]:
    """The numbers of a run's steps that have a trace."""
    steps = [step for spans in stack.traces(service, "ml.step") if (step := step_of(spans)) is not None]
    return sorted(s["attributes"]["ml.step.number"] for s in steps if s["resource"]["ml.run.id"] == run_id)


def told(stack: Stack, *queries: str) -> float:
    """What some counters say together."""
    return sum(stack.value(query) or 0 for query in queries)
