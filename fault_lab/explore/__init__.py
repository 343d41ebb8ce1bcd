"""The bounded exhaustive search: every order and every placement of faults in a small world. See docs/exhaustive.md."""
