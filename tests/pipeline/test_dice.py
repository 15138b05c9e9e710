"""The SDK draws from dice of its own while we are there, and from the program's again afterwards."""

from __future__ import annotations

import random

from opentelemetry.exporter.otlp.common import http
from opentelemetry.sdk.metrics._internal.exemplar import exemplar_reservoir

from otel_ml.pipeline import dice


def test_dice() -> None:
    """What the SDK draws leaves the program's generator as it was, and both modules get theirs back by identity."""
    before = vars(exemplar_reservoir)["randrange"], vars(http)["random"]
    for _ in range(2):
        dice.install()
        random.seed(1)
        state = random.getstate()
        vars(exemplar_reservoir)["randrange"](0, 10)
        vars(http)["random"].uniform(0, 1)
        assert random.getstate() == state
        dice.uninstall()
        assert vars(exemplar_reservoir)["randrange"] is before[0]
        assert vars(http)["random"] is before[1]
    vars(http)["random"].uniform(0, 1)
    assert random.getstate() != state
