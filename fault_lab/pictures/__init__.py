"""Pictures of runs: timelines, coverage, an explorer of states, and a trace for other viewers. Text in, text out."""
