"""NVIDIA's one-logger: its training loop and iteration contexts, three timed spans, written to a file."""

# mypy: disable-error-code="import-not-found, import-untyped, no-untyped-call, unused-ignore"
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.conditions import TRAININGS, Condition

if TYPE_CHECKING:
    from tests.bench.loops import Training

CONDITIONS = (
    Condition(
        "one-logger",
        "NVIDIA one-logger, file",
        "every site",
        # PyYAML: used by its core, not declared by it.
        packages=("nv-one-logger-training-telemetry", "PyYAML"),
        loops=__name__,
        evidence="one_logger.json",
        workloads=TRAININGS,
    ),
)


def train(task: Training) -> None:
    """Train, each step an iteration with its forward, backward and update spans."""
    from nv_one_logger.api.config import OneLoggerConfig
    from nv_one_logger.api.timed_span import timed_span
    from nv_one_logger.exporter.file_exporter import FileExporter
    from nv_one_logger.training_telemetry.api.config import TrainingTelemetryConfig
    from nv_one_logger.training_telemetry.api.context import application, training_iteration, training_loop
    from nv_one_logger.training_telemetry.api.spans import StandardTrainingJobSpanName as Name
    from nv_one_logger.training_telemetry.api.training_telemetry_provider import TrainingTelemetryProvider

    provider = TrainingTelemetryProvider.instance()
    provider.with_base_config(
        OneLoggerConfig(application_name="bench", world_size_or_fn=1, session_tag_or_fn="bench")
    ).with_exporter(FileExporter(file_path=Path("one_logger.json"))).configure_provider()
    with application():
        provider.set_training_telemetry_config(
            TrainingTelemetryConfig(
                perf_tag_or_fn="bench", global_batch_size_or_fn=task.batch_size, log_every_n_train_iterations=50
            )
        )
        with training_loop(train_iterations_start=0):
            for inputs, targets in task.batches:
                with training_iteration():
                    with timed_span(Name.MODEL_FORWARD):
                        task.optimizer.zero_grad()
                        loss = task.loss(task.model(inputs), targets)
                    with timed_span(Name.MODEL_BACKWARD):
                        loss.backward()
                    with timed_span(Name.OPTIMIZER_UPDATE):
                        task.optimizer.step()
                task.watch.lap(loss.item())
