"""The example that logs, plainly and under the launchers: its file tells what the store tells, and each line once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.launching import LAUNCHERS, PLAIN, launch, recorded

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples" / "logging_setup.py"
PLACES = {"timestamp", "level", "logger", "message", "module", "function", "line", "run", "step", "trace", "span"}
TRAINED = [("trained", step) for step in range(20)]
MESSAGES = [
    ("nothing to resume from", None),
    *TRAINED[:10],
    ("off by", None),
    *TRAINED[10:],
    ("off by", None),
    ("", None),
]


def lines(folder: Path) -> list[dict[str, Any]]:
    """What the example has written."""
    return [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]


def test_without_a_run(tmp_path: Path) -> None:
    """In plain Python the same lines are there, without what is not known."""
    ended = launch(PLAIN, EXAMPLE, "--file=train.jsonl", cwd=tmp_path)
    assert (ended.code, ended.stdout) == (0, "train.jsonl\n"), ended.stderr
    found = lines(tmp_path)
    assert [line["message"].startswith(start) for line, (start, _) in zip(found, MESSAGES, strict=True)] == [True] * 24
    assert {key for line in found for key in line} & {"run", "step", "rank", "trace", "span", "request_id"} == set()
    assert len([line for line in ended.stderr.splitlines() if "experiment=baseline" in line]) == 24


@pytest.mark.parametrize("launcher", LAUNCHERS.values(), ids=LAUNCHERS)
def test_lines_and_store_agree(launcher: tuple[str, ...], tmp_path: Path) -> None:
    """Each line tells its run, and in a step its step, trace and span; the store holds each record once, as it was."""
    ended = launch(launcher, EXAMPLE, "--file=train.jsonl", cwd=tmp_path, OTEL_ML_DIR=str(tmp_path / "runs"))
    assert (ended.code, ended.stdout) == (0, "train.jsonl\n"), ended.stderr
    found = lines(tmp_path)
    run = recorded(tmp_path / "runs")
    assert [line.get("step") for line in found] == [step for _, step in MESSAGES]
    assert {line["run"] for line in found} == {process.run_id for process in run.processes()}
    ids = {line.get("step"): (line.get("trace"), line.get("span")) for line in found}
    chosen = {span.attributes["ml.step.number"]: span for span in run.spans() if span.name == "ml.step"}
    assert {n: (span.trace_id, span.span_id) for n, span in chosen.items()} == {n: ids[n] for n in chosen}
    assert (chosen.keys() >= set(range(10)), ids[None], len(set(ids.values()))) == (True, (None, None), 21)
    stored = [log for log in run.logs() if not log.event_name]
    assert [(log.body.rstrip("\n"), log.trace_id, log.span_id, log.step) for log in stored if log.body] == [
        (line["message"], line.get("trace"), line.get("span"), line.get("step")) for line in found
    ]
    extras = [{k: v for k, v in line.items() if k not in PLACES | {"exception"}} for line in found]
    own = [{k: v for k, v in log.attributes.items() if not k.startswith(("ml.", "exception."))} for log in stored]
    assert own == extras
