"""Every process of a run finds the same run id, and trace ids follow from it."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from dataclasses import replace
from itertools import product

import pytest
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

from otel_ml.core.identity import hand_down, name_of, resolve, run_trace_id, step_span_id, step_trace_id
from otel_ml.settings import Settings

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "job-7", "TORCHELASTIC_RESTART_COUNT": "2", "TORCHELASTIC_MAX_RESTARTS": "3",
    "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8",
}  # fmt: skip
SRUN = {
    "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "pretrain", "SLURM_STEP_ID": "2", "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "4",
}  # fmt: skip
BATCH = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "pretrain", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}
PYTORCHJOB = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "MASTER_ADDR": "bert-master-0", "RANK": "1", "WORLD_SIZE": "2"}
INDEXED_JOB = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "sweep-12", "JOB_COMPLETION_INDEX": "12"}
RAY_SUBMISSION = {"RAY_JOB_CONFIG_JSON_ENV_VAR": '{"metadata": {"job_submission_id": "raysubmit_x"}}'}


@pytest.mark.parametrize(
    ("environ", "run_id"),
    [
        ({"OTEL_ML_RUN_ID": "mine"} | SRUN | TORCHRUN, "mine"),
        (SRUN | TORCHRUN, "slurm-4711.2"),
        (BATCH, "slurm-4711"),
        (BATCH | {"SLURM_STEP_ID": "4294967291"}, "slurm-4711"),
        (SRUN | {"SLURM_JOB_NAME": "bash"} | TORCHRUN, "job-7"),
        (TORCHRUN | PYTORCHJOB, "job-7"),
        ({"PET_RDZV_ID": "elastic-9"}, "elastic-9"),
        (PYTORCHJOB, "bert"),
        (INDEXED_JOB, "sweep"),
        (RAY_SUBMISSION, "raysubmit_x"),
        ({"RAY_JOB_ID": "03000000", "RAY_JOB_CONFIG_JSON_ENV_VAR": "{"}, "ray-03000000"),
        ({"WANDB_RUN_ID": "3k2j"}, "3k2j"),
        ({"MLFLOW_RUN_ID": "0a1b"}, "0a1b"),
    ],
)
def test_run_id(environ: dict[str, str], run_id: str) -> None:
    """The run id is the explicit one, else the surest that a scheduler or tracker left."""
    assert resolve(environ, ["python", "train.py"]).run_id == run_id


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (0, None, None, None, "none")),
        (TORCHRUN, (2, 5, 1, 8, "torchrun")),
        (TORCHRUN | SRUN | {"SLURM_RESTART_COUNT": "1"}, (6, 5, 1, 8, "torchrun")),
        (SRUN, (0, 3, 1, 4, "slurm")),
        (BATCH, (0, None, None, None, "none")),
        (SRUN | {"SLURM_JOB_NAME": "bash"}, (0, None, None, None, "none")),
        (PYTORCHJOB, (0, 1, None, 2, "kubeflow")),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, (0, 1, None, 2, "none")),
        ({"ACCELERATE_MIXED_PRECISION": "no", "RANK": "", "WORLD_SIZE": "many"}, (0, None, None, None, "accelerate")),
        ({"RAY_JOB_ID": "03000000"}, (0, None, None, None, "ray")),
    ],
)
def test_attempt_rank_launcher(environ: dict[str, str], expected: tuple[object, ...]) -> None:
    """Attempt, rank, local rank, world size and launcher are what the environment surely says, else unknown."""
    found = resolve(environ, ["python", "train.py"])
    assert (found.attempt, found.rank, found.local_rank, found.world_size, found.launcher) == expected


@pytest.mark.parametrize(
    ("given", "kept"),
    [("bad\udcff", "bad?"), ("n" * 240, "n" * 200), ("\udcff", "?"), ("tab\there", "tab?here"), ("\u202e", "?")],
)
def test_printable(given: str, kept: str) -> None:
    """A name or an id that nobody set, of a file or a scheduler, is one that the settings of a child take."""
    found = resolve({"WANDB_RUN_ID": given}, ["python", f"{given}.py"])
    assert (found.run_id, found.run_name) == (kept, kept)
    environ: dict[str, str] = {}
    hand_down(environ, found)
    assert Settings.from_env(environ).run_name == kept


@pytest.mark.parametrize("environ", [{}, {"TORCHELASTIC_RUN_ID": "none"}, {"TORCHELASTIC_RUN_ID": ""}])
def test_minted(environ: dict[str, str]) -> None:
    """Without a job the id is new each time, readable, and fit to be a folder's name."""
    minted = {resolve(environ, ["python", "my train:1.py"]).run_id for _ in range(100)}
    assert len(minted) == 100
    assert all(re.fullmatch(r"my-train-1-\d{8}-\d{4}-[2-9a-km-z]{6}", run_id) for run_id in minted)


def test_minting_leaves_random_alone() -> None:
    """The state of `random` is the user's and is not touched."""
    before = random.getstate()
    resolve({}, ["python", "train.py"])
    assert random.getstate() == before


@pytest.mark.parametrize(
    ("argv", "run_id"),
    [
        (["torchrun", "--nnodes=2", "--rdzv-id=job-9", "train.py"], "job-9"),
        (["python", "-m", "torch.distributed.run", "--rdzv_id", "job-9", "train.py"], "job-9"),
        (["torchrun", "--rdzv-id", "none", "train.py"], None),
        (["torchrun", "train.py", "--rdzv-id=job-9"], None),
        (["python", "train.py", "--rdzv-id=job-9"], None),
    ],
)
def test_rendezvous(argv: list[str], run_id: str | None) -> None:
    """The launchers of several machines agree on torchrun's own id before torchrun has started."""
    found = resolve({}, argv).run_id
    assert found == run_id if run_id else re.fullmatch(r"train-\d{8}-\d{4}-\w{6}", found)


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["/usr/bin/python3.11", "-u", "-X", "dev", "/src/train.py", "--lr", "1"], "train"),
        (["python", "-m", "package.train", "x.py"], "package.train"),
        (["python", "-c", "print()"], "command"),
        (["python", "-"], "stdin"),
        (["python"], "run"),
        ([], "run"),
        (["./train.sh", "a.py"], "train"),
        (["torchrun", "--nproc-per-node", "2", "gpt.py", "eval.py"], "gpt"),
        (["python", "-m", "torch.distributed.run", "gpt.py"], "gpt"),
        (["/venv/bin/python", "/venv/bin/torchrun", "gpt.py"], "gpt"),
        (["torchrun", "--no-python", "gpt"], "torchrun"),
        (["python-tool", "x"], "python-tool"),
    ],
)
def test_name(argv: list[str], name: str) -> None:
    """A run is called after its script or module, also where something else starts it."""
    assert name_of(argv) == name


def test_handed_down() -> None:
    """A child, whatever its command line and scheduler, is the same run with the same name."""
    parent = resolve({}, ["python", "train.py"])
    environ = dict(TORCHRUN)
    hand_down(environ, parent)
    child = resolve(environ, ["python", "-c", "from multiprocessing.spawn import spawn_main"])
    assert (child.run_id, child.run_name) == (parent.run_id, "train")


def test_instance_id() -> None:
    """The instance id stays for a process and differs between processes and ranks."""
    environ = {"OTEL_ML_RUN_ID": "mine"}
    program = "from otel_ml.core.identity import resolve; print(resolve({'OTEL_ML_RUN_ID': 'mine'}, []).instance_id)"
    own = resolve(environ, []).instance_id
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    assert resolve(environ, []).instance_id == own
    assert len({own, other, resolve(environ | {"RANK": "1"}, []).instance_id}) == 3


def test_core_is_standard_library_only() -> None:
    """Importing identity imports nothing third-party."""
    program = (
        "import sys; before = set(sys.modules); import otel_ml.core.identity\n"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before}\n"
        "print(sorted(m for m in new if m not in sys.stdlib_module_names))\n"
    )
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True, env={
        "PYTHONPATH": ":".join(p for p in sys.path if p and not p.endswith("site-packages")) or ".",
    })  # fmt: skip
    assert done.stdout.strip() == "['otel_ml']"


def test_ids_are_the_same_everywhere() -> None:
    """Ids depend on run, attempt and step alone: another process, of another rank, derives the same."""
    assert run_trace_id("mine", 0) == 0x4ED2F304D44950AA2598BC769E302123
    assert step_trace_id("mine", 0, 412) == 0xAFECEECBCDBE8F20B276C3C53FDEFE9D
    assert step_span_id("mine", 0, 412, 3, 1) == 0x6BA5ED807D76416C


def test_processes_without_a_rank_differ() -> None:
    """Processes of one run that have no rank are told apart; where there is one, it is the rank."""
    environ = {"OTEL_ML_RUN_ID": "mine"}
    here = resolve(environ, ["train.py"])
    there = replace(here, instance_id="another")
    assert here.process != there.process
    assert 0 <= min(here.process, there.process) <= max(here.process, there.process) < 2**56
    assert resolve({**environ, "RANK": "3"}, ["train.py"]).process == 3


def test_ids_differ() -> None:
    """Runs, attempts, steps, ranks and threads all tell ids apart, and none is zero or too wide."""
    runs, attempts, steps = ("a", "b", "1/a"), (0, 1), range(-2, 50)
    traces = [run_trace_id(r, a) for r, a in product(runs, attempts)]
    traces += [step_trace_id(r, a, s) for r, a, s in product(runs, attempts, steps)]
    spans = [
        step_span_id(r, a, s, rank, thread)
        for r, a, s, rank, thread in product(runs, attempts, steps, (0, 1, 2**55), (0, 1, 2**64 - 1))
    ]
    assert len(set(traces)) == len(traces)
    assert len(set(spans)) == len(spans)
    assert all(0 < i < 2**128 for i in traces)
    assert all(0 < i < 2**64 for i in spans)


@pytest.mark.parametrize("ratio", [0.1, 0.5])
def test_ratio_samplers_keep_their_share(ratio: float) -> None:
    """The half of a trace id that ratio samplers read is uniform, so they keep the share they were asked for."""
    sampler = TraceIdRatioBased(ratio)
    results = (sampler.should_sample(None, step_trace_id("mine", 0, step), "ml.step") for step in range(10_000))
    kept = sum(result.decision is Decision.RECORD_AND_SAMPLE for result in results)
    assert abs(kept / 10_000 - ratio) < 0.02
