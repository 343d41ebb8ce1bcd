"""Pictures of runs, as text and in a real browser."""
