"""The overhead, side by side: `python -m tests.bench`; see README.md beside this file."""
