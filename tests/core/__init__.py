"""The core on its own: unit tables, and a state machine against a plain reference model."""
