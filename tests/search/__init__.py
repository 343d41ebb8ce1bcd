"""Searches: which runs are made, that each repeats itself, what they find."""
