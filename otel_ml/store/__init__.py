"""Telemetry on one disk: one SQLite file a process, in one folder a run."""
