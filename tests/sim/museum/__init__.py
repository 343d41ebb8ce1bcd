"""The museum in the simulator: which simulated runs show the kernel bugs of docs/museum, and by which check.

    python -m tests.sim.museum             every mutant: its plan's seeds in order, up to the first violation
    python -m tests.sim.museum B4 B35      some of them

`plans_for("B42")` says which plans to search for a mutant. No unit suite is run: what notices is a check of the run.
"""
