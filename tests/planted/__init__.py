"""Planted bugs: control planes and kernels that are wrong in one place each, and what the fault lab makes of them."""
