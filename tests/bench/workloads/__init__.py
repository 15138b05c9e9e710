"""Ordinary scripts that know nothing of telemetry; each runs alone, in a fresh process."""
