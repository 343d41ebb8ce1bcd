"""Searches: the same plan again and again, varied each time, until something fails or the bounds are reached."""
