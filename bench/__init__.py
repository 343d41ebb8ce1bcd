"""What it costs. ``python -m bench`` (``make bench``) prints a table and writes build/bench.json.

Every figure is a count, or stands beside a floor that was measured interleaved with it in the same run: on shared cores
only the ratio means anything.
"""
