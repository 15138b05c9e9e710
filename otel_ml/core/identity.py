"""Which run, attempt and rank this process is, and the trace ids that follow from it.

Every process of a run must arrive at the same run id without a message sent, so ids come
from what launchers leave in the environment, and trace ids are hashes of them: every
rank's step 412 lands in one trace. Read once when a process starts (`otel-ml run`, the
distro); the id functions are called by the drain and, when someone asks for the live
step, by the user's thread. Nothing here touches `random`, whose state is the user's.
"""

from __future__ import annotations

import json
import os
import platform
import re
import struct
import time
import uuid
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping, Sequence

__all__ = ["Identity", "hand_down", "name_of", "resolve", "run_trace_id", "step_span_id", "step_trace_id"]

RUN_ID = "OTEL_ML_RUN_ID"
RUN_NAME = "OTEL_ML_RUN_NAME"

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "otel-ml")
_LONGEST_NAME = 40  # in an id that is minted
_LONGEST_TEXT = 200  # of what is handed down, as the settings have it
_SUFFIX = 6  # characters of 32: what tells runs of one minute apart, a sweep of hundreds included
_ALPHABET = "23456789abcdefghijkmnpqrstuvwxyz"
_SHELLS = frozenset({"interactive", "bash", "sh", "zsh", "fish", "ksh", "tcsh", "csh"})
_LAST_REAL_STEP = 0xFFFF_FF00  # SLURM numbers its own steps (batch, extern, interactive) from the top


@dataclass(frozen=True)
class Identity:
    """Who a process is: the same run id in every process of a run, and where in it this one stands."""

    run_id: str
    run_name: str
    attempt: int
    rank: int | None
    local_rank: int | None
    world_size: int | None
    launcher: str
    instance_id: str

    @property
    def process(self) -> int:
        """What tells this process from the others of its run: the rank, or where there is none a number of its own."""
        if self.rank is not None:
            return self.rank
        return int.from_bytes(blake2b(self.instance_id.encode(), digest_size=7).digest(), "big")


def resolve(environ: Mapping[str, str], argv: Sequence[str]) -> Identity:
    """The identity of this process.

    Args:
        environ: The process's environment.
        argv: The whole command line (`sys.orig_argv`, or what a launcher is about to
            start): names the run, and holds torchrun's `--rdzv-id`.
    """
    name = environ.get(RUN_NAME, "").strip() or name_of(argv)
    run_id = _label(_given_run_id(environ) or _rendezvous(argv)) or _mint(name)
    attempt = _attempt(environ)
    rank = _rank(environ)
    seed = f"{run_id}/{attempt}/{rank}/{platform.node()}/{os.getpid()}/{_process_start()}"
    return Identity(
        run_id=run_id,
        run_name=name,
        attempt=attempt,
        rank=rank,
        local_rank=_local_rank(environ),
        world_size=_world_size(environ),
        launcher=_launcher(environ),
        instance_id=str(uuid.uuid5(_NAMESPACE, seed)),
    )


def hand_down(environ: MutableMapping[str, str], identity: Identity) -> None:
    """Give the run's id and name to the processes that will be started with `environ`."""
    environ[RUN_ID] = identity.run_id
    environ[RUN_NAME] = identity.run_name


def _label(text: str) -> str:
    """The text as a setting may hold it: a file's name need not be UTF-8, and nobody typed what we derived."""
    return "".join(c if c.isprintable() else "?" for c in text)[:_LONGEST_TEXT].strip()


# --- the run's id --------------------------------------------------------------------------


def _given_run_id(environ: Mapping[str, str]) -> str | None:
    """What the user, a scheduler or a tracker calls this run, by how surely it means one run."""
    return (
        environ.get(RUN_ID, "").strip()
        or _slurm(environ)
        or _unless_none(environ.get("TORCHELASTIC_RUN_ID", ""))
        or _kubernetes(environ)
        or _ray(environ)
        or environ.get("WANDB_RUN_ID", "").strip()
        or environ.get("MLFLOW_RUN_ID", "").strip()
        or None
    )


def _unless_none(text: str) -> str:
    text = text.strip()
    return "" if text.lower() == "none" else text


def _slurm(environ: Mapping[str, str]) -> str:
    """The job, and the step in it under `srun`; an allocation in which somebody types is not one run."""
    job = environ.get("SLURM_JOB_ID", "")
    if not job or environ.get("SLURM_JOB_NAME") in _SHELLS:
        return ""
    step = _int(environ, "SLURM_STEP_ID")
    return f"slurm-{job}" if step is None or step >= _LAST_REAL_STEP else f"slurm-{job}.{step}"


def _kubernetes(environ: Mapping[str, str]) -> str:
    """The rendezvous that Kubeflow's operator set, its PyTorchJob, or the indexed Job that this pod is of."""
    rendezvous = _unless_none(environ.get("PET_RDZV_ID", ""))
    if rendezvous or "KUBERNETES_SERVICE_HOST" not in environ:
        return rendezvous
    job, master, _ = environ.get("MASTER_ADDR", "").partition("-master-0")
    if master:
        return job
    index = environ.get("JOB_COMPLETION_INDEX", "")
    host = environ.get("HOSTNAME", "")
    return host.removesuffix(f"-{index}") if index and host.endswith(f"-{index}") else ""


def _ray(environ: Mapping[str, str]) -> str:
    """The submission that Ray's job manager passes to a driver, or the job that a worker is of."""
    try:
        config = json.loads(environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "") or "{}")
        submission = str(config["metadata"]["job_submission_id"])
    except (ValueError, KeyError, TypeError):
        submission = ""
    job = environ.get("RAY_JOB_ID", "")
    return submission or (f"ray-{job}" if job else "")


def _rendezvous(argv: Sequence[str]) -> str:
    """The id that torchrun was given, so that its launchers on several machines agree before it starts."""
    words = _wrapped(argv)
    for at, word in enumerate(words):
        if word.endswith(".py"):
            return ""  # what follows is the program's own
        flag, given, value = word.partition("=")
        if flag.replace("_", "-") == "--rdzv-id":
            return _unless_none(value if given else "".join(words[at + 1 : at + 2]))
    return ""


def _mint(name: str) -> str:
    """A new id that sorts by name and time and can be read aloud: `train-20261121-1432-k3f9qx`."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:_LONGEST_NAME] or "run"
    suffix = "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in os.urandom(_SUFFIX))
    return f"{slug}-{time.strftime('%Y%m%d-%H%M')}-{suffix}"


# --- the run's name, from the command line --------------------------------------------------

_WRAPPERS = frozenset({"torchrun", "accelerate", "deepspeed", "opentelemetry-instrument"})
_WRAPPING_MODULES = frozenset({"torch.distributed.run", "torch.distributed.launch", "accelerate.commands.launch"})
_WITH_VALUE = frozenset({"-X", "-W", "--check-hash-based-pycs"})


def name_of(argv: Sequence[str]) -> str:
    """What people would call this command line: `train` for `python -u train.py --lr 1`, a module's name for `-m`."""
    return _label(_called(argv)) or "run"


def _called(argv: Sequence[str]) -> str:
    words = _python_words(argv)
    if not words:
        return "run"
    wrapped = _wrapped(argv)
    if wrapped:
        script = next((word for word in wrapped if word.endswith(".py")), None)
        if script is not None:
            return PurePath(script).stem
    first = words[0]
    if first == "-m":
        return words[1] if len(words) > 1 else "run"
    if first == "-c" or first.startswith("-c"):
        return "command"
    if first == "-":
        return "stdin"
    return PurePath(first).stem or "run"


def _python_words(argv: Sequence[str]) -> list[str]:
    """The command line without the interpreter and its own options: `-m module …`, `-c …`, `script …`."""
    words = list(argv)
    if not words or not re.match(r"(python|pypy)[\d.]*(t|d)?$", PurePath(words[0]).stem + PurePath(words[0]).suffix):
        return words
    words = words[1:]
    while words and words[0].startswith("-") and words[0] not in ("-", "-m", "-c") and not words[0].startswith("-c"):
        del words[: 2 if words[0] in _WITH_VALUE else 1]
    return words


def _wrapped(argv: Sequence[str]) -> list[str]:
    """What follows torchrun and its like; empty where the command is none of them."""
    words = _python_words(argv)
    if words[:1] == ["-m"] and words[1:2] and words[1] in _WRAPPING_MODULES:
        return words[2:]
    if words and PurePath(words[0]).stem in _WRAPPERS:
        return words[1:]
    return []


# --- attempt, rank, launcher -----------------------------------------------------------------


def _int(environ: Mapping[str, str], *names: str) -> int | None:
    """The first of these that holds a number ≥ 0."""
    for name in names:
        text = environ.get(name, "").strip()
        if text.isascii() and text.isdigit():
            return int(text)
    return None


def _attempt(environ: Mapping[str, str]) -> int:
    """Which try this is, from 0: restarts by torchrun within requeues by SLURM, no number used twice."""
    requeues = _int(environ, "SLURM_RESTART_COUNT") or 0
    restarts = _int(environ, "TORCHELASTIC_RESTART_COUNT") or 0
    most = _int(environ, "TORCHELASTIC_MAX_RESTARTS") or 0
    return requeues * (most + 1) + restarts


def _under_srun(environ: Mapping[str, str]) -> bool:
    """Whether SLURM's task numbers are of this process; a batch script has some too, and is no rank."""
    step = _int(environ, "SLURM_STEP_ID")
    return step is not None and step < _LAST_REAL_STEP and environ.get("SLURM_JOB_NAME") not in _SHELLS


def _rank(environ: Mapping[str, str]) -> int | None:
    found = _int(environ, "RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
    return _int(environ, "SLURM_PROCID") if found is None and _under_srun(environ) else found


def _local_rank(environ: Mapping[str, str]) -> int | None:
    found = _int(environ, "LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")
    return _int(environ, "SLURM_LOCALID") if found is None and _under_srun(environ) else found


def _world_size(environ: Mapping[str, str]) -> int | None:
    found = _int(environ, "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
    return _int(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") if found is None and _under_srun(environ) else found


def _launcher(environ: Mapping[str, str]) -> str:
    """What started the ranks, the innermost of several: a key of `ml.launcher`."""
    if "TORCHELASTIC_RUN_ID" in environ:
        return "torchrun"
    if "ACCELERATE_MIXED_PRECISION" in environ:
        return "accelerate"
    if _ray(environ):
        return "ray"
    if _under_srun(environ):
        return "slurm"
    return "kubeflow" if _kubernetes(environ) else "none"


def _process_start() -> str:
    """What tells this process from another with its number: the kernel's start tick, else the time now."""
    try:
        stat = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return str(time.time_ns())
    return stat.rpartition(")")[2].split()[19]


# --- ids of traces and spans --------------------------------------------------------------


@lru_cache(maxsize=16)
def _hasher(kind: bytes, run_id: str, attempt: int, size: int) -> blake2b:
    """A hash that has read everything but the step, to be copied: reading the run's id again would cost as much."""
    seed = f"{attempt}/{run_id}".encode("utf-8", "surrogatepass")
    return blake2b(seed, digest_size=size, person=b"otel-ml/" + kind)


def run_trace_id(run_id: str, attempt: int) -> int:
    """The trace of the run's own spans: 128 bits, the same in every process of the attempt."""
    return int.from_bytes(_hasher(b"run", run_id, attempt, 16).digest(), "big") or 1


def step_trace_id(run_id: str, attempt: int, step: int) -> int:
    """The trace of one step: 128 bits, the same on every rank; ratio samplers read its low, uniform half."""
    hasher = _hasher(b"step", run_id, attempt, 16).copy()
    hasher.update(struct.pack("<q", step))
    return int.from_bytes(hasher.digest(), "big") or 1


def step_span_id(run_id: str, attempt: int, step: int, process: int, thread: int) -> int:
    """The root span of a step in one process: 64 bits. `process` is `Identity.process`; `thread`, its thread."""
    hasher = _hasher(b"span", run_id, attempt, 8).copy()
    hasher.update(struct.pack("<qqQ", step, process, thread & 0xFFFF_FFFF_FFFF_FFFF))
    return int.from_bytes(hasher.digest(), "big") or 1
