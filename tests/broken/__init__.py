"""Versions that are wrong in one step: what finds each, and that nothing of them stays."""
