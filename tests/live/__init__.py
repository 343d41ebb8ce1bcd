"""Live processes under hostile use: a host, its figures from outside, and a guest whose outcomes are known."""
