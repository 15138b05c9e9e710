"""Ways out that OpenTelemetry lacks."""
