"""Write the dashboards beside this file: `python collector-config/grafana/generate.py`, and commit what changed.

Everything that several panels share (variables, filters, data sources, links) is written once, here; the JSON is for
Grafana, and a test holds both together. A panel asks only for what a CPU has as well: what a device alone would fill
(its memory, its utilisation) is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    logs,
    loki,
    piechart,
    prometheus,
    stat,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog import variants
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models import piechart as piechart_models
from grafana_foundation_sdk.models import prometheus as prometheus_models

FOLDER = Path(__file__).resolve().parent / "dashboards"

PROMETHEUS = models.DataSourceRef(type_val="prometheus", uid="prometheus")
LOKI = models.DataSourceRef(type_val="loki", uid="loki")
JAEGER = models.DataSourceRef(type_val="jaeger", uid="jaeger")

# What each dashboard's variables leave of all series. A run without ranks has no label ml_rank: ".*" takes that too.
RUN = 'ml_run_id="$run", ml_run_attempt=~"$attempt", ml_rank=~"$rank"'
MODEL = 'ml_run_id=~"$run", ml_model_name=~"$model"'
SERVICE = 'service_name=~"$service"'
RUN_LOGS = '{ml_run_id="$run"} | ml_run_attempt=~"$attempt" | ml_rank=~"$rank"'

P = TypeVar("P", bound=Any)

RATE = "$__rate_interval"
WHOLE = "$__range"

_LAST = common.ReduceDataOptions().calcs(["lastNotNull"])


# --- queries -----------------------------------------------------------------------------
def ask(expression: str, legend: str = "", *, exemplars: bool = False) -> prometheus.Dataquery:
    """A PromQL query over the dashboard's time range."""
    query = prometheus.Dataquery().expr(expression).legend_format(legend or "__auto").range().datasource(PROMETHEUS)
    return query.exemplar(exemplar=True) if exemplars else query


def ask_once(expression: str, legend: str = "", *, rows: bool = False) -> prometheus.Dataquery:
    """A PromQL query at the end of the time range; as a table's rows or not."""
    query = prometheus.Dataquery().expr(expression).legend_format(legend or "__auto").instant().datasource(PROMETHEUS)
    return query.format(prometheus_models.PromQueryFormat.TABLE) if rows else query


def ask_buckets(expression: str) -> prometheus.Dataquery:
    """A PromQL query whose series are a heat map's rows."""
    return ask(expression, "{{le}}", exemplars=True).format(prometheus_models.PromQueryFormat.HEATMAP)


def ask_logs(expression: str) -> loki.Dataquery:
    """A LogQL query."""
    return loki.Dataquery().expr(expression).query_type("range").datasource(LOKI)


def count_logs(expression: str, legend: str) -> loki.Dataquery:
    """A LogQL metric query at the end of the time range."""
    return loki.Dataquery().expr(expression).legend_format(legend).query_type("instant").datasource(LOKI)


@dataclass
class TraceSearch(variants.Dataquery):
    """Jaeger's search, of which the SDK knows nothing; it is its own builder."""

    service: str
    operation: str
    tags: str = ""
    limit: int = 20
    ref: str = "A"

    def build(self) -> TraceSearch:
        """The query itself."""
        return self

    def ref_id(self, ref: str) -> TraceSearch:
        """Name it among its panel's queries."""
        self.ref = ref
        return self

    def to_json(self) -> dict[str, object]:
        """As Grafana's Jaeger data source writes it."""
        return {
            "refId": self.ref, "datasource": JAEGER, "queryType": "search", "service": self.service,
            "operation": self.operation, "tags": self.tags, "limit": self.limit,
        }  # fmt: skip


# --- panels ------------------------------------------------------------------------------
def lines(
    title: str,
    unit: str,
    *queries: Any,
    about: str = "",
    stacked: bool = False,
    wide: int = 12,
    floor: float | None = 0,
) -> timeseries.Panel:
    """Lines over time; stacked ones are filled."""
    panel = timeseries.Panel().title(title).description(about).unit(unit).height(8).span(wide).span_nulls(60_000)
    panel.legend(common.VizLegendOptions().display_mode(common_models.LegendDisplayMode.LIST).placement(
        common_models.LegendPlacement.BOTTOM).show_legend(show_legend=True))  # fmt: skip
    panel.tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
    panel.line_width(1).fill_opacity(60 if stacked else 5)
    if stacked:
        panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    if floor is not None:
        panel.min(floor)
    return _asking(panel, queries)


def number(title: str, unit: str, *queries: Any, about: str = "", wide: int = 4, named: bool = False) -> stat.Panel:
    """One large number, or the name of what is."""
    panel = stat.Panel().title(title).description(about).unit(unit).height(4).span(wide)
    panel.graph_mode(common_models.BigValueGraphMode.NONE).reduce_options(_LAST)
    panel.color_mode(common_models.BigValueColorMode.VALUE)
    panel.thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(
        [models.Threshold(value=None, color="text")]))  # fmt: skip
    if named:
        panel.text_mode(common_models.BigValueTextMode.NAME)
    return _asking(panel, queries)


def bars(
    title: str, unit: str, *queries: Any, about: str = "", wide: int = 8, most: float | None = None
) -> bargauge.Panel:
    """A bar each, the longest first as the query has them."""
    panel = bargauge.Panel().title(title).description(about).unit(unit).height(8).span(wide).min(0)
    panel.orientation(common_models.VizOrientation.HORIZONTAL)
    panel.display_mode(common_models.BarGaugeDisplayMode.BASIC).reduce_options(_LAST)
    if most is not None:
        panel.max(most)
    return _asking(panel, queries)


def shares(title: str, unit: str, *queries: Any, about: str = "", wide: int = 8) -> piechart.Panel:
    """What a whole is made of."""
    panel = piechart.Panel().title(title).description(about).unit(unit).height(8).span(wide)
    panel.pie_type(piechart_models.PieChartType.DONUT).reduce_options(_LAST)
    panel.legend(piechart.PieChartLegendOptions().display_mode(common_models.LegendDisplayMode.TABLE).placement(
        common_models.LegendPlacement.RIGHT).show_legend(show_legend=True).values(
        [piechart_models.PieChartLegendValues.VALUE, piechart_models.PieChartLegendValues.PERCENT]))  # fmt: skip
    return _asking(panel, queries)


def heat(title: str, unit: str, *queries: Any, about: str = "", wide: int = 12) -> heatmap.Panel:
    """How many were how long, over time."""
    panel = heatmap.Panel().title(title).description(about).height(8).span(wide).calculate(calculate=False)
    panel.y_axis(heatmap.YAxisConfig().unit(unit))
    panel.color(heatmap.HeatmapColorOptions().mode(heatmap_models.HeatmapColorMode.SCHEME).scheme("Blues").steps(32))
    return _asking(panel, queries)


def entries(title: str, *queries: Any, about: str = "", wide: int = 24, tall: int = 8) -> logs.Panel:
    """Log lines, newest first; a line's trace is a link in its details."""
    panel = logs.Panel().title(title).description(about).height(tall).span(wide).show_time(show_time=True)
    panel.wrap_log_message(wrap_log_message=True).enable_log_details(enable_log_details=True)
    panel.sort_order(common_models.LogsSortOrder.DESCENDING)
    return _asking(panel, queries)


def rows(title: str, *queries: Any, about: str = "", wide: int = 24, tall: int = 9) -> table.Panel:
    """A table of what the queries answer, joined by their labels where there are several."""
    panel = table.Panel().title(title).description(about).height(tall).span(wide)
    return _asking(panel, queries)


def _asking(panel: P, queries: tuple[Any, ...]) -> P:
    for ref, query in zip("ABCDEFGH", queries, strict=False):
        panel.with_target(query.ref_id(ref))
    source = queries[0].build()
    panel.datasource(JAEGER if isinstance(source, TraceSearch) else source.datasource)
    return panel


def quantiles(buckets: str, by: str = "") -> list[prometheus.Dataquery]:
    """Three quantiles of a histogram's buckets, with exemplars on the highest."""
    grouping = f"le, {by}" if by else "le"
    who = f" {{{{{by}}}}}" if by else ""
    return [
        ask(
            f"histogram_quantile({q}, sum by ({grouping}) (rate({buckets}[{RATE}])))",
            f"p{q * 100:g}{who}",
            exemplars=q > 0.9,
        )
        for q in (0.5, 0.95, 0.99)
    ]


# --- variables and links -----------------------------------------------------------------
def choice(
    name: str, label: str, values: str, *, whole: str | None = ".*", several: bool = True
) -> dashboard.QueryVariable:
    """A variable filled from Prometheus' labels; `whole` is the pattern that stands for all of them."""
    variable = dashboard.QueryVariable(name).label(label).datasource(PROMETHEUS).query(values)
    variable.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_DESC)
    variable.multi(multi=several)
    if whole is not None:
        variable.include_all(include_all=True).all_value(whole)
        variable.current(models.VariableOption(text="All", value="$__all"))
    return variable


def page(uid: str, title: str, about: str) -> dashboard.Dashboard:
    """An empty dashboard with links to the others."""
    made = dashboard.Dashboard(title).uid(uid).description(about).tags(["otel-ml"]).time("now-1h", "now").refresh("30s")
    made.timezone("browser").tooltip(models.DashboardCursorSync.CROSSHAIR).editable()
    made.link(dashboard.DashboardLink("otel-ml").type(models.DashboardLinkType.DASHBOARDS).tags(["otel-ml"])
              .as_dropdown(as_dropdown=True).keep_time(keep_time=True))  # fmt: skip
    firing = dashboard.AnnotationQuery().name("Alerts").datasource(PROMETHEUS).enable(enable=True).icon_color("red")
    made.annotation(firing.expr('ALERTS{alertstate="firing"}'))
    return made


def add(made: dashboard.Dashboard, title: str, *panels: Any) -> None:
    """A row with its panels."""
    made.with_row(dashboard.Row(title))
    for panel in panels:
        made.with_panel(panel)


# --- the dashboards ----------------------------------------------------------------------
def training_run() -> dashboard.Dashboard:
    """One run: what it learned, where its time went, how its ranks compare."""
    made = page("otel-ml-run", "Training run", "One run: what it learned, where its time went, how its ranks compare.")
    made.with_variable(choice("run", "Run", "label_values(ml_run_status, ml_run_id)", whole=None, several=False))
    made.with_variable(choice("attempt", "Attempt", 'label_values(ml_run_status{ml_run_id="$run"}, ml_run_attempt)'))
    made.with_variable(choice("rank", "Rank", 'label_values(ml_run_status{ml_run_id="$run"}, ml_rank)'))
    add(
        made, "Now",
        number("State", "none", ask_once(f"max by (ml_run_state) (last_over_time(ml_run_status{{{RUN}}}[{WHOLE}])) == 1", "{{ml_run_state}}"), named=True),
        number("Steps", "locale", ask_once(f'max(last_over_time(ml_training_steps_total{{{RUN}, ml_outcome="ok"}}[{WHOLE}]))'), about="Of the rank that made the most."),
        number("Last step", "dateTimeFromNow", ask_once(f"1000 * max(last_over_time(ml_run_progress_timestamp_seconds{{{RUN}}}[{WHOLE}]))")),
        number("Last loss", "none", ask_once(f"avg(last_over_time(ml_training_loss{{{RUN}}}[{WHOLE}]))")),
        number("Productive", "percentunit", ask_once(
            f'sum(last_over_time(ml_run_time_seconds_total{{{RUN}, ml_time_category="productive"}}[{WHOLE}]))'
            f" / sum(last_over_time(ml_run_time_seconds_total{{{RUN}}}[{WHOLE}]))"), about="The share of wall time in which the run learned."),
        number("Parameters", "short", ask_once(f"max(last_over_time(ml_model_parameters{{{RUN}}}[{WHOLE}]))")),
        entries("Verdict", ask_logs(f'{RUN_LOGS} | event_name="ml.diagnosis" | line_format "{{{{.ml_diagnosis_verdict}}}}: {{{{.ml_diagnosis_evidence}}}} {{{{.ml_diagnosis_advice}}}}"'), tall=4, about="What limited the run, and what to try; told at its end."),
    )  # fmt: skip
    add(
        made, "Learning",
        lines("Loss", "none", ask(f"ml_training_loss{{{RUN}}}", "{{ml_rank}} {{ml_optimizer}}"), floor=None, about="What the optimizer last descended, at each export. The exact curve is in the events ml.step and ml.steps."),
        lines("Gradient norm", "none", ask(f"ml_training_grad_norm{{{RUN}}}", "{{ml_rank}}"), about="Before clipping."),
        lines("Learning rate", "sci", ask(f"ml_training_learning_rate{{{RUN}}}", "{{ml_rank}} {{ml_optimizer}} {{ml_param_group}}")),
        lines("Values that the program records", "short", ask(f"ml_training_scalar{{{RUN}}}", "{{ml_rank}} {{ml_split}} {{ml_scalar_name}}"), floor=None, about="What it hands to otel_ml.record(), and what a JAX step returns under a name, at each export."),
        lines("Steps that taught nothing", "short", ask(f'sum by (ml_rank, ml_outcome, ml_skip_reason) (ml_training_steps_total{{{RUN}, ml_outcome!="ok"}})', "{{ml_rank}} {{ml_outcome}} {{ml_skip_reason}}"),
              ask(f"sum by (ml_rank, ml_scalar_name) (ml_training_nonfinite_values_total{{{RUN}}})", "{{ml_rank}} {{ml_scalar_name}} not finite"), about="Skipped and failed steps, and values that were NaN or infinite, since the start."),
    )  # fmt: skip
    per_step = (
        f"/ ignoring (ml_phase) group_left () sum(rate(ml_training_step_duration_seconds_count{{{RUN}}}[{RATE}]))"
    )
    add(
        made, "Where the time goes",
        lines("A step's time by phase", "s", ask(f"sum by (ml_phase) (rate(ml_training_phase_duration_seconds_sum{{{RUN}}}[{RATE}])) {per_step}", "{{ml_phase}}"), stacked=True, about="The mean step, laid out; by the host's clock."),
        lines("Step time", "s", *quantiles(f"ml_training_step_duration_seconds_bucket{{{RUN}}}"), about="Each dot is a step with a trace."),
        heat("Steps by their time", "s", ask_buckets(f"sum by (le) (increase(ml_training_step_duration_seconds_bucket{{{RUN}}}[{RATE}]))")),
        lines("Throughput", "short", ask(f'sum(rate(ml_training_steps_total{{{RUN}, ml_outcome="ok"}}[{RATE}]))', "steps/s"), ask(f"sum(rate(ml_training_samples_total{{{RUN}}}[{RATE}]))", "samples/s"),
              ask(f"sum(rate(ml_training_tokens_total{{{RUN}}}[{RATE}]))", "tokens/s"), about="Of all ranks together."),
        shares("The run's time", "s", ask_once(f"sum by (ml_time_category) (last_over_time(ml_run_time_seconds_total{{{RUN}}}[{WHOLE}]))", "{{ml_time_category}}"), about="Wall time by what it was spent on."),
        lines("What it is spent on", "percentunit", ask(f"sum by (ml_time_category) (rate(ml_run_time_seconds_total{{{RUN}}}[{RATE}])) / ignoring (ml_time_category) group_left () sum(rate(ml_run_time_seconds_total{{{RUN}}}[{RATE}]))", "{{ml_time_category}}"), stacked=True, wide=8),
        bars("What stalls", "percentunit", ask_once(f'sort_desc(max by (ml_rank, ml_phase) (max_over_time(rank_phase:ml_training_phase_duration_seconds:share5m{{{RUN}, ml_phase!~"forward|backward|optimizer"}}[{WHOLE}])))', "{{ml_rank}} {{ml_phase}}"), most=1,
             about="The largest share of step time, over five minutes, that each phase had which is no computing."),
    )  # fmt: skip
    add(
        made, "Ranks side by side",
        lines("Step time by rank", "s", ask(f"sum by (ml_rank) (rate(ml_training_step_duration_seconds_sum{{{RUN}}}[{RATE}])) / sum by (ml_rank) (rate(ml_training_step_duration_seconds_count{{{RUN}}}[{RATE}]))", "{{ml_rank}}"), wide=8),
        lines("Data wait a step by rank", "s", ask(f'sum by (ml_rank) (rate(ml_training_phase_duration_seconds_sum{{{RUN}, ml_phase="data_wait"}}[{RATE}])) / sum by (ml_rank) (rate(ml_training_step_duration_seconds_count{{{RUN}}}[{RATE}]))', "{{ml_rank}}"), wide=8),
        bars("Progress by rank", "locale", ask_once(f'sort(sum by (ml_rank) (last_over_time(ml_training_steps_total{{{RUN}, ml_outcome="ok"}}[{WHOLE}])))', "{{ml_rank}}"), about="Steps made; in a stall, the rank with the fewest is the one that is stuck."),
        lines("Idle", "s", ask(f"rank:ml_run_progress:idle_seconds{{{RUN}}}", "{{ml_rank}}"), about="Seconds since the last step, as long as the process reports.", wide=24),
    )  # fmt: skip
    add(
        made, "Compilations, checkpoints, evaluations, memory",
        bars("Compiled", "s", ask_once(f"sort_desc(sum by (code_function_name, ml_compile_stage) (last_over_time(ml_compile_duration_seconds_sum{{{RUN}}}[{WHOLE}])))", "{{code_function_name}} {{ml_compile_stage}}"), about="Seconds by function."),
        bars("Compiled again", "locale", ask_once(f"sort_desc(sum by (code_function_name, ml_compile_reason_kind) (last_over_time(ml_compile_recompiles_total{{{RUN}}}[{WHOLE}])))", "{{code_function_name}} {{ml_compile_reason_kind}}"), about="How often, by function and kind of reason."),
        entries("Why", ask_logs(f'{RUN_LOGS} | event_name=~"ml.compile.recompiled|ml.anomaly"'), wide=8),
        lines("Checkpoints", "s", ask(f"sum by (ml_checkpoint_operation, error_type) (ml_checkpoint_duration_seconds_sum{{{RUN}}}) / sum by (ml_checkpoint_operation, error_type) (ml_checkpoint_duration_seconds_count{{{RUN}}})", "{{ml_checkpoint_operation}} {{error_type}}"), about="The mean time of one.", wide=8),
        lines("Age of the last checkpoint", "s", ask(f"time() - max(ml_checkpoint_timestamp_seconds{{{RUN}}})", "since"), about="What a crash would lose.", wide=8),
        bars("Checkpoints' size", "bytes", ask_once(f"sum by (ml_checkpoint_operation) (last_over_time(ml_checkpoint_size_bytes_sum{{{RUN}}}[{WHOLE}])) / sum by (ml_checkpoint_operation) (last_over_time(ml_checkpoint_size_bytes_count{{{RUN}}}[{WHOLE}]))", "{{ml_checkpoint_operation}}"), about="The mean."),
        lines("Evaluations", "s", ask(f"sum(ml_evaluation_duration_seconds_sum{{{RUN}}}) / sum(ml_evaluation_duration_seconds_count{{{RUN}}})", "mean"), ask(f"sum(ml_evaluation_duration_seconds_count{{{RUN}}})", "how many"), about="Their mean time, and how many there were.", wide=8),
        lines("Memory", "bytes", ask(f"ml_memory_allocated_bytes{{{RUN}}}", "{{ml_rank}} {{hw_id}} now"), ask(f"ml_memory_peak_bytes{{{RUN}}}", "{{ml_rank}} peak"), wide=8, about="Resident memory of each process, and devices' where the framework counts it."),
        bars("Of what it may", "percentunit", ask_once(f"max by (ml_rank, hw_id) (last_over_time(ml_memory_allocated_bytes{{{RUN}}}[{WHOLE}]) / last_over_time(ml_memory_limit_bytes{{{RUN}}}[{WHOLE}]))", "{{ml_rank}} {{hw_id}}"), most=1, about="The last memory as a share of the limit."),
    )  # fmt: skip
    add(
        made, "Logs and traces",
        rows("Steps with a trace", TraceSearch("$service", "ml.step", "ml.run.id=$run"), about="Kept steps; open one to see its phases, of all ranks."),
        entries("Logs", ask_logs(f'{RUN_LOGS} | event_name!~"ml.steps?"'), about="The program's own and our events, without the step records.", tall=10),
    )  # fmt: skip
    made.with_variable(
        choice(
            "service",
            "Service",
            'label_values(ml_run_status{ml_run_id="$run"}, service_name)',
            whole=None,
            several=False,
        ).hide(models.VariableHide.HIDE_VARIABLE)
    )
    return made


def fleet() -> dashboard.Dashboard:
    """All runs: who runs, who failed, who is slow, and why."""
    made = page("otel-ml-fleet", "Fleet of runs", "All runs: who runs, who failed, who is slow, and why.")
    made.with_variable(choice("service", "Service", "label_values(ml_run_status, service_name)", whole=".+"))
    who = "service_name, ml_run_id, ml_run_name, ml_run_attempt"
    state = f"last_over_time(ml_run_status{{{SERVICE}"
    runs = rows(
        "Runs",
        ask_once(f'max by ({who}) ({state}, ml_run_state="running"}}[{WHOLE}])) + 2 * max by ({who}) ({state}, ml_run_state="failed"}}[{WHOLE}]))', rows=True),
        ask_once(f'max by ({who}) (last_over_time(ml_training_steps_total{{{SERVICE}, ml_outcome="ok"}}[{WHOLE}]))', rows=True),
        ask_once(f"1000 * max by ({who}) (last_over_time(ml_run_progress_timestamp_seconds{{{SERVICE}}}[{WHOLE}]))", rows=True),
        ask_once(f'sum by ({who}) (last_over_time(ml_run_time_seconds_total{{{SERVICE}, ml_time_category="productive"}}[{WHOLE}])) / sum by ({who}) (last_over_time(ml_run_time_seconds_total{{{SERVICE}}}[{WHOLE}]))', rows=True),
        ask_once(f"avg by ({who}) (last_over_time(ml_training_loss{{{SERVICE}}}[{WHOLE}]))", rows=True),
        about="Click a run to open it.",
    )  # fmt: skip
    runs.with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
    runs.with_transformation(models.DataTransformerConfig(id_val="organize", options={
        "excludeByName": {"Time": True},
        "renameByName": {"service_name": "Service", "ml_run_id": "Run", "ml_run_name": "Name", "ml_run_attempt": "Attempt",
                         "Value #A": "State", "Value #B": "Steps", "Value #C": "Last step", "Value #D": "Productive", "Value #E": "Loss"},
    }))  # fmt: skip
    runs.override_by_name("State", [models.DynamicConfigValue(id_val="mappings", value=[{
        "type": "value", "options": {"0": {"text": "finished", "color": "green"}, "1": {"text": "running", "color": "blue"},
                                     "2": {"text": "failed", "color": "red"}, "3": {"text": "failed", "color": "red"}}}])])  # fmt: skip
    runs.override_by_name("Last step", [models.DynamicConfigValue(id_val="unit", value="dateTimeFromNow")])
    runs.override_by_name("Productive", [models.DynamicConfigValue(id_val="unit", value="percentunit")])
    runs.override_by_name("Run", [models.DynamicConfigValue(id_val="links", value=[
        {"title": "Open", "url": "/d/otel-ml-run?var-run=${__value.raw}&${__url_time_range}"}])])  # fmt: skip
    add(
        made, "Now",
        number("Running", "none", ask_once(f'count(ml_run_status{{{SERVICE}, ml_run_state="running"}} == 1) or vector(0)'), about="Processes that report now."),
        number("Failed", "none", ask_once(f'count(count by (ml_run_id) (last_over_time(ml_run_status{{{SERVICE}, ml_run_state="failed"}}[{WHOLE}]) == 1)) or vector(0)'), about="Runs, in this time."),
        number("Finished", "none", ask_once(f'count(count by (ml_run_id) (last_over_time(ml_run_status{{{SERVICE}, ml_run_state="finished"}}[{WHOLE}]) == 1)) or vector(0)'), about="Runs, in this time."),
        number("Steps a second", "short", ask_once(f"sum(rate(ml_training_steps_total{{{SERVICE}}}[5m]))"), about="Of all runs together."),
        number("Alerts", "none", ask_once('count(ALERTS{alertstate="firing", ml_run_id!=""}) or vector(0)'), about="Firing, about runs."),
        number("Productive", "percentunit", ask_once(f'sum(last_over_time(ml_run_time_seconds_total{{{SERVICE}, ml_time_category="productive"}}[{WHOLE}])) / sum(last_over_time(ml_run_time_seconds_total{{{SERVICE}}}[{WHOLE}]))'), about="The share of all runs' wall time in which they learned."),
        runs,
        shares("Verdicts", "none", count_logs('sum by (ml_diagnosis_verdict) (count_over_time({service_name=~"$service"} | event_name="ml.diagnosis" [$__range]))', "{{ml_diagnosis_verdict}}"), about="What limited the runs that ended."),
        entries("Verdicts with their reasons", ask_logs('{service_name=~"$service"} | event_name="ml.diagnosis" | line_format "{{.ml_run_id}}  {{.ml_diagnosis_verdict}}: {{.ml_diagnosis_evidence}}"'), wide=16),
    )  # fmt: skip
    add(
        made, "Compared",
        bars("Slowest steps", "s", ask_once(f"topk(10, max by (ml_run_id) (last_over_time(rank:ml_training_step_duration_seconds:mean{{{SERVICE}}}[{WHOLE}])))", "{{ml_run_id}}"), about="The mean step of each run's slowest rank."),
        bars("Waiting for data", "percentunit", ask_once(f'topk(10, max by (ml_run_id) (max_over_time(rank_phase:ml_training_phase_duration_seconds:share5m{{{SERVICE}, ml_phase="data_wait"}}[{WHOLE}])))', "{{ml_run_id}}"), most=1, about="The largest share of step time over five minutes."),
        bars("Largest", "bytes", ask_once(f"topk(10, sum by (ml_run_id) (max_over_time(ml_memory_peak_bytes{{{SERVICE}}}[{WHOLE}])))", "{{ml_run_id}}"), about="Peak resident memory of all of a run's processes."),
        lines("Steps a second by run", "short", ask(f'sum by (ml_run_id) (rate(ml_training_steps_total{{{SERVICE}, ml_outcome="ok"}}[{RATE}]))', "{{ml_run_id}}"), wide=8),
        lines("Loss by run", "none", ask(f"avg by (ml_run_id) (ml_training_loss{{{SERVICE}}})", "{{ml_run_id}}"), floor=None, wide=8),
        shares("What all the time went to", "s", ask_once(f"sum by (ml_time_category) (last_over_time(ml_run_time_seconds_total{{{SERVICE}}}[{WHOLE}]))", "{{ml_time_category}}")),
    )  # fmt: skip
    add(
        made, "What went wrong",
        rows("Firing and pending", ask_once('ALERTS{ml_run_id!=""}', rows=True), wide=12, about="Alerts about runs."),
        entries("Failures", ask_logs('{service_name=~"$service"} | event_name="ml.exception"'), wide=12, tall=9),
        lines("Skipped and failed steps", "short", ask(f'sum by (ml_run_id, ml_outcome) (ml_training_steps_total{{{SERVICE}, ml_outcome!="ok"}})', "{{ml_run_id}} {{ml_outcome}}"), wide=8),
        lines("Values that are no numbers", "short", ask(f"sum by (ml_run_id, ml_scalar_name) (ml_training_nonfinite_values_total{{{SERVICE}}})", "{{ml_run_id}} {{ml_scalar_name}}"), wide=8),
        bars("Compiled again", "locale", ask_once(f"topk(10, sum by (ml_run_id) (last_over_time(ml_compile_recompiles_total{{{SERVICE}}}[{WHOLE}])))", "{{ml_run_id}}")),
    )  # fmt: skip
    return made


def inference() -> dashboard.Dashboard:
    """Models that serve: how many requests, how fast, how many fail."""
    made = page(
        "otel-ml-inference", "Inference", "Models that serve: how many forward passes, how fast, how many fail."
    )
    made.with_variable(choice("run", "Run", "label_values(ml_inference_requests_total, ml_run_id)"))
    made.with_variable(
        choice("model", "Model", 'label_values(ml_inference_requests_total{ml_run_id=~"$run"}, ml_model_name)')
    )
    asked = f"ml_inference_requests_total{{{MODEL}"
    took = f"ml_inference_duration_seconds_bucket{{{MODEL}}}"
    add(
        made, "Now",
        number("Requests", "locale", ask_once(f"sum(last_over_time({asked}}}[{WHOLE}]))"), about="Since the processes started."),
        number("p95", "s", ask_once(f"max(last_over_time(model:ml_inference_duration_seconds:p95_10m{{{MODEL}}}[{WHOLE}]))"), about="Of ten minutes; of the slowest model."),
        number("Failed", "percentunit", ask_once(f'(sum(last_over_time({asked}, ml_outcome="failed"}}[{WHOLE}])) or vector(0)) / sum(last_over_time({asked}}}[{WHOLE}]))')),
        number("Samples a request", "short", ask_once(f"sum(last_over_time(ml_inference_batch_size_sum{{{MODEL}}}[{WHOLE}])) / sum(last_over_time(ml_inference_batch_size_count{{{MODEL}}}[{WHOLE}]))")),
        number("Parameters", "short", ask_once(f"sum(last_over_time(ml_model_parameters{{{MODEL}}}[{WHOLE}]))")),
        number("Processes", "none", ask_once(f"count(count by (service_instance_id) (last_over_time({asked}}}[{WHOLE}])))")),
    )  # fmt: skip
    add(
        made, "Requests",
        lines("Rate", "reqps", ask(f"sum by (ml_model_name, ml_outcome) (rate({asked}}}[{RATE}]))", "{{ml_model_name}} {{ml_outcome}}")),
        lines("Time", "s", *quantiles(took, "ml_model_name"), about="Of the forward pass alone."),
        heat("Requests by their time", "s", ask_buckets(f"sum by (le) (increase({took}[{RATE}]))")),
        lines("Time of traced requests", "s", *quantiles('traces_span_metrics_duration_seconds_bucket{ml_run_id=~"$run", span_name="ml.inference"}'), about="Each dot is a request with a trace."),
        lines("Failing", "percentunit", ask(f'sum by (ml_model_name) (rate({asked}, ml_outcome="failed"}}[{RATE}])) / sum by (ml_model_name) (rate({asked}}}[{RATE}]))', "{{ml_model_name}}"), wide=8),
        lines("Batch size", "short", ask(f"sum by (ml_model_name) (rate(ml_inference_batch_size_sum{{{MODEL}}}[{RATE}])) / sum by (ml_model_name) (rate(ml_inference_batch_size_count{{{MODEL}}}[{RATE}]))", "{{ml_model_name}}"), wide=8),
        lines("Busy", "percentunit", ask(f"sum by (ml_model_name) (rate(ml_inference_duration_seconds_sum{{{MODEL}}}[{RATE}]))", "{{ml_model_name}}"), about="Seconds of forward passes a second; above 1, several threads or processes serve.", wide=8),
        lines("Memory", "bytes", ask('ml_memory_allocated_bytes{ml_run_id=~"$run"} and on (service_instance_id) ml_inference_requests_total', "{{service_name}} {{hw_id}}"), wide=24),
    )  # fmt: skip
    add(
        made, "Logs and traces",
        rows("Traced requests", TraceSearch("$service", "ml.inference"), wide=12, about="Of one service."),
        rows("Failed requests", TraceSearch("$service", "ml.inference", "ml.outcome=failed"), wide=12),
        entries("Logs", ask_logs('{ml_run_id=~"$run", service_name="$service"}'), tall=10),
    )  # fmt: skip
    made.with_variable(
        choice(
            "service",
            "Service",
            'label_values(ml_inference_requests_total{ml_run_id=~"$run"}, service_name)',
            whole=None,
            several=False,
        )
    )
    return made


def pipeline() -> dashboard.Dashboard:
    """The way of the telemetry: what comes in, what goes out, what is lost, and what it costs."""
    made = page(
        "otel-ml-pipeline",
        "Pipeline health",
        "The way of the telemetry: what comes in, what goes out, what is lost, and what it costs.",
    )

    def own(name: str) -> str:  # the Collector's counters, by signal, with the suffix that some readers add or without
        return f'{{__name__=~"otelcol_{name}_(spans|metric_points|log_records)(_total)?"}}'

    lost = "exporter:otelcol_exporter_{0}:sum or exporter:otelcol_exporter_sent:sum * 0"
    add(
        made, "Now",
        number("Targets that answer", "percentunit", ask_once("avg(up)")),
        number("Alerts", "none", ask_once('count(ALERTS{alertstate="firing", ml_run_id=""}) or vector(0)'), about="Firing, about the pipeline."),
        number("Fullest queue", "percentunit", ask_once("max(otelcol_exporter_queue_size / otelcol_exporter_queue_capacity)")),
        number("Records refused", "locale", ask_once(f"sum(increase(receiver:otelcol_receiver_refused:sum[{WHOLE}]))")),
        number("Lost by programs", "locale", ask_once(f"sum(last_over_time(otel_ml_record_dropped_total[{WHOLE}]))"), about="Their recorders were full."),
        number("The Collector's memory", "bytes", ask_once('max({__name__=~"otelcol_process_memory_rss(_bytes)?"})')),
    )  # fmt: skip
    add(
        made, "The Collector",
        lines("Accepted", "short", ask(f"sum by (receiver) (rate(receiver:otelcol_receiver_accepted:sum[{RATE}]))", "{{receiver}}"), about="Records a second."),
        lines("Refused", "short", ask(f"sum by (receiver) (rate(receiver:otelcol_receiver_refused:sum[{RATE}]))", "{{receiver}}"), about="Records a second that it sent back."),
        lines("Sent", "short", ask(f"sum by (exporter) (rate(exporter:otelcol_exporter_sent:sum[{RATE}]))", "{{exporter}}"), about="Records a second."),
        lines("Failed and dropped", "short", ask(lost.format("send_failed"), "{{exporter}} failed"), ask(lost.format("enqueue_failed"), "{{exporter}} had no room"), about="Since its start."),
        lines("Queues", "percentunit", ask("max by (exporter, data_type) (otelcol_exporter_queue_size / otelcol_exporter_queue_capacity)", "{{exporter}} {{data_type}}"), about="How full."),
        lines("By signal", "short", ask(f'sum by (__name__) ({own("receiver_accepted")})'), about="Records accepted since its start."),
        lines("Its CPU", "percentunit", ask(f'sum by (instance) (rate({{__name__=~"otelcol_process_cpu_seconds(_total)?"}}[{RATE}]))', "{{instance}}")),
        lines("Its memory", "bytes", ask('max by (instance) ({__name__=~"otelcol_process_memory_rss(_bytes)?"})', "{{instance}}")),
    )  # fmt: skip
    add(
        made, "The programs",
        lines("Events recorded", "short", ask(f"sum by (service_name) (rate(otel_ml_record_count_total[{RATE}]))", "{{service_name}}"), about="A second, by our hooks.", wide=8),
        lines("Our CPU", "percentunit", ask(f"sum by (ml_run_id, ml_rank) (rate(otel_ml_drain_duration_seconds_total[{RATE}]))", "{{ml_run_id}} {{ml_rank}}"), about="Of the background thread, as a share of a core.", wide=8),
        lines("Local store", "bytes", ask("sum by (ml_run_id, ml_rank) (otel_ml_store_size_bytes)", "{{ml_run_id}} {{ml_rank}}"), wide=8),
        bars("Spans by name", "locale", ask_once(f"topk(15, sum by (span_name) (last_over_time(traces_span_metrics_calls_total[{WHOLE}])))", "{{span_name}}")),
        lines("Spans that failed", "short", ask('sum by (service_name, span_name) (traces_span_metrics_calls_total{status_code="STATUS_CODE_ERROR"})', "{{service_name}} {{span_name}}"), wide=8),
        lines("Mean time of spans", "s", ask(f"sum by (span_name) (rate(traces_span_metrics_duration_seconds_sum[{RATE}])) / sum by (span_name) (rate(traces_span_metrics_duration_seconds_count[{RATE}]))", "{{span_name}}"), wide=8),
    )  # fmt: skip
    add(
        made, "Backends and host",
        lines("Targets", "none", ask("up", "{{job}} {{backend}} {{instance}}"), wide=8),
        lines("Series in Prometheus", "short", ask("prometheus_tsdb_head_series", "{{instance}}"), wide=8),
        lines("Lines into Loki", "short", ask(f"sum(rate(loki_distributor_lines_received_total[{RATE}]))", "a second"), wide=8),
        lines("Host CPU", "percentunit", ask('avg by (instance, state) (system_cpu_utilization_ratio{state!="idle"})', "{{instance}} {{state}}"), stacked=True, wide=8),
        lines("Host memory", "percentunit", ask("avg by (instance, state) (system_memory_utilization_ratio)", "{{instance}} {{state}}"), stacked=True, wide=8),
        lines("Host disk", "Bps", ask(f"sum by (instance, direction) (rate(system_disk_io_bytes_total[{RATE}]))", "{{instance}} {{direction}}"), wide=8),
    )  # fmt: skip
    return made


DASHBOARDS = {"training-run": training_run, "fleet": fleet, "inference": inference, "pipeline": pipeline}


def written() -> dict[str, str]:
    """Every dashboard's file name and text."""
    return {
        f"{name}.json": json.dumps(_numbered(json.loads(JSONEncoder(sort_keys=True).encode(make().build()))), indent=1)
        + "\n"
        for name, make in DASHBOARDS.items()
    }


def _numbered(made: dict[str, Any]) -> dict[str, Any]:
    """Its panels with numbers of their own, by which links name them."""
    for number_of, panel in enumerate(made["panels"], 1):
        panel["id"] = number_of
    return made


def main() -> None:
    """Write the files and say which changed; with --check, only say which would, and fail if any."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is not as it would be")
    check = parser.parse_args().check
    differing = []
    for name, text in written().items():
        path = FOLDER / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            differing.append(name)
            if not check:
                path.write_text(text, encoding="utf-8")
    sys.stdout.writelines(f"{name}\n" for name in differing)
    sys.exit(1 if check and differing else 0)


if __name__ == "__main__":
    main()
