"""The simulated world: the same machine, policies and scripts as live processes, on a virtual clock and network."""
