"""Durable commands: what is acknowledged is there afterwards, and nothing else is."""
