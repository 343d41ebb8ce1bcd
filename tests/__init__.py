"""The tests, each a text that a newcomer can read. `tests.NAME` also runs as a command where the README says so."""
