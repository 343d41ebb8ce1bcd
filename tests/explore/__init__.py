"""The bounded exhaustive search: see docs/exhaustive.md."""
