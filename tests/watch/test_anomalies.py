"""What is not as it was is told once, with its figures and a next step."""

from __future__ import annotations

from otel_ml.watch.anomalies import STORM, Anomalies, Anomaly

SECOND = 1_000_000_000


def test_recompile_storm() -> None:
    """A function compiled again and again within a minute is told once, with what changes most often."""
    watch = Anomalies()
    reasons = ["y: float32[1] -> float32[2]", *(f"x: float32[{n}] -> float32[{n + 1}]" for n in range(20))]
    told = [watch.recompiled("train", reason, n * SECOND) for n, reason in enumerate(reasons)]

    assert [n for n, anomaly in enumerate(told) if anomaly] == [STORM - 1]
    assert told[STORM - 1] == Anomaly(
        "recompile_storm",
        "train was compiled again 8 times in 7.0 s, most often for x; last: x: float32[6] -> float32[7]",
        "Keep x the same from call to call: pad it to a few fixed sizes, or pass what changes as an array.",
    )


def test_recompile_storm_of_torch() -> None:
    """A guard of torch's names the tensor or the variable, and where it names nothing, nothing is made up."""
    for reason, named in (
        ("0/0: tensor 'x' size mismatch at index 0. expected 2, actual 3", "for x;"),
        ("0/1: L['scale'] == 3", "for scale;"),
        ("0/2: ___check_global_state()", "for what its guards check;"),
    ):
        watch = Anomalies()
        told = [watch.recompiled("f", reason, n * SECOND) for n in range(STORM)][-1]
        assert told is not None
        assert named in told.evidence


def test_recompilations_now_and_then() -> None:
    """As many over hours, or each of another function, are no storm."""
    watch = Anomalies()
    assert not any(watch.recompiled("train", "x: a -> b", n * 60 * SECOND) for n in range(50))
    assert not any(watch.recompiled(f"f{n}", "x: a -> b", n * SECOND) for n in range(500))
