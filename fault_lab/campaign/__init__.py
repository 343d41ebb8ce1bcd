"""Campaigns: the seeds of one plan in blocks, on as many processors as there are, resumable."""
