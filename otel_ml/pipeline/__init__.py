"""From recorded events to OpenTelemetry: everything here runs on the drain thread."""
