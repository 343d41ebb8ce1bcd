"""A live host under storms: ``python -m tests.soak --minutes N``; docs/reliability.md says what has to stay flat."""
