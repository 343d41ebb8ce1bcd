"""Fault points and when they fire: a leaf that the agents and the controller may import."""
