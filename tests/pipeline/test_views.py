"""The opt-in Views: one for each of our metrics that is asked about, none for anyone else's."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk import metrics
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from otel_ml import names
from otel_ml.errors import SettingsError
from otel_ml.pipeline.instruments import Instruments
from otel_ml.pipeline.views import views


def streams(**asked: Any) -> list[tuple[str, str, dict[str, Any]]]:
    """Record three of our metrics and a user's of the same name; return name, kind and attributes of what comes out."""
    reader = InMemoryMetricReader()
    given = {"drop": (), "keep_attributes": {}, "exponential": (), **asked}
    provider = metrics.MeterProvider([reader], views=views(**given), shutdown_on_exit=False)
    instruments = Instruments(provider.get_meter(names.SCOPE), lambda: None)
    instruments.observe(names.STEP_DURATION, [0.5], {names.FRAMEWORK_NAME: "torch"})
    instruments.observe(names.COMPILE_DURATION, [2.0], {names.FRAMEWORK_NAME: "torch", names.COMPILE_STAGE: "forward"})
    instruments.add(names.STEPS, 1, {names.OUTCOME: "ok"})
    instruments.flush()
    provider.get_meter("theirs").create_counter("ml.training.steps").add(1, {"a": "b"})
    data: Any = reader.get_metrics_data()
    return [
        (f"{scope.scope.name} {metric.name}", type(metric.data).__name__, dict(point.attributes))
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    ]


STEP = ("otel_ml ml.training.step.duration", "Histogram", {"ml.framework.name": "torch"})
COMPILE = ("otel_ml ml.compile.duration", "Histogram", {"ml.framework.name": "torch", "ml.compile.stage": "forward"})
STEPS = ("otel_ml ml.training.steps", "Sum", {"ml.outcome": "ok"})
THEIRS = ("theirs ml.training.steps", "Sum", {"a": "b"})


def test_nothing_asked_makes_no_view() -> None:
    """Without settings there is no View of ours that could stand beside a user's."""
    assert views((), {}, ()) == []
    assert streams() == [STEP, COMPILE, STEPS, THEIRS]


def test_a_dropped_metric_is_gone_and_a_users_of_the_same_name_is_not() -> None:
    """`drop` takes away our metric only."""
    assert streams(drop=("ml.training.steps",)) == [STEP, COMPILE, THEIRS]


def test_wildcards_reach_all_they_match() -> None:
    """A wildcard drops every metric of ours below it."""
    assert streams(drop=("ml.training.*",)) == [COMPILE, THEIRS]


def test_only_allowed_attributes_stay() -> None:
    """`keep_attributes` is an allow-list; several patterns that match allow the attributes of each."""
    assert streams(keep_attributes={"ml.compile.duration": (), "ml.training.steps": ("ml.skip.reason",)}) == [
        STEP,
        (*COMPILE[:2], {}),
        (*STEPS[:2], {}),
        THEIRS,
    ]
    assert streams(
        keep_attributes={"ml.*.duration": ("ml.framework.name",), "ml.compile.*": ("ml.compile.stage",)}
    ) == [STEP, COMPILE, STEPS, THEIRS]


def test_exponential_takes_the_histograms_of_a_wildcard() -> None:
    """`exponential` changes histograms and leaves the counters that a wildcard happens to match."""
    assert streams(exponential=("ml.training.*",)) == [
        (STEP[0], "ExponentialHistogram", STEP[2]),
        COMPILE,
        STEPS,
        THEIRS,
    ]


def test_one_metric_asked_about_thrice_makes_one_stream() -> None:
    """Exponential with few attributes is one View; drop needs nothing else."""
    asked = {"keep_attributes": {"ml.compile.duration": ()}, "exponential": ("ml.compile.duration",)}
    assert streams(**asked) == [STEP, (COMPILE[0], "ExponentialHistogram", {}), STEPS, THEIRS]
    assert streams(**asked, drop=("ml.compile.*",)) == [STEP, STEPS, THEIRS]
    assert len(views(("ml.compile.*",), {"ml.*": ("ml.phase",)}, ("*",))) == len(
        [name for name, metric in names.METRICS.items() if name.startswith("ml.") or metric.kind == "histogram"]
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"drop": ("ml.trainig.steps",)},
            "no metric of ours matches 'ml.trainig.steps'; did you mean ml.training.steps or ",
        ),
        ({"drop": ("ml.trainig.*",)}, "no metric of ours matches 'ml.trainig.*'; did you mean ml.training.*"),
        (
            {"exponential": ("ml.training.steps",)},
            "no histogram of ours matches 'ml.training.steps'; did you mean ml.training.",
        ),
        ({"drop": ("",)}, "no metric of ours matches ''; there is "),
        (
            {"keep_attributes": {"ml.training.steps": ("ml.outcom",)}},
            "no metric that matches 'ml.training.steps' has an attribute 'ml.outcom'; did you mean ml.outcome?",
        ),
        (
            {"keep_attributes": {"ml.training.samples": ("ml.outcome",)}},
            "no metric that matches 'ml.training.samples' has an attribute 'ml.outcome'; there is none",
        ),
    ],
)
def test_what_matches_nothing_is_refused_with_what_was_probably_meant(asked: dict[str, Any], message: str) -> None:
    """A typing mistake is told at the start, with the names nearest to it."""
    with pytest.raises(SettingsError) as caught:
        views(**{"drop": (), "keep_attributes": {}, "exponential": (), **asked})
    assert str(caught.value).startswith(message)
