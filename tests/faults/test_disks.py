"""Whatever becomes of the disk, the folder, the store's files or the clock, the program does not notice."""

from __future__ import annotations

import shutil
import sqlite3
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from otel_ml.store.runs import read_run
from tests.e2e.launching import INSTRUMENT, PLAIN, RUN, recorded, step_records, totals
from tests.faults.processes import Process, once, side_by_side, stored

LIMITED = ("bash", "-c", 'ulimit -f "$0"; exec "$@"', "160")  # KiB that a file may have
MOUNTED = (
    "unshare", "-m", "sh", "-c",
    """mkdir "$OTEL_ML_DIR" && mount -t tmpfs -o "$0" none "$OTEL_ML_DIR" || exit 99
    head -c 64K /dev/zero > "$OTEL_ML_DIR/others" 2> /dev/null
    "$@"; code=$?; cp -a "$OTEL_ML_DIR" "$OTEL_ML_DIR.kept"; exit $code""",
)  # fmt: skip


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the loud program prints without us: thirty steps before it is READY, five after."""
    with Process(PLAIN, "loud.py", "30", "20000", cwd=tmp_path_factory.mktemp("plain")) as program:
        program.until("READY")
        program.say("on")
        program.hang_up()
        return program.end().stdout


def may_mount() -> bool:
    """Whether this user may mount something in a namespace of its own."""
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


@pytest.mark.parametrize("mounted", [False, True], ids=["here", "mounted"])
def test_full_or_forbidden(tmp_path: Path, loud: str, *, mounted: bool) -> None:
    """A file limit, a full disk, a read-only one and a folder that is none cost only what cannot be kept, said once."""
    if mounted and not may_mount():
        pytest.skip("may not mount a small disk here")
    (tmp_path / "file").touch()
    ways = {
        "limited": ((*LIMITED, *RUN), tmp_path / "limited"),
        "no folder": (INSTRUMENT, tmp_path / "file" / "runs"),
    }
    if mounted:
        ways = {
            "full": ((*MOUNTED, "size=320k", *RUN), tmp_path / "full"),
            "read-only": ((*MOUNTED, "ro", *RUN), tmp_path / "read-only"),
        }

    def work(way: str) -> tuple[str, int, int]:
        launcher, runs = ways[way]
        with Process(launcher, "loud.py", "30", "20000", cwd=tmp_path, OTEL_ML_DIR=str(runs)) as program:
            program.until("READY")
            program.say("on")
            program.hang_up()
            outcome = program.end()
            return outcome.stdout, outcome.code, outcome.stderr.count("cannot write to the local store in")

    assert side_by_side(work, ways) == dict.fromkeys(ways, (loud, 0, 1))
    for kept in {"limited", "full.kept"} & {path.name for path in tmp_path.iterdir()}:
        found = stored(tmp_path / kept)
        assert found is not None
        assert (found.state, found.problems) == ("finished", ())
        (process,) = found.processes
        assert process.drops["logs write_failed"] > 0
        assert totals(tmp_path / kept).steps == 35


def steps_in(folder: Path) -> int:
    """The steps that a run's folder tells of, as far as it can be read."""
    found = read_run(folder)
    return 0 if found is None else found.steps


def test_store_under_attack(tmp_path: Path) -> None:
    """Beside files that are broken or too new a run is kept; where its own is damaged or deleted, it begins another."""

    def work(fault: str) -> dict[str, Any]:
        own = tmp_path / fault / "mine"
        own.mkdir(parents=True)
        (own / "pid1-broken.sqlite").write_bytes(b"broken" * 1000)
        (own / "pid2-empty.sqlite").touch()
        newer = sqlite3.connect(own / "pid3-newer.sqlite")
        newer.execute("PRAGMA user_version = 99")
        newer.close()
        strangers = {path.name: path.read_bytes() for path in own.iterdir()}

        environ = {"OTEL_ML_DIR": str(tmp_path / fault), "OTEL_ML_RUN_ID": "mine"}
        with Process(RUN, "loud.py", "10", "2000", cwd=tmp_path, **environ) as program:
            program.until("READY")
            once(lambda: steps_in(own) >= 9, "nine steps in the store")
            if fault == "deleted":
                shutil.rmtree(own)
            for path in own.iterdir() if fault == "damaged" else ():
                if path.name not in strangers:
                    with path.open("r+b") as file:
                        file.write(b"\xa5" * path.stat().st_size)
            program.say("on")
            program.until("DONE")
            program.hang_up()
            outcome = program.end()

        found = read_run(own)
        assert found is not None
        # The folder may go in the middle of a write, and then that is said.
        complaints = outcome.stderr.count("cannot write to the local store")
        assert complaints <= 1
        return {
            "ended": (outcome.code, outcome.stdout.count("loss "), outcome.stderr.count("✓ finished")),
            "told": (found.state, found.steps),
            "problems": len(found.problems),
            "strangers": [name for name in strangers if (own / name).exists()],
            "untouched": all(
                (own / name).read_bytes() == strangers[name] for name in strangers if (own / name).exists()
            ),
        }

    whole = {"ended": (0, 15, 1), "told": ("finished", 15), "untouched": True}
    strangers = ["pid1-broken.sqlite", "pid2-empty.sqlite", "pid3-newer.sqlite"]
    found = side_by_side(work, ["damaged", "deleted"])
    found["damaged"]["strangers"].sort()
    assert found == {
        "damaged": whole | {"problems": 4, "strangers": strangers},
        "deleted": whole | {"problems": 0, "strangers": []},
    }


# --- the clock -------------------------------------------------------------------------------

DAY_NS = 86_400 * 10**9
HOUR_S = 3600


def test_stepped_clock(tmp_path: Path) -> None:
    """A wall clock that is set forth and back while it trains moves the instants that are told, and no duration."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler, and so no clock to step")
    library, offset = tmp_path / "stepped_clock.so", tmp_path / "offset"
    source = Path(__file__).with_name("stepped_clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    offset.write_bytes(struct.pack("=q", 0))

    environ = {"LD_PRELOAD": str(library), "STEPPED_CLOCK": str(offset), "OTEL_ML_DIR": str(tmp_path / "runs")}
    said = []
    with Process(RUN, "clocks.py", cwd=tmp_path, **environ) as program:
        program.until("READY")
        for days in (0, 10, -20):
            set_clock(offset, days * DAY_NS)
            program.say("on")
            said.append([int(word) for word in program.until("DONE")])
        program.hang_up()
        outcome = program.end()

    assert outcome.code == 0
    assert [round((before - said[0][0]) / DAY_NS) for before, _ in said] == [0, 10, -20]
    found = recorded(tmp_path / "runs")
    (run_totals,) = found.totals()
    rows = step_records(tmp_path / "runs")
    assert [row["ml.step.number"] for row in rows] == list(range(30))
    assert all(0 < row["ml.step.duration"] < HOUR_S for row in rows)
    assert all(0 <= span.end_unix_ns - span.start_unix_ns < HOUR_S * 10**9 for span in found.spans("ml.step"))
    assert (run_totals.outcome, run_totals.steps, run_totals.errors) == ("finished", 30, 0)
    assert 0 < run_totals.duration_s < HOUR_S
    assert abs(sum(run_totals.time.values()) - run_totals.duration_s) < 1e-3
    assert all(0 <= (point.sum or 0) < HOUR_S for point in found.points(latest=True) if point.unit == "s")
    # Steps made after a step of the clock bear its new time, but for those before the drain's next look at it.
    told = {round((log.time_unix_ns - said[0][0]) / DAY_NS) for log in found.logs() if log.event_name == "ml.steps"}
    assert told <= {0, 10, -20}
    assert len(told) > 1


def set_clock(path: Path, offset_ns: int) -> None:
    """Set the clock of the processes that watch this file; in place, since it is mapped."""
    with path.open("r+b") as file:
        file.write(struct.pack("=q", offset_ns))
