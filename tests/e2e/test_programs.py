"""Ordinary programs under both launchers: they do what they did, and the counts are exact."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.launching import LAUNCHERS, PLAIN, PROGRAMS, Outcome, launch, step_records, totals

if TYPE_CHECKING:
    from pathlib import Path

# Those with a test of their own, here or beside this file.
SPECIAL = {"terminated", "interrupt", "timed", "fast", "own_providers", "observed", "patient"}
WAYS = {"plain": PLAIN, **LAUNCHERS}
LONG = {"compile_fullgraph", "compile_in_place", "compile_inductor", "compile_step"}
# What a program does is the program's and the hooks'; how it was launched matters to these.
BY_BOTH = {
    "exception", "exit_early", "inference", "jax_and_torch", "loader_fork", "loader_spawn", "plain_loop",
}  # fmt: skip
PROGRAMS_BY = [
    pytest.param(name, by, marks=pytest.mark.rare) if name in LONG or not (by == "otel-ml run" or name in BY_BOTH)
    else (name, by)
    for name in sorted(p.stem for p in PROGRAMS.glob("*.py") if p.stem not in SPECIAL)
    for by in LAUNCHERS
]  # fmt: skip


@functools.cache
def outcome(program: str, scratch: Path, way: str) -> tuple[Outcome, Path]:
    """What the program does alone or under a launcher, and where it was recorded; once a session."""
    folder = scratch / program / way.replace(" ", "-")
    folder.mkdir(parents=True)
    return launch(WAYS[way], f"{program}.py", cwd=folder, OTEL_ML_DIR=str(folder / "runs")), folder / "runs"


def counted(directory: Path, truth: dict[str, Any]) -> dict[str, Any]:
    """The recorded counts under the names the programs use, those that the program knows."""
    run = totals(directory)
    found = {
        "steps": run.steps,
        "skipped": run.steps_skipped,
        "failed": run.steps_failed,
        "evaluations": run.evaluations,
        "inference": run.inference.count,
        "micro_batches": run.micro_batches,
        "samples": run.samples,
        "inference_samples": run.inference_samples,
        "checkpoints_saved": run.checkpoints_saved,
        "checkpoints_loaded": run.checkpoints_loaded,
        "recompiles": run.recompiles,
        "compiles": run.compiles,
        "cache_hits": run.cache_hits,
        "cache_misses": run.cache_misses,
    }
    return {k: v for k, v in found.items() if truth.get(k) is not None}


@pytest.mark.parametrize(("program", "launcher"), PROGRAMS_BY)
def test_program(program: str, launcher: str, scratch: Path) -> None:
    """A program prints and exits as it does without us, and its steps are counted exactly."""
    with ThreadPoolExecutor(2) as pool:
        (plain, _), (ours, runs) = pool.map(functools.partial(outcome, program, scratch), ("plain", launcher))

    assert (ours.stdout, ours.code) == (plain.stdout, plain.code)
    truth = plain.truth
    if truth["exit"] == 0:
        assert ours.code == 0
    expected = {k: v for k, v in truth.items() if v is not None}
    found = counted(runs, truth)
    assert found == {k: expected[k] for k in found}


EXACT = [
    "plain_loop", "loader_no_workers", "loader_fork", "accumulation", "accumulation_no_loader", "amp", "clipping",
    "scheduler", "evaluation_loader", "evaluation_no_loader", "compile_module", "compile_function", "compile_step",
    "zero_grad_last", "by_hand", "distillation", "jax_plain", "jax_libraries", "jax_devices",
    "jax_cache", "jax_and_torch", "lbfgs", "adversarial",
]  # fmt: skip


@pytest.mark.parametrize("program", EXACT)
def test_loss(program: str, scratch: Path) -> None:
    """The loss in each step's record is what the program prints, to the last bit."""
    ours, runs = outcome(program, scratch, "otel-ml run")

    printed = [float(words[1]) for words in ours.losses()]
    found = [
        next((v for k, v in row.items() if k == "ml.training.loss" or k.startswith("ml.step.loss.")), None)
        for row in step_records(runs)
    ]
    assert len(printed) > 0
    assert repr(found) == repr(printed)


@pytest.mark.parametrize("program", ["gan", "gan_loader"])
def test_losses_of_two_optimizers(program: str, scratch: Path) -> None:
    """Each optimizer of a GAN has its own loss in the record, to the last bit."""
    ours, runs = outcome(program, scratch, "otel-ml run")

    rows = step_records(runs)
    by_name: dict[str, list[float]] = {}
    for words in ours.losses():
        by_name.setdefault(words[-2], []).append(float(words[-1]))
    columns = [
        [row[key] for row in rows] for key in sorted({k for row in rows for k in row if k.startswith("ml.step.loss.")})
    ]
    assert sorted(columns) == sorted(by_name.values())
