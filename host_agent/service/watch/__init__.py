"""What changed on a host, in order: what a command may touch, what it did change, and who wants to know."""
