"""What keeps a run's curves: MLflow, Weights & Biases offline, TensorBoard; four values a step each."""

# mypy: disable-error-code="import-not-found, import-untyped, no-untyped-call, unused-ignore"
from __future__ import annotations

import os
from time import perf_counter
from typing import TYPE_CHECKING

from tests.bench.conditions import TRAININGS, Condition

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.bench.loops import Training


def _tracker(name: str, title: str, package: str, variables: dict[str, str], evidence: str) -> Condition:
    return Condition(
        name,
        title,
        "a log call a step",
        packages=(package,),
        loops=__name__,
        evidence=evidence,
        variables=variables | {"BENCH_TRACKER": name},
        workloads=TRAININGS,
    )


CONDITIONS = (
    _tracker(
        "mlflow",
        "MLflow, files",
        "mlflow",
        {"MLFLOW_TRACKING_URI": "file://{folder}/mlruns", "MLFLOW_ALLOW_FILE_STORE": "true"},
        "mlruns/*/*/metrics/loss",
    ),
    _tracker("wandb", "wandb, offline", "wandb", {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}, "wandb/*/*.wandb"),
    _tracker("tensorboard", "TensorBoard", "tensorboard", {}, "tensorboard/*"),
)

Log = tuple["Callable[[dict[str, float], int], None]", "Callable[[], None]"]


def _mlflow() -> Log:
    import mlflow

    mlflow.start_run()
    return lambda values, step: mlflow.log_metrics(values, step=step), mlflow.end_run


def _wandb() -> Log:
    import wandb

    run = wandb.init(project="bench")
    return lambda values, step: run.log(values, step=step), run.finish


def _tensorboard() -> Log:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter("tensorboard")

    def log(values: dict[str, float], step: int) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, step)

    return log, writer.close


def train(task: Training) -> None:
    """Train and log loss, learning rate, step time and samples a second."""
    log, close = {"mlflow": _mlflow, "wandb": _wandb, "tensorboard": _tensorboard}[os.environ["BENCH_TRACKER"]]()
    begun = perf_counter()
    for step, (inputs, targets) in enumerate(task.batches):
        task.optimizer.zero_grad()
        loss = task.loss(task.model(inputs), targets)
        loss.backward()
        task.optimizer.step()
        value, took = loss.item(), perf_counter() - begun
        begun += took
        rate = task.optimizer.param_groups[0]["lr"]
        log({"loss": value, "lr": rate, "step_s": took, "samples_per_s": task.batch_size / took}, step)
        task.watch.lap(value)
    close()
