"""OpenTelemetry for machine learning: put `otel-ml run` in front of an unmodified program."""
