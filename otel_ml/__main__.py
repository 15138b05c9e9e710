"""`python -m otel_ml` is `otel-ml`."""

from __future__ import annotations

import sys

from otel_ml.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
