"""What we put into torch comes out again, and one hook that cannot be placed takes no other with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.launching import BIN, environment
from tests.safety.parity import PROGRAMS, TIMEOUT_S, both, python, same

# Everything of torch's that is another object while we are there, and one class of the program's.
PATCHED = [
    "GradScaler.step", "GradScaler.unscale_", "GradScaler.update", "Module.__setstate__",
    "Module._compiled_call_impl", "Module.compile", "Module.eval", "Own.step", "autograd.backward",
]  # fmt: skip
HOOKS = [
    "autograd.grad", "backward", "checkpoint", "clipping", "compile", "data loader", "grad scaler", "optimizer",
    "root forward",
]  # fmt: skip


def test_undone(tmp_path: Path) -> None:
    """After uninstrument() every attribute is the original, also after a second time; nothing is recorded any more."""
    facts = python("undone", cwd=tmp_path).facts
    results = {facts.pop(name) for name in ("plain", "plain again", "hooked", "after", "again")}
    assert len(results) == 1
    assert set(PATCHED) <= set(facts["patched"])
    del facts["patched"]
    assert facts == {
        "report": dict.fromkeys(HOOKS, "hooked"),
        "recorded": True,
        "undone": {"once": [], "and used": [], "twice": [], "at last": []},
        "silent after": True,
        "second time": [],
        "recorded again": True,
        "compilations": [1, 1, 1, 1],
        "same outputs": True,
        "compiled with us is silent after": True,
        "foreign": [True, 1, {"a": 1}],
        "late": [True, True],
    }


@pytest.fixture
def older(tmp_path: Path) -> str:
    """A folder for PYTHONPATH that makes torch, in any process under the launcher, one that lacks things."""
    folder = tmp_path / "older"
    about = folder / "older_torch-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: older-torch\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[opentelemetry_pre_instrument]\nolder = older_torch:prepare\n")
    (folder / "older_torch.py").write_bytes((PROGRAMS / "older_torch.py").read_bytes())
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def doctor(tmp_path: Path, **env: str) -> dict[str, tuple[str, str]]:
    """What the doctor says of each hook of torch: status and detail."""
    command = [str(BIN / "otel-ml"), "doctor", "--hooks", "--json"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(**env), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    checks = json.loads(done.stdout)["checks"]
    hooks = [c for c in checks if c["section"] == "hooks" and c["name"].startswith("torch: ")]
    return {c["name"].removeprefix("torch: "): (c["status"], c["detail"]) for c in hooks}


SOME = {
    "grad scaler": "torch:amp.GradScaler",
    "clipping": "torch:nn.utils.clip_grad._get_total_norm",
    "data loader": "torch:utils.data.dataloader._BaseDataLoaderIter",
    "compile": "torch._dynamo.utils:log_compilation_event",
}
OTHERS = {
    "root forward": "torch:nn.Module.compile",
    "backward": "torch:_C._len_torch_dispatch_stack",
    "autograd.grad": "torch:_C._len_torch_dispatch_stack",
    "optimizer": "torch:optim.Optimizer.zero_grad",
    "checkpoint": "torch:load",
}


@pytest.mark.parametrize("lacking", [SOME, OTHERS], ids=["some", "others"])
def test_hooks_that_torch_lacks(lacking: dict[str, str], tmp_path: Path, older: str) -> None:
    """A torch without some of the hook points trains as it does, is recorded by the others, and the doctor says why."""
    env = {"PYTHONPATH": older, "LACKING": ",".join(sorted(set(lacking.values()))), "OTEL_ML_STRICT": "0"}
    ran = both("lacking", cwd=tmp_path, **env)
    same(ran.hooked.facts, ran.plain.facts)
    (totals,) = ran.totals()
    assert (totals.steps, totals.evaluations, totals.checkpoints_saved) == (10, 1, 1)
    assert totals.errors == len(lacking)

    said = doctor(tmp_path, **env)
    assert {name: status for name, (status, _) in said.items()} == {
        name: "warning" if name in lacking else "ok" for name in HOOKS
    }
    for name, path in lacking.items():
        assert said[name][1].startswith("missing: AttributeError")
        assert path.split(":")[-1].split(".")[-1] in said[name][1]
        assert f"error in hook {name}; the program is not affected" in ran.hooked.stderr


def test_no_way_to_hide_from_dynamo(tmp_path: Path, older: str) -> None:
    """A torch from whose compiler we cannot hide is not hooked: it trains as it does, and the doctor says why."""
    env = {
        "PYTHONPATH": older,
        "LACKING": "torch:_C._dynamo.eval_frame.set_code_exec_strategy",
        "LOADED": "torch._dynamo",
        "OTEL_ML_STRICT": "0",
    }
    ran = both("lacking", cwd=tmp_path, **env)
    same(ran.hooked.facts, ran.plain.facts)
    assert ran.totals() == []
    assert "error in hook torch; the program is not affected" in ran.hooked.stderr
    said = doctor(tmp_path, **env)
    assert said["torch"][0] == "warning"
    assert "set_code_exec_strategy" in said["torch"][1]


def test_environment_is_the_tests_own() -> None:
    """The children of these tests run this Python, with nothing of OpenTelemetry's from outside."""
    assert Path(sys.executable).parent == BIN
    assert not [name for name in environment() if name.startswith("OTEL_")]
