"""Faults as protos and as values, read with every rule and written back."""
