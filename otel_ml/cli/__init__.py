"""`otel-ml`: one file a command."""
